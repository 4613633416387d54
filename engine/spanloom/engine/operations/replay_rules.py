"""Replaying an execution from a node on: which results the new one takes over, and what runs anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter

from spanloom.engine.errors import UserError
from spanloom.engine.messages import did_you_mean, quoted_list
from spanloom.engine.store.models import NodeRun
from spanloom.engine.store.requests import Replay
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.workflow.compiled import CompiledWorkflow

__all__ = ["replay_from"]


def replay_from(plan: CompiledWorkflow, source: str, runs: Iterable[NodeRun], nodes: Sequence[str]) -> Replay:
    """Plan a replay of `source`, whose node runs are given, that runs `nodes` and all that follows from them anew.

    Any other node's result is taken over if there is one and those of all nodes before it are taken over as well; what
    had not ended, or is new in this version, runs. Raises UserError for a node that does not exist, or that nothing
    would lead to.
    """
    workflow = plan.workflow
    for node_id in nodes:
        if node_id not in plan.nodes:
            hint = did_you_mean(node_id, plan.nodes)
            raise UserError(f"workflow {workflow.id!r} has no node {node_id!r} to replay from{hint}")
    again = _downstream(plan, nodes)
    results = {run.node_id: run for run in runs if run.item == 0 and _has_arrived(run)}
    taken_over: dict[str, NodeRun | None] = {}  # None: skipped
    carried: list[str] = []
    skipped: list[str] = []
    for node_id in TopologicalSorter({node.id: node.parents for node in workflow.nodes}).static_order():
        parents = plan.nodes[node_id].parents
        if not all(parent in taken_over for parent in parents):
            continue
        led_to = not parents or any(_leads(plan, parent, taken_over[parent], node_id) for parent in parents)
        if node_id in again:
            if not led_to:
                raise UserError(
                    f"node {node_id!r} was not reached in execution {source}: none of {quoted_list(parents)} "
                    "led to it; replay from one of these, or from a node before them"
                )
        elif (run := results.get(node_id)) is not None:
            taken_over[node_id] = run
            carried.append(node_id)
        elif not led_to:
            taken_over[node_id] = None
            skipped.append(node_id)
    return Replay(source, carried, skipped)


def _downstream(plan: CompiledWorkflow, nodes: Iterable[str]) -> set[str]:
    found: set[str] = set()
    todo = list(nodes)
    while todo:
        if (node_id := todo.pop()) not in found:
            found.add(node_id)
            todo.extend(plan.successors(node_id))
    return found


def _has_arrived(run: NodeRun) -> bool:
    """Whether the run's end told its successors: a failure that nobody handled, which has no data, did not."""
    if run.status is NodeStatus.FAILED:
        return run.data is not None
    return run.status in (NodeStatus.COMPLETED, NodeStatus.SKIPPED)


def _leads(plan: CompiledWorkflow, source: str, run: NodeRun | None, target: str) -> bool:
    if run is None or run.status is NodeStatus.SKIPPED:
        return False
    if run.taken is not None:
        return target in run.taken
    (on,) = (route.on for route in plan.routes[source] if route.target == target)
    return on == "always" or on == ("success" if run.status is NodeStatus.COMPLETED else "failure")
