"""`spanloom fail` and `spanloom node`: manual ends of an execution, or of one of its nodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import click

from spanloom.cli.commands.control import Action, control_named, revision_option
from spanloom.cli.exit_codes import DONE, FAILED, report
from spanloom.cli.options.parameters import find_execution, json_option, json_value, node_and_item
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import in_terminal, print_json, print_line, print_text
from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import InvalidTransition
from spanloom.engine.limits import MAX_SHOWN_BYTES
from spanloom.engine.store.states import ExecutionStatus, NodeStatus

__all__ = ["fail", "node"]


@click.command()
@click.argument("execution_id", nargs=-1, required=True)
@click.option("--error", required=True, metavar="TEXT", help="Why; it becomes the execution's error.")
@revision_option
@target_options(redis=True)
@json_option
def fail(
    target: Target, execution_id: tuple[str, ...], error: str, expected_revision: int | None, as_json: bool
) -> int:
    """Fail running or paused executions by hand.

    As after a deadline, running nodes may end, ready nodes are held for a retry, and children are left alone.
    `spanloom cancel` ends all of them for good.

    EXECUTION_ID is an id, or the first or last six or more characters of a recent one's; several are done one after the
    other. In a pipe each is a line of tab-separated id, `failed`, `done` or `already`, and revision. With --json each
    line is one JSON object. Exit code 1: at least one was refused, with the reason on standard error.
    """
    transition = partial(WorkflowEngine.set_execution_status, status=ExecutionStatus.FAILED, error=error)
    action = Action("fail", "failed", transition)
    return control_named(target, action, execution_id, expected_revision=expected_revision, as_json=as_json)


@click.group(invoke_without_command=True)
@click.pass_context
def node(context: click.Context) -> None:
    """End a node by hand, in place of a worker.

    Its successors run then, and the execution may end. The node may be queued, held or waiting, or have been lost with
    its worker. A node is refused if a live worker runs it, if it was not reached yet, or if it has ended.

    \b
      spanloom node complete 3f9a21c4 approve --data '{"by": "ada"}' --next ship
      spanloom node fail 3f9a21c4 approve --error 'no answer'
    """
    if context.invoked_subcommand is None:
        print_text(context.get_help())


_OUTPUT = """

    EXECUTION is its id, or the first or last six or more characters of a recent one's. In a pipe a line of
    tab-separated id, node, item, its status, the execution's status is printed; with --json the node, with the fields
    of its model. Exit code 1: it was refused.
"""


def _command(function: Callable[..., int], name: str, summary: str, *options: Callable[[Any], Any]) -> None:
    """Add a command for one node, given by its execution and its id."""
    for decorate in (
        json_option,
        target_options(redis=True),
        *options,
        click.argument("node", type=node_and_item, metavar="NODE[:ITEM]"),
        click.argument("execution"),
    ):
        function = decorate(function)
    node.command(name, help=summary + _OUTPUT)(function)


def _complete(
    target: Target, execution: str, node: tuple[str, int], data: Any, next_nodes: tuple[str, ...], as_json: bool
) -> int:
    return _end(
        target, execution, node, NodeStatus.COMPLETED, as_json=as_json, data=data, next_nodes=next_nodes or None
    )


def _fail(target: Target, execution: str, node: tuple[str, int], error: str, as_json: bool) -> int:
    return _end(target, execution, node, NodeStatus.FAILED, as_json=as_json, error=error)


def _skip(target: Target, execution: str, node: tuple[str, int], as_json: bool) -> int:
    return _end(target, execution, node, NodeStatus.SKIPPED, as_json=as_json)


_command(
    _complete,
    "complete",
    "Complete an open node.",
    click.option("--next", "next_nodes", multiple=True, metavar="NODE", help="Lead to this one only.  [repeatable]"),
    click.option("--data", type=json_value, metavar="JSON|@FILE|-", help="With this data.  [default: null]"),
)
_command(
    _fail,
    "fail",
    "Fail an open node, without a retry.",
    click.option("--error", required=True, metavar="TEXT", help="Why; it becomes the node's error."),
)
_command(_skip, "skip", "Skip an open node, and what only it leads to.")


def _end(
    target: Target, execution: str, node: tuple[str, int], status: NodeStatus, *, as_json: bool, **result: Any
) -> int:
    node_id, item = node
    with target.operator() as engine:
        found = find_execution(engine.store, execution)
        try:
            engine.update_node_result(found.id, node_id, status, item=item, **result)
        except InvalidTransition as refused:
            return report(refused, str(refused), FAILED)
        after = engine.store.get_execution(found.id, data_limit=0) or found
        data_limit = MAX_SHOWN_BYTES if as_json else 0
        runs = engine.store.get_node_results(found.id, [node_id], data_limit=data_limit)
        (run,) = (run for run in runs if run.item == item)
    if as_json:
        print_json(run)
    elif in_terminal():
        name = f"{node_id}[{item}]" if item else node_id
        print_line(
            f"{found.workflow_id} v{found.version} {found.id}  {name} {run.status}; the execution is {after.status}"
        )
    else:
        print_line(f"{found.id}\t{node_id}\t{item}\t{run.status}\t{after.status}")
    return DONE
