"""`spanloom cancel`, `pause`, `resume`, `retry` and `acknowledge`, of executions given by id or by a filter."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import click

from spanloom.cli.exit_codes import DONE, FAILED, report
from spanloom.cli.options.confirmation import check_confirmation, confirm, confirmation_options
from spanloom.cli.options.filters import Selection, selection_options
from spanloom.cli.options.parameters import find_execution, json_option
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import in_terminal, print_json, print_line, print_note
from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import UserError
from spanloom.engine.operations.bulk import apply_to_each, find
from spanloom.engine.store.models import Execution, ExecutionFilter
from spanloom.engine.store.requests import ControlAction
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["Action", "acknowledge", "cancel", "control_named", "pause", "resume", "retry", "revision_option"]

_EXECUTIONS = """
    EXECUTION_ID is an id, or the first or last six or more characters of a recent one's; several are done one after the
    other. --expected-revision refuses if someone changed it since it was read; `spanloom show` tells the revision.

    Without ids, filters say which, or --all: of those found in {statuses} the oldest first, parents before their
    children. In a terminal you are told how many they are, and asked; in a pipe --yes is needed.

    In a pipe each is a line of tab-separated id, what was done, `done` or `already` (with --dry-run: `would`), and
    revision. With --json each line is one JSON object. Exit code 1: at least one was refused, and standard error says
    why; or you said no.
"""

_OF_ONE = "--expected-revision is the revision of one execution; name one"

revision_option = click.option(
    "--expected-revision", type=click.IntRange(0), metavar="N", help="Refuse unless N is its revision."
)


class Action(NamedTuple):
    """One transition: its verb, its past participle for the output, and the engine's function for it."""

    verb: str
    done: str
    transition: Callable[..., bool]
    statuses: tuple[ExecutionStatus, ...] = ()  # of the executions that a filter finds for it
    many: ControlAction | None = None  # the transition of executions that a filter finds


class ControlledExecution(NamedTuple):
    """The result of one request. `done` is False without an error if it was done before, or with its parent."""

    given: str
    execution: Execution | None = None
    done: bool = False
    error: UserError | None = None


def control_named(
    target: Target, action: Action, given: Sequence[str], *, expected_revision: int | None, as_json: bool
) -> int:
    """Apply the action to each given execution, also after a refusal, and return the exit code.

    Raises UsageError for one expected revision with several executions.
    """
    if expected_revision is not None and len(given) != 1:
        raise click.UsageError(_OF_ONE)
    code = DONE
    with target.operator() as engine:
        for reference in given:
            code = max(
                code, _print_result(_control(engine, action, reference, expected_revision), action, as_json=as_json)
            )
    return code


def _control(
    engine: WorkflowEngine, action: Action, given: str, expected_revision: int | None = None
) -> ControlledExecution:
    """Apply the action to the execution of an id, or of a part of one. A refusal is returned as the result's error."""
    execution = None
    try:
        execution = find_execution(engine.store, given)
        done = action.transition(engine, execution.id, expected_revision=expected_revision)
    except UserError as error:
        return ControlledExecution(given, execution, error=error)
    return ControlledExecution(given, engine.store.get_execution(execution.id, data_limit=0) or execution, done)


def _print_result(controlled: ControlledExecution, action: Action, *, as_json: bool, would: bool = False) -> int:
    """Print one line, or the reason of a refusal, and return the exit code. `would`: nothing was done (a dry run)."""
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
            result = f"would be {action.done}" if would else action.done if done else f"{action.done} already"
            print_line(f"{execution.workflow_id} v{execution.version} {execution.id}  {result}")
        else:
            how = "would" if would else "done" if done else "already"
            print_line(f"{execution.id}\t{action.done}\t{how}\t{execution.revision}")
    return DONE if error is None else report(error, str(error), FAILED)


