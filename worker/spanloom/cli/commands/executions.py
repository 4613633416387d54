"""`spanloom list` and `spanloom show`: a list of executions, and the state of one."""

from __future__ import annotations

import difflib
from datetime import UTC, datetime

import click

from spanloom.cli.options.filters import Selection, selection_options
from spanloom.cli.options.parameters import find_execution, json_option, node_and_item, page_options
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import in_terminal, note_write_problem, print_json, print_note
from spanloom.cli.output import show as show_output
from spanloom.cli.rendering import (
    Items,
    attempt_lines,
    attempts_text,
    execution_lines,
    execution_row_lines,
    execution_tree,
    executions_table,
    items_lines,
    items_table,
    read_snapshot,
)
from spanloom.engine.errors import UnknownWorkflow, UserError
from spanloom.engine.limits import MAX_SHOWN_BYTES
from spanloom.engine.store.models import Execution
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import ExecutionStatus
from spanloom.engine.workflow.definitions import Node

__all__ = ["list_executions", "show"]


@click.command(name="list")
@selection_options(*ExecutionStatus)
@click.option("--roots", is_flag=True, help="Without those that another one started.")
@page_options(20)
@target_options()
@json_option
def list_executions(
    target: Target,
    selection: Selection,
    roots: bool,
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
        wanted = selection.filter(store, root=roots or None)
        page = store.list_executions(wanted, limit=limit, cursor=cursor, data_limit=MAX_SHOWN_BYTES if as_json else 0)
        url = store.url
    if as_json:
        print_json(page)
        return
    if in_terminal() and not page.items:
        print_note(f"no such executions in {url}")
        return
    show_output(
        lambda screen: executions_table(page.items, datetime.now(UTC)),
        lambda: execution_row_lines(page.items),
    )
    if in_terminal() and page.next_cursor:
        print_note(f"there are more: --cursor {page.next_cursor}")


@click.command()
@click.argument("execution")
@click.option("--items", metavar="NODE", help="List the items of this mapped node instead.")
@click.option(
    "--attempts", type=node_and_item, metavar="NODE[:ITEM]", help="Tell every attempt at this node run instead."
)
@target_options()
@json_option
def show(target: Target, execution: str, items: str | None, attempts: tuple[str, int] | None, as_json: bool) -> None:
    """Show one execution and what became of its nodes.

    EXECUTION is its id, or the first or last six or more characters of a recent one's. Sequences go straight down,
    branches are indented, a join stands where its branches came from; in a terminal, uneventful branches of a
    wide fan-out share a line. Child executions hang below the node that started them; a mapped node has one line, which
    counts its items.

    In a pipe: the execution's fields as name and value, an empty line, then a line a node: indented name, and by tabs
    status, attempt, seconds, started, worker, error, notes. With --json: {"execution": …, "nodes": […],
    "children": […]}; of the children of items, and of those far below, nodes and children are null.

    With --items a line in a pipe is item, status, attempt, seconds, started, worker, error, notes; with --attempts it
    is attempt, how it ended, seconds, started, ended, worker, error, traceback.
    """
    if items is not None and attempts is not None:
        raise UserError("give either --items or --attempts")
    with target.store() as store:
        data_limit = MAX_SHOWN_BYTES if as_json else 0
        found = find_execution(store, execution, data_limit=data_limit)
        if items is not None:
            _show_items(store, found, items, as_json=as_json)
        elif attempts is not None:
            _show_attempts(store, found, *attempts, as_json=as_json)
        else:
            snapshot = read_snapshot(store, found, data_limit=data_limit)
            if as_json:
                print_json(snapshot.document())
            else:
                show_output(lambda screen: execution_tree(snapshot), lambda: execution_lines(snapshot))
        if not found.status.ended:
            note_write_problem(store)


def _show_items(store: ExecutionStore, execution: Execution, node_id: str, *, as_json: bool) -> None:
    if _node(store, execution, node_id).map is None:
        raise UserError(
            f"node {node_id!r} of {execution.workflow_id!r} v{execution.version} is not mapped: it has no items"
        )
    data_limit = MAX_SHOWN_BYTES if as_json else 0
    runs = [run for run in store.get_node_results(execution.id, [node_id], data_limit=data_limit) if run.item]
    children: dict[int, list[Execution]] = {}
    for child in store.get_child_executions(execution.id, data_limit=data_limit):
        if child.parent_node_id == node_id and child.parent_item:
            children.setdefault(child.parent_item, []).append(child)
    items = Items(execution.id, node_id, runs, children)
    if as_json:
        print_json(items.document())
    else:
        show_output(lambda screen: items_table(items, datetime.now(UTC)), lambda: items_lines(items))


def _show_attempts(store: ExecutionStore, execution: Execution, node_id: str, item: int, *, as_json: bool) -> None:
    _node(store, execution, node_id)
    attempts = store.get_attempts(execution.id, node_id, item)
    if as_json:
        print_json({"execution_id": execution.id, "node_id": node_id, "item": item, "attempts": attempts})
    else:
        show_output(lambda screen: attempts_text(attempts, datetime.now(UTC)), lambda: attempt_lines(attempts))


def _node(store: ExecutionStore, execution: Execution, node_id: str) -> Node:
    workflow = store.get_workflow(execution.workflow_id, execution.version)
    if workflow is None:
        raise UnknownWorkflow(execution.workflow_id, execution.version)
    nodes = {node.id: node for node in workflow.nodes}
    if node_id not in nodes:
        close = difflib.get_close_matches(node_id, nodes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"`spanloom show {execution.id}` shows its nodes"
        raise UserError(f"workflow {workflow.id!r} v{execution.version} has no node {node_id!r}; {hint}")
    return nodes[node_id]
