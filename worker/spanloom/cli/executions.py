"""`spanloom list` and `spanloom show`: which executions there are, and what became of one."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from spanloom.cli.output import in_terminal, print_json
from spanloom.cli.output import show as show_output
from spanloom.cli.parameters import find_execution, json_option, moment, pair
from spanloom.cli.rendering import (
    execution_lines,
    execution_row_lines,
    execution_tree,
    executions_table,
    read_snapshot,
)
from spanloom.cli.target import Target, target_options
from spanloom.engine.states import ExecutionStatus
from spanloom.engine.views import ExecutionFilter

__all__ = ["list_executions", "show"]


@click.command(name="list")
@click.option("--workflow", metavar="ID", help="Of this workflow only.")
@click.option("--status", type=click.Choice([one.value for one in ExecutionStatus]), help="In this state only.")
@click.option("--metadata", type=pair, multiple=True, metavar="KEY=VALUE", help="With this metadata.  [repeatable]")
@click.option("--parent", metavar="ID", help="Children of this execution only.")
@click.option("--since", type=moment, metavar="TIME", help="Created since then: 30m, 2h, 1d, or an ISO time.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, metavar="N", help="At most so many."
)
@click.option("--cursor", metavar="CURSOR", help="Go on where an earlier page ended.")
@target_options()
@json_option
def list_executions(
    target: Target,
    workflow: str | None,
    status: str | None,
    metadata: tuple[tuple[str, str], ...],
    parent: str | None,
    since: datetime | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> None:
    """List executions, newest first.

    In a pipe each is a line of tab-separated id, workflow, version, status, created, started, ended, parent, metadata.
    With --json it is one document, {"items": […], "next_cursor": …}; --cursor takes the latter.

    \b
      spanloom list --workflow orders --status failed --since 2h
    """
    with target.store() as store:
        wanted = ExecutionFilter(
            workflow_id=workflow,
            status=ExecutionStatus(status) if status else None,
            parent_execution_id=find_execution(store, parent).id if parent else None,
            created_after=since,
            metadata=dict(metadata),
        )
        page = store.list_executions(wanted, limit=limit, cursor=cursor)
        url = store.url
    if as_json:
        print_json(page)
        return
    if in_terminal() and not page.items:
        click.secho(f"no such executions in {url}", fg="bright_black")
        return
    show_output(
        lambda screen: executions_table(page.items, datetime.now(UTC)),
        lambda: execution_row_lines(page.items),
    )
    if in_terminal() and page.next_cursor:
        click.secho(f"there are more: --cursor {page.next_cursor}", fg="bright_black")


@click.command()
@click.argument("execution")
@target_options()
@json_option
def show(target: Target, execution: str, as_json: bool) -> None:
    """Show one execution and what became of its nodes.

    EXECUTION is its id, or the first or last six or more characters of a recent one's. Sequences go straight down,
    branches are indented, a join stands where its branches came from; in a terminal, uneventful branches of a
    wide fan-out share a line. Child executions hang below the node that started them.

    In a pipe: the execution's fields as name and value, an empty line, then a line a node: indented name, and by tabs
    status, attempt, seconds, started, worker, error. With --json: {"execution": …, "nodes": […], "children": […]}.
    """
    with target.store() as store:
        snapshot = read_snapshot(store, find_execution(store, execution))
    if as_json:
        print_json(snapshot.document())
        return
    show_output(lambda screen: execution_tree(snapshot), lambda: execution_lines(snapshot))
