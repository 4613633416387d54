"""What is drawn of one execution: its definition, its node runs and its children, as read at one time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from spanloom.engine.definitions import Workflow
from spanloom.engine.errors import UnknownWorkflow
from spanloom.engine.store import ExecutionStore
from spanloom.engine.views import Execution, NodeRun

__all__ = ["Snapshot", "read_snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One execution, read at `taken_at`; `children` are keyed by the (node id, item) that started them."""

    execution: Execution
    workflow: Workflow
    runs: tuple[NodeRun, ...]
    taken_at: datetime
    children: Mapping[tuple[str, int], tuple[Snapshot, ...]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return it as JSON data: `execution`, `nodes` and `children`, each with the fields of its read model."""
        return {
            "execution": self.execution.model_dump(mode="json"),
            "nodes": [run.model_dump(mode="json") for run in self.runs],
            "children": [child.document() for children in self.children.values() for child in children],
        }


def read_snapshot(store: ExecutionStore, execution: Execution) -> Snapshot:
    """Read what belongs to an execution, with its children and theirs.

    The parts are read one after the other: of a running execution they may be of slightly different moments.
    Raises UnknownWorkflow if its definition is gone, and StoreUnavailable.
    """
    workflow = store.get_workflow(execution.workflow_id, execution.version)
    if workflow is None:
        raise UnknownWorkflow(execution.workflow_id, execution.version)
    runs = tuple(store.get_node_results(execution.id))
    children: dict[tuple[str, int], tuple[Snapshot, ...]] = {}
    for child in store.get_child_executions(execution.id):
        key = (child.parent_node_id or "", child.parent_item or 0)
        children[key] = (*children.get(key, ()), read_snapshot(store, child))
    return Snapshot(execution, workflow, runs, datetime.now(UTC), children)
