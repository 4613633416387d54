"""`spanloom replay`: new executions with the data of earlier ones, from their beginning or from a node on."""

from __future__ import annotations

from typing import Any, Literal

import click

from spanloom.cli.exit_codes import DONE, FAILED, report
from spanloom.cli.options.confirmation import check_confirmation, confirm, confirmation_options
from spanloom.cli.options.filters import Selection, selection_options
from spanloom.cli.options.parameters import find_execution, json_option
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import print_json, print_line
from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import UserError
from spanloom.engine.escaping import shown
from spanloom.engine.operations.bulk import ENDED, find
from spanloom.engine.store.models import ExecutionFilter

__all__ = ["replay"]


@click.command()
@click.argument("execution", required=False)
@click.option(
    "--version",
    type=lambda text: _version(text),
    metavar="N|latest",
    help="In which version of the workflow.  [default: its own]",
)
@click.option(
    "--from",
    "from_nodes",
    multiple=True,
    metavar="NODE",
    help="Run this node and what follows from it; take over the other results.  [repeatable]",
)
@click.option("--key", metavar="TEXT", help="Idempotency key: the same key starts one execution only.")
@selection_options(*ENDED)
@click.option("--all", "everything", is_flag=True, help="All of them, if nothing else says which.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many.")
@confirmation_options
@target_options(redis=True)
@json_option
def replay(
    target: Target,
    execution: str | None,
    version: int | Literal["latest"] | None,
    from_nodes: tuple[str, ...],
    key: str | None,
    selection: Selection,
    everything: bool,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Start a new execution with the data of an earlier one.

    EXECUTION is the id of the earlier one, or the first or last six or more characters of a recent one's; it stays as
    it is. The new one has its input, priority, deadline and metadata. Without --from all nodes run; with --from, these
    nodes and their descendants run, and the others if they had not ended.

    Prints the new id, or with --json the new execution, and does not wait; `spanloom show` shows its state.

    Without EXECUTION, filters or --all select executions that have ended and have no parent, the oldest first. A
    terminal shows their number and prompts; in a pipe --yes is needed. Each has a line: its id and, by a tab, the new
    one (with --dry-run none); with --json {"execution_id": …, "started": …}. Exit code 1: one was refused.

    \b
      spanloom replay 3f9a21c4 --version latest --from charge
      spanloom replay --workflow orders --status failed --since 2h --version latest
    """
    how: dict[str, Any] = {"version": version or "same", "from_node": from_nodes or None}
    in_bulk = bool(selection or everything)
    if execution is None:
        if not in_bulk:
            raise click.UsageError(
                "nothing says what to replay; give EXECUTION, filters such as --workflow ID, or --all"
            )
        if key is not None:
            raise click.UsageError("--key is for the replay of one execution; name it")
        check_confirmation("replay", yes=yes, dry_run=dry_run)
        with target.operator() as engine:
            wanted = selection.filter(engine.store, root=True)
            return _replay_found(engine, wanted, how, limit=limit, dry_run=dry_run, yes=yes, as_json=as_json)
    if in_bulk or limit is not None or dry_run:
        raise click.UsageError("give EXECUTION, or filters with their --limit and --dry-run; not both")
    with target.operator() as engine:
        source = find_execution(engine.store, execution)
        execution_id = engine.replay_execution(source.id, idempotency_key=key, **how)
        started = find_execution(engine.store, execution_id) if as_json else None
    if started is not None:
        print_json(started)
    else:
        print_line(execution_id)
    return DONE


def _replay_found(
    engine: WorkflowEngine,
    wanted: ExecutionFilter,
    how: dict[str, Any],
    *,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    ids = find(engine.store, wanted, ENDED, limit)
    if ids and not dry_run and not confirm(f"{len(ids):,} found; replay?", yes=yes):
        return FAILED
    code = DONE
    for execution_id in ids:
        started: str | None = None
        try:
            started = None if dry_run else engine.replay_execution(execution_id, **how)
        except UserError as error:
            code = report(error, str(error), FAILED)
            continue
        if as_json:
            print_json({"execution_id": execution_id, "started": started})
        else:
            print_line("\t".join(filter(None, (execution_id, started))))
    return code


def _version(text: str) -> int | Literal["latest"]:
    if text == "latest":
        return "latest"
    if not text.isdecimal() or len(text) > 10 or int(text) < 1:
        raise click.BadParameter(f"{shown(text)} is no version; write its number, or latest")
    return int(text)
