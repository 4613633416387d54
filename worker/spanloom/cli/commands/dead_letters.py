"""`spanloom dead-letters`: failed executions that were neither acknowledged nor retried."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from spanloom.cli.options.filters import Selection, selection_options
from spanloom.cli.options.parameters import json_option, page_options
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import in_terminal, print_json, print_note, show
from spanloom.cli.rendering import dead_lines, dead_table
from spanloom.engine.limits import MAX_SHOWN_BYTES
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["dead_letters"]


@click.command()
@selection_options()
@click.option("--acknowledged", is_flag=True, help="Those that were acknowledged instead.")
@page_options(20)
@target_options()
@json_option
def dead_letters(
    target: Target, selection: Selection, acknowledged: bool, limit: int, cursor: str | None, as_json: bool
) -> None:
    """List failed executions that wait for someone, newest first.

    Only the root of each family is listed: its children are shown below it by `spanloom show`, and retried with it.

    \b
    Ways to deal with one:
      spanloom show ID          the states of its nodes
      spanloom logs ID          their log lines; show --attempts NODE has the tracebacks
      spanloom retry ID         continue it from the failed nodes, once the cause is fixed
      spanloom replay ID        start anew with its data, in a fixed version: --version latest --from NODE
      spanloom acknowledge ID   take it off this list

    retry and acknowledge take the same filters as this, to deal with many at once.

    In a pipe each is a line of tab-separated id, workflow, version, failed, node, type of error, message, metadata,
    acknowledged. With --json it is one document, {"items": […], "next_cursor": …}; --cursor takes the latter.
    """
    with target.store() as store:
        root = None if selection.parent else True  # with --parent, children are wanted
        wanted = selection.filter(store, status=ExecutionStatus.FAILED, root=root, acknowledged=acknowledged)
        page = store.list_executions(wanted, limit=limit, cursor=cursor, data_limit=MAX_SHOWN_BYTES if as_json else 0)
        url = store.url
    if as_json:
        print_json(page)
        return
    if in_terminal() and not page.items:
        print_note(f"no {'acknowledged' if acknowledged else 'dead'} executions in {url}")
        return
    show(lambda screen: dead_table(page.items, datetime.now(UTC)), lambda: dead_lines(page.items))
    if in_terminal() and page.next_cursor:
        print_note(f"there are more: --cursor {page.next_cursor}")
