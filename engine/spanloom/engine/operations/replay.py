"""Replays: new executions with the data of earlier ones, from their beginning or from a node on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from graphlib import TopologicalSorter
from typing import Any, Literal

from spanloom.engine.arguments import Version
from spanloom.engine.errors import UnknownExecution, UnknownWorkflow, UserError
from spanloom.engine.operations.bulk import ENDED, BulkResult, control_each, find, one_by_one
from spanloom.engine.operations.start import ExecutionStarter
from spanloom.engine.operations.start_options import start_fields
from spanloom.engine.store.models import Execution, ExecutionFilter, NodeRun
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Replay
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.wording import did_you_mean, quoted_list
from spanloom.engine.workflow.cache import DefinitionCache
from spanloom.engine.workflow.compiled import CompiledWorkflow

__all__ = ["FromNode", "ReplayVersion", "Replays"]

ReplayVersion = Version | Literal["same", "latest"]
FromNode = str | Sequence[str] | None  #: the node, or the nodes, from which on a replay runs anew


class Replays:
    """The replays of an engine, of one execution or of all that match a filter."""

    def __init__(
        self, opened: Callable[[], None], store: ExecutionStore, definitions: DefinitionCache, starter: ExecutionStarter
    ) -> None:
        """Take `opened`, a function that connects if the engine is not connected yet."""
        self._opened = opened
        self._store = store
        self._definitions = definitions
        self._starter = starter

    def replay(
        self,
        execution_id: str,
        *,
        version: ReplayVersion = "same",
        from_node: FromNode = None,
        **options: Any,
    ) -> str:
        """Start a new execution with the initial data of an earlier one, and return its id."""
        self._opened()
        source = self._store.get_execution(execution_id, data_limit=0)
        if source is None:
            raise UnknownExecution(execution_id)
        options.setdefault("priority", source.priority.value)
        options.setdefault("metadata", source.metadata)
        options.setdefault("deadline", source.deadline_seconds)
        options["version"] = self._version_of(source, version)
        replay = Replay(source.id)
        if from_node is not None:
            nodes = [from_node] if isinstance(from_node, str) else list(from_node)
            plan = self._definitions.get(source.workflow_id, options["version"])
            replay = _replay_from(plan, source.id, self._store.get_node_results(source.id, data_limit=0), nodes)
        request = self._starter.request(source.workflow_id, source.input, start_fields(**options))
        return self._starter.start([dataclasses.replace(request, replay=replay)])[0]

    def replay_each(
        self,
        wanted: ExecutionFilter,
        *,
        version: ReplayVersion = "same",
        from_node: FromNode = None,
        limit: int | None = None,
    ) -> BulkResult:
        """Replay the oldest `limit` that match a filter, have ended and have no parent."""
        self._opened()
        started: dict[str, str] = {}

        def replay(execution_id: str) -> bool:
            started[execution_id] = self.replay(execution_id, version=version, from_node=from_node)
            return True

        roots = wanted.model_copy(update={"root": True})
        bulk = control_each(self._store, find(self._store, roots, ENDED, limit), one_by_one(replay))
        bulk.started.update(started)
        return bulk

    def _version_of(self, source: Execution, version: int | str) -> Any:
        if version == "same":
            return source.version
        if version != "latest":
            return version
        latest = self._store.get_workflow_version(source.workflow_id)
        if latest is None:
            raise UnknownWorkflow(source.workflow_id)
        return latest.version


def _replay_from(plan: CompiledWorkflow, source: str, runs: Iterable[NodeRun], nodes: Sequence[str]) -> Replay:
    """Plan a replay of `source`, with node runs `runs`, that runs `nodes` and all their descendants anew.

    The result of another node is taken over if there is one, and the results of all nodes before it are taken over.
    Nodes that had not ended, or that are new in this version, run. Raises UserError for a node that does not exist, or
    that no taken edge leads to.
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
    """Return whether the run's end arrived at its successors; an unhandled failure, which has no data, does not."""
    if run.status is NodeStatus.FAILED:
        return run.data is not None or run.data_size is not None
    return run.status in (NodeStatus.COMPLETED, NodeStatus.SKIPPED)


def _leads(plan: CompiledWorkflow, source: str, run: NodeRun | None, target: str) -> bool:
    if run is None or run.status is NodeStatus.SKIPPED:
        return False
    if run.taken is not None:
        return target in run.taken
    (on,) = (route.on for route in plan.routes[source] if route.target == target)
    return on == "always" or on == ("success" if run.status is NodeStatus.COMPLETED else "failure")
