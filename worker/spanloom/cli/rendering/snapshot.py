"""The snapshot of one execution to draw: its definition, its node runs and its children, as read at one time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from spanloom.engine.errors import UnknownWorkflow
from spanloom.engine.store.models import Execution, NodeRun
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.workflow.definitions import Workflow

__all__ = ["CHILDREN", "LEVELS", "Snapshot", "read_snapshot"]

CHILDREN = 100  #: the most descendants of which nodes are read
LEVELS = 10  #: how many levels of descendants are read; engines make no more by default
_EVENT_PAGES = 20  # in how many pages of events the number of a node's items is searched


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One execution, read at `taken_at`; `children` are keyed by the (node id, item) that started them.

    `workflow` is None if the nodes of a child were not read. `totals` are the numbers of mapped nodes' items.
    """

    execution: Execution
    workflow: Workflow | None
    runs: tuple[NodeRun, ...]
    taken_at: datetime
    children: Mapping[tuple[str, int], tuple[Snapshot, ...]] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)
    parent: Execution | None = None

    def document(self) -> dict[str, Any]:
        """Return the snapshot for JSON: `execution`, `nodes` and `children`, of read models.

        `nodes` and `children` are None where they were not read.
        """
        known = self.workflow is not None
        return {
            "execution": self.execution,
            "nodes": list(self.runs) if known else None,
            "children": [child.document() for some in self.children.values() for child in some] if known else None,
        }


def read_snapshot(store: ExecutionStore, execution: Execution, *, data_limit: int = 0) -> Snapshot:
    """Read an execution with its parent and its descendants.

    Nodes are read for the first CHILDREN descendants, down to LEVELS, but not for children of a mapped node's items:
    there may be ten thousand. The parts are read one after the other, so those of a running execution may differ by
    moments. Of the payloads those are read that take no more bytes than `data_limit` together.
    Raises UnknownWorkflow if a definition is missing, and StoreUnavailable.
    """
    snapshot = _Reader(store, data_limit).read(execution, LEVELS)
    parent = store.get_parent_execution(execution.id) if execution.parent_execution_id else None
    return Snapshot(
        execution, snapshot.workflow, snapshot.runs, snapshot.taken_at, snapshot.children, snapshot.totals, parent
    )


class _Reader:
    """A reader of a family, from its root down, within the bounds."""

    def __init__(self, store: ExecutionStore, data_limit: int) -> None:
        self._store = store
        self._bytes_left = data_limit
        self._left = CHILDREN

    def read(self, execution: Execution, levels: int) -> Snapshot:
        workflow = self._store.get_workflow(execution.workflow_id, execution.version)
        if workflow is None:
            raise UnknownWorkflow(execution.workflow_id, execution.version)
        runs = tuple(self._store.get_node_results(execution.id, data_limit=self._bytes_left))
        self._bytes_left -= sum(run.data_size or 0 for run in runs if run.data is not None)
        children: dict[tuple[str, int], tuple[Snapshot, ...]] = {}
        found = self._store.get_child_executions(execution.id, data_limit=self._bytes_left)
        self._bytes_left -= sum(child.input_size or 0 for child in found if child.input is not None)
        for child in found:
            key = (child.parent_node_id or "", child.parent_item or 0)
            children[key] = (*children.get(key, ()), self._child(child, levels - 1))
        totals = _totals(self._store, execution.id, runs)
        return Snapshot(execution, workflow, runs, datetime.now(UTC), children, totals)

    def _child(self, child: Execution, levels: int) -> Snapshot:
        if child.parent_item or levels < 0 or self._left == 0:
            return Snapshot(child, None, (), datetime.now(UTC))
        self._left -= 1
        return self.read(child, levels)


def _totals(store: ExecutionStore, execution_id: str, runs: tuple[NodeRun, ...]) -> dict[str, int]:
    """Return the numbers of mapped nodes' items: all runs of a completed node's items exist, others are in an event."""
    found: dict[str, int] = {}
    for run in runs:
        if run.item:
            found[run.node_id] = found.get(run.node_id, 0) + 1
    completed = {run.node_id for run in runs if not run.item and run.status is NodeStatus.COMPLETED}
    totals = {node_id: number for node_id, number in found.items() if node_id in completed}
    unknown = set(found) - completed
    after = None
    for _ in range(_EVENT_PAGES):
        if not unknown or not (events := store.get_events(execution_id, after=after)):
            break
        for event in events:
            if event.kind == "node.waiting" and event.node_id in unknown and "items" in event.data and not event.item:
                totals[event.node_id] = event.data["items"]
                unknown.discard(event.node_id)
        after = events[-1].cursor
    return totals