def _control_found(
    engine: WorkflowEngine,
    action: Action,
    wanted: ExecutionFilter,
    *,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Apply the action to the oldest `limit` that match, parents first, and return the exit code: 1 after a refusal.

    Each execution has its line; in a terminal their number follows at the end. With `dry_run` nothing is done. Without
    `yes` the user is prompted first.
    """
    ids = find(engine.store, wanted, action.statuses, limit)
    if not ids:
        if in_terminal() and not as_json:
            print_note(f"no executions to {action.verb} in {engine.store.url}")
        return DONE
    if dry_run:
        return _print_all(_found(engine, ids), action, as_json=as_json, would=True)
    noun, them = ("execution", "it") if len(ids) == 1 else ("executions", "them")
    if not confirm(f"{len(ids):,} {noun} found; {action.verb} {them}?", yes=yes):
        return FAILED
    return _print_all(_controlled(engine, action, ids), action, as_json=as_json, would=False)


def _found(engine: WorkflowEngine, ids: Iterable[str]) -> Iterator[ControlledExecution]:
    for execution_id in ids:
        if (execution := engine.store.get_execution(execution_id, data_limit=0)) is not None:
            yield ControlledExecution(execution_id, execution)


def _controlled(engine: WorkflowEngine, action: Action, ids: Sequence[str]) -> Iterator[ControlledExecution]:
    assert action.many is not None, f"{action.verb} is for executions that are named"
    for execution_id, answer in apply_to_each(engine.store, ids, partial(engine.operations.control, action.many)):
        execution = engine.store.get_execution(execution_id, data_limit=0)
        if isinstance(answer, UserError):
            yield ControlledExecution(execution_id, execution, error=answer)
        else:
            yield ControlledExecution(execution_id, execution, done=answer)


def _print_all(answers: Iterable[ControlledExecution], action: Action, *, as_json: bool, would: bool) -> int:
    counts: Counter[str] = Counter()
    code = DONE
    try:
        for controlled in answers:
            if controlled.error is not None:
                counts["refused"] += 1
            elif would:
                counts[f"would be {action.done}"] += 1
            else:
                counts[action.done if controlled.done else f"{action.done} already"] += 1
            code = max(code, _print_result(controlled, action, as_json=as_json, would=would))
    finally:  # also after an outage of the store, or after Ctrl-C
        if sys.stderr.isatty():
            print_note(", ".join(f"{count:,} {what}" for what, count in counts.items()), stderr=True)
    return code


def _command(action: Action, help_text: str, *, offers_acknowledged: bool = False) -> click.Command:
    """Make a command with the arguments and options that all of them share."""
    of_dead = action.statuses == (ExecutionStatus.FAILED,)

    @click.argument("execution_id", nargs=-1)
    @selection_options(*action.statuses)
    @click.option("--all", "everything", is_flag=True, help="All of them, if nothing else says which.")
    @click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many.")
    @confirmation_options
    @revision_option
    @target_options(redis=True)
    @json_option
    def command(
        target: Target,
        execution_id: tuple[str, ...],
        selection: Selection,
        everything: bool,
        limit: int | None,
        dry_run: bool,
        yes: bool,
        expected_revision: int | None,
        as_json: bool,
        acknowledged: bool = False,
    ) -> int:
        in_bulk = bool(selection or everything or acknowledged)
        if execution_id:
            if in_bulk or limit is not None or dry_run:
                raise click.UsageError("give EXECUTION_ID, or filters with their --limit and --dry-run; not both")
            return control_named(target, action, execution_id, expected_revision=expected_revision, as_json=as_json)
        if not in_bulk:
            raise click.UsageError(
                f"nothing says which executions to {action.verb}; give EXECUTION_ID, filters such as --workflow ID, "
                "or --all"
            )
        if everything and selection:
            raise click.UsageError("--all is for all of them; leave it out where filters say which")
        if expected_revision is not None:
            raise click.UsageError(_OF_ONE)
        check_confirmation(action.verb, yes=yes, dry_run=dry_run)
        more: dict[str, Any] = {"acknowledged": acknowledged} if of_dead else {}
        with target.operator() as engine:
            wanted = selection.filter(engine.store, **more)
            return _control_found(engine, action, wanted, limit=limit, dry_run=dry_run, yes=yes, as_json=as_json)

    if offers_acknowledged:
        command = click.option("--acknowledged", is_flag=True, help="Those that were acknowledged.")(command)
    statuses = " or ".join(f"`{status}`" for status in action.statuses)
    return click.command(name=action.verb, help=help_text + _EXECUTIONS.format(statuses=statuses))(command)


cancel = _command(
    Action(
        "cancel",
        "cancelled",
        WorkflowEngine.cancel_execution,
        (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED),
        ControlAction.CANCEL,
    ),
    """Cancel executions and their children.

    Nothing of them starts any more; what is running is told, and not recorded as completed.
""",
)

pause = _command(
    Action("pause", "paused", WorkflowEngine.pause_execution, (ExecutionStatus.RUNNING,), ControlAction.PAUSE),
    """Pause executions and their children.

    What is running may end; nothing new starts until they are resumed. A deadline goes on counting.
""",
)

resume = _command(
    Action("resume", "resumed", WorkflowEngine.resume_execution, (ExecutionStatus.PAUSED,), ControlAction.RESUME),
    """Let paused executions and their children go on.

    A delay that is not over waits on.
""",
)

retry = _command(
    Action("retry", "retried", WorkflowEngine.retry_execution, (ExecutionStatus.FAILED,), ControlAction.RETRY),
    """Run failed executions on from where they failed.

    Failed nodes and failed children run again; what completed before is kept. What came after a failure that the
    workflow had handled is done anew. Filters leave acknowledged ones alone, unless --acknowledged asks for them.
""",
    offers_acknowledged=True,
)

acknowledge = _command(
    Action(
        "acknowledge",
        "acknowledged",
        WorkflowEngine.acknowledge_execution,
        (ExecutionStatus.FAILED,),
        ControlAction.ACKNOWLEDGE,
    ),
    """Take failed executions off the list of dead letters.

    They stay as they are; a retry that fails again brings one back. Their children are not touched: `spanloom
    dead-letters` does not list these anyway.
""",
)
