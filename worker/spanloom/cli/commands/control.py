"""`spanloom cancel`, `pause`, `resume`, `retry`, `acknowledge`: what operators do to executions, by id or by filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from spanloom.cli.commands.actions import Action, control, tell
from spanloom.cli.commands.bulk import control_found
from spanloom.cli.exit_codes import DONE
from spanloom.cli.options.confirmation import check_confirmation, confirmation_options
from spanloom.cli.options.filters import Selection, selection_options
from spanloom.cli.options.parameters import json_option
from spanloom.cli.options.target import Target, target_options
from spanloom.engine import WorkflowEngine
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["acknowledge", "cancel", "control_named", "pause", "resume", "retry", "revision_option"]

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


def control_named(
    target: Target, action: Action, given: Sequence[str], *, expected_revision: int | None, as_json: bool
) -> int:
    """Do it to each execution that is named, whatever becomes of the others, and return the exit code.

    Raises UsageError if one revision is expected of several.
    """
    if expected_revision is not None and len(given) != 1:
        raise click.UsageError(_OF_ONE)
    code = DONE
    with target.operator() as engine:
        for one in given:
            code = max(code, tell(control(engine, action, one, expected_revision), action, as_json=as_json))
    return code


def _command(action: Action, help_text: str, *, offers_acknowledged: bool = False) -> click.Command:
    """Make a command of the one shape that all of them have."""
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
            return control_found(engine, action, wanted, limit=limit, dry_run=dry_run, yes=yes, as_json=as_json)

    if offers_acknowledged:
        command = click.option("--acknowledged", is_flag=True, help="Those that were acknowledged.")(command)
    statuses = " or ".join(f"`{one}`" for one in action.statuses)
    return click.command(name=action.verb, help=help_text + _EXECUTIONS.format(statuses=statuses))(command)


cancel = _command(
    Action(
        "cancel",
        "cancelled",
        WorkflowEngine.cancel_execution,
        (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED),
    ),
    """Cancel executions and their children.

    Nothing of them starts any more; what is running is told, and not recorded as completed.
""",
)

pause = _command(
    Action("pause", "paused", WorkflowEngine.pause_execution, (ExecutionStatus.RUNNING,)),
    """Pause executions and their children.

    What is running may end; nothing new starts until they are resumed. A deadline goes on counting.
""",
)

resume = _command(
    Action("resume", "resumed", WorkflowEngine.resume_execution, (ExecutionStatus.PAUSED,)),
    """Let paused executions and their children go on.

    A delay that is not over waits on.
""",
)

retry = _command(
    Action("retry", "retried", WorkflowEngine.retry_execution, (ExecutionStatus.FAILED,)),
    """Run failed executions on from where they failed.

    Failed nodes and failed children run again; what completed before is kept. What came after a failure that the
    workflow had handled is done anew. Filters leave acknowledged ones alone, unless --acknowledged asks for them.
""",
    offers_acknowledged=True,
)

acknowledge = _command(
    Action("acknowledge", "acknowledged", WorkflowEngine.acknowledge_execution, (ExecutionStatus.FAILED,)),
    """Let failed executions rest.

    They stay as they are, and `spanloom dead-letters` lists them no more; a retry brings one back. Their children
    are not touched: `spanloom dead-letters` does not list these anyway.
""",
)
