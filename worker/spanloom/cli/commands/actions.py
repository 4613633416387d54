"""What a control command does to one execution, and how it tells of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import click

from spanloom.cli.exit_codes import DONE, FAILED, report
from spanloom.cli.options.parameters import find_execution
from spanloom.cli.output import in_terminal, print_json
from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import UserError
from spanloom.engine.store.models import Execution
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["Action", "ControlledExecution", "control", "tell"]


class Action(NamedTuple):
    """One transition: its verb, what is said when it was done, and how the engine does it."""

    verb: str
    done: str
    transition: Callable[..., bool]
    statuses: tuple[ExecutionStatus, ...] = ()  # in which a filter finds executions for it


class ControlledExecution(NamedTuple):
    """What came of one request; `done` False without an error: it was so before, or came with its parent."""

    given: str
    execution: Execution | None = None
    done: bool = False
    error: UserError | None = None


def control(
    engine: WorkflowEngine, action: Action, given: str, expected_revision: int | None = None
) -> ControlledExecution:
    """Do it to the execution that an id, or a part of one, names. What is refused is in the answer."""
    execution = None
    try:
        execution = find_execution(engine.store, given)
        done = action.transition(engine, execution.id, expected_revision=expected_revision)
    except UserError as error:
        return ControlledExecution(given, execution, error=error)
    return ControlledExecution(given, engine.store.get_execution(execution.id) or execution, done)


def tell(controlled: ControlledExecution, action: Action, *, as_json: bool, would: bool = False) -> int:
    """Print one line, or why it was refused, and return the exit code. With `would` nothing has been done yet."""
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
            told = f"would be {action.done}" if would else action.done if done else f"{action.done} already"
            click.echo(f"{execution.workflow_id} v{execution.version} {execution.id}  {told}")
        else:
            how = "would" if would else "done" if done else "already"
            click.echo(f"{execution.id}\t{action.done}\t{how}\t{execution.revision}")
    return DONE if error is None else report(error, str(error), FAILED)
