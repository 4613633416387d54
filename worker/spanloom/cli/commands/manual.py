"""`spanloom fail` and `spanloom end`: ending an execution, or one of its nodes, by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from spanloom.cli.commands.control import Action, control_named, revision_option
from spanloom.cli.exit_codes import DONE, FAILED, report
from spanloom.cli.options.parameters import find_execution, json_option, json_value, node_and_item
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import in_terminal, print_json
from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import InvalidTransition
from spanloom.engine.store.states import ExecutionStatus, NodeStatus

__all__ = ["end", "fail"]


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

    As a deadline would: what is running may end, what is ready is held for a retry, and their children are left alone.
    `spanloom cancel` ends all of it for good.

    EXECUTION_ID is an id, or the first or last six or more characters of a recent one's; several are done one after the
    other. In a pipe each is a line of tab-separated id, `failed`, `done` or `already`, and revision. With --json each
    line is one JSON object. Exit code 1: at least one was refused, and standard error says why.
    """
    transition = partial(WorkflowEngine.set_execution_status, status=ExecutionStatus.FAILED, error=error)
    action = Action("fail", "failed", transition)
    return control_named(target, action, execution_id, expected_revision=expected_revision, as_json=as_json)


@click.command()
@click.argument("execution")
@click.argument("node", type=node_and_item, metavar="NODE[:ITEM]")
@click.option("--data", type=json_value, metavar="JSON|@FILE|-", help="Complete it with this data.  [default: null]")
@click.option("--error", metavar="TEXT", help="Fail it, for this reason; without a retry.")
@click.option("--skip", is_flag=True, help="Skip it, and what only it leads to.")
@click.option("--next", "next_nodes", multiple=True, metavar="NODE", help="Go on to this successor only.  [repeatable]")
@target_options(redis=True)
@json_option
def end(
    target: Target,
    execution: str,
    node: tuple[str, int],
    data: Any,
    error: str | None,
    skip: bool,
    next_nodes: tuple[str, ...],
    as_json: bool,
) -> int:
    """End an open node by hand.

    In place of a worker: NODE is completed with --data, failed with --error, or skipped, and what follows from that
    follows: its successors run, the execution may end. It may be queued, held or waiting, or have been lost with its
    worker; a node that a live worker runs is refused, as is one whose turn has not come or that has ended.

    EXECUTION is its id, or the first or last six or more characters of a recent one's. In a pipe a line of
    tab-separated id, node, item, its status, the execution's status is printed; with --json the node, with the fields
    of its model. Exit code 1: it was refused.

    \b
      spanloom end 3f9a21c4 approve --data '{"by": "ada"}' --next ship
    """
    given = click.get_current_context().get_parameter_source("data")
    completes = error is None and not skip
    if (error is not None and skip) or (given is click.core.ParameterSource.COMMANDLINE and not completes):
        raise click.UsageError(
            "a node is completed with --data, failed with --error or skipped with --skip; give one of them"
        )
    if next_nodes and not completes:
        raise click.UsageError("--next says where a node that completed leads; leave it out with --error and --skip")
    node_id, item = node
    status = NodeStatus.COMPLETED if completes else NodeStatus.SKIPPED if skip else NodeStatus.FAILED
    with target.operator() as engine:
        found = find_execution(engine.store, execution)
        try:
            engine.update_node_result(
                found.id, node_id, status, item=item, data=data, error=error, next_nodes=next_nodes or None
            )
        except InvalidTransition as refused:
            return report(refused, str(refused), FAILED)
        after = engine.store.get_execution(found.id) or found
        (run,) = (one for one in engine.store.get_node_results(found.id, [node_id]) if one.item == item)
    if as_json:
        print_json(run)
    elif in_terminal():
        name = f"{node_id}[{item}]" if item else node_id
        click.echo(
            f"{found.workflow_id} v{found.version} {found.id}  {name} {run.status}; the execution is {after.status}"
        )
    else:
        click.echo(f"{found.id}\t{node_id}\t{item}\t{run.status}\t{after.status}")
    return DONE
