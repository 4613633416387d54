"""A control command over all executions that a filter finds: how many, whether really, and what came of each."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

import click

from spanloom.cli.commands.actions import Action, ControlledExecution, tell
from spanloom.cli.exit_codes import DONE, FAILED
from spanloom.cli.options.confirmation import confirm
from spanloom.cli.output import in_terminal
from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import UserError
from spanloom.engine.operations.bulk import apply_to_each, find
from spanloom.engine.store.models import ExecutionFilter

__all__ = ["control_found"]


def control_found(
    engine: WorkflowEngine,
    action: Action,
    wanted: ExecutionFilter,
    *,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Do it to the oldest `limit` that are found, parents first, and return the exit code: 1 if one was refused.

    Each has its line, and in a terminal their number is told at the end. With `dry_run` nothing is done; without
    `yes` it is asked first.
    """
    ids = find(engine.store, wanted, action.statuses, limit)
    if not ids:
        if in_terminal() and not as_json:
            click.secho(f"no executions to {action.verb} in {engine.store.url}", fg="bright_black")
        return DONE
    if dry_run:
        return _tell_all(_found(engine, ids), action, as_json=as_json, would=True)
    noun, them = ("execution", "it") if len(ids) == 1 else ("executions", "them")
    if not confirm(f"{len(ids):,} {noun} found; {action.verb} {them}?", yes=yes):
        return FAILED
    return _tell_all(_controlled(engine, action, ids), action, as_json=as_json, would=False)


def _found(engine: WorkflowEngine, ids: Iterable[str]) -> Iterator[ControlledExecution]:
    for execution_id in ids:
        if (execution := engine.store.get_execution(execution_id)) is not None:
            yield ControlledExecution(execution_id, execution)


def _controlled(engine: WorkflowEngine, action: Action, ids: Iterable[str]) -> Iterator[ControlledExecution]:
    for execution_id, answer in apply_to_each(engine.store, ids, partial(action.transition, engine)):
        execution = engine.store.get_execution(execution_id)
        if isinstance(answer, UserError):
            yield ControlledExecution(execution_id, execution, error=answer)
        else:
            yield ControlledExecution(execution_id, execution, done=answer)


def _tell_all(answers: Iterable[ControlledExecution], action: Action, *, as_json: bool, would: bool) -> int:
    counts: Counter[str] = Counter()
    code = DONE
    try:
        for one in answers:
            if one.error is not None:
                counts["refused"] += 1
            elif would:
                counts[f"would be {action.done}"] += 1
            else:
                counts[action.done if one.done else f"{action.done} already"] += 1
            code = max(code, tell(one, action, as_json=as_json, would=would))
    finally:  # also of what was done before the store went away, or before Ctrl-C
        if sys.stderr.isatty():
            click.secho(", ".join(f"{count:,} {what}" for what, count in counts.items()), fg="bright_black", err=True)
    return code
