"""`spanloom cancel`, `pause`, `resume` and `retry`: what operators do to executions and their children."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click

from spanloom.cli.failures import DONE, FAILED, report
from spanloom.cli.output import in_terminal, print_json
from spanloom.cli.parameters import find_execution, json_option
from spanloom.cli.target import Target, target_options
from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import UserError
from spanloom.engine.views import Execution

__all__ = ["cancel", "pause", "resume", "retry"]


class _Controlled(NamedTuple):
    """What came of one request; `done` False without an error: it was so before."""

    given: str
    execution: Execution | None = None
    done: bool = False
    error: UserError | None = None


_EXECUTIONS = """
    EXECUTION_ID is an id, or the first or last six or more characters of a recent one's; several are done one after the
    other. --expected-revision refuses if someone changed it since it was read; `spanloom show` tells the revision.

    In a pipe each is a line of tab-separated id, what was done, `done` or `already`, and revision. With --json each
    line is one JSON object. Exit code 1: at least one was refused, and standard error says why.
"""


def _command(name: str, help_text: str) -> Callable[[Callable[..., int]], click.Command]:
    """Make a command of the one shape that all four have; the function carries its transition out."""

    def decorate(function: Callable[..., int]) -> click.Command:
        function = json_option(target_options(redis=True)(function))
        function = click.option(
            "--expected-revision", type=click.IntRange(0), metavar="N", help="Refuse unless N is its revision."
        )(function)
        function = click.argument("execution_id", nargs=-1, required=True)(function)
        return click.command(name=name, help=help_text + _EXECUTIONS)(function)

    return decorate


@_command(
    "cancel",
    """Cancel executions and their children.

    Nothing of them starts any more; what is running is not recorded as completed.
""",
)
def cancel(target: Target, **options: Any) -> int:
    """Cancel what was named."""
    return _control(target, WorkflowEngine.cancel_execution, "cancelled", **options)


@_command(
    "pause",
    """Pause executions and their children.

    What is running may end; nothing new starts until they are resumed. A deadline goes on counting.
""",
)
def pause(target: Target, **options: Any) -> int:
    """Pause what was named."""
    return _control(target, WorkflowEngine.pause_execution, "paused", **options)


@_command(
    "resume",
    """Let paused executions and their children go on.

    A delay that is not over waits on.
""",
)
def resume(target: Target, **options: Any) -> int:
    """Resume what was named."""
    return _control(target, WorkflowEngine.resume_execution, "resumed", **options)


@_command(
    "retry",
    """Run failed executions on from where they failed.

    Failed nodes and failed children run again; what completed before is kept. What came after a failure that the
    workflow had handled is done anew.
""",
)
def retry(target: Target, **options: Any) -> int:
    """Retry what was named."""
    return _control(target, WorkflowEngine.retry_execution, "retried", **options)


def _control(
    target: Target,
    transition: Callable[..., bool],
    word: str,
    *,
    execution_id: Sequence[str],
    expected_revision: int | None,
    as_json: bool,
) -> int:
    if expected_revision is not None and len(execution_id) > 1:
        raise UserError("--expected-revision is the revision of one execution; name one")
    code = DONE
    with target.operator() as engine:
        for given in execution_id:
            controlled = _one(engine, transition, given, expected_revision)
            _tell(controlled, word, as_json=as_json)
            if controlled.error is not None:
                code = report(controlled.error, str(controlled.error), FAILED)
    return code


def _one(
    engine: WorkflowEngine, transition: Callable[..., bool], given: str, expected_revision: int | None
) -> _Controlled:
    execution = None
    try:
        execution = find_execution(engine.store, given)
        done = transition(engine, execution.id, expected_revision=expected_revision)
    except UserError as error:
        return _Controlled(given, execution, error=error)
    return _Controlled(given, engine.store.get_execution(execution.id) or execution, done)


def _tell(controlled: _Controlled, word: str, *, as_json: bool) -> None:
    given, execution, done, error = controlled
    if as_json:
        document = {
            "execution_id": execution.id if execution else given,
            "done": done,
            "status": execution.status if execution else None,
            "revision": execution.revision if execution else None,
            "error": None if error is None else str(error),
        }
        print_json(document)
    elif execution is not None and error is None:
        if in_terminal():
            already = "" if done else " already"
            click.echo(f"{execution.workflow_id} v{execution.version} {execution.id}  {word}{already}")
        else:
            click.echo(f"{execution.id}\t{word}\t{'done' if done else 'already'}\t{execution.revision}")
