"""Short forms of the reads of an execution, for assertions."""

from __future__ import annotations

from typing import Any

from spanloom.engine.store.models import Execution, NodeRun
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import ExecutionStatus, NodeStatus

__all__ = ["events_of", "everything_of", "execution_of", "item_statuses", "run_of", "status_of", "statuses_of"]


def execution_of(store: ExecutionStore, execution_id: str) -> Execution:
    """Return an execution that must exist."""
    found = store.get_execution(execution_id)
    assert found is not None, f"there is no execution {execution_id}"
    return found


def status_of(store: ExecutionStore, execution_id: str) -> ExecutionStatus:
    """Return an execution's status."""
    status = execution_of(store, execution_id).status
    assert store.get_status(execution_id) is status
    return status


def run_of(store: ExecutionStore, execution_id: str, node_id: str, item: int = 0) -> NodeRun:
    """Return a node run that must exist."""
    (run,) = [run for run in store.get_node_results(execution_id, [node_id]) if run.item == item]
    return run


def statuses_of(store: ExecutionStore, execution_id: str) -> dict[str, NodeStatus]:
    """Return the statuses of the node runs, by node id, without items and those whose inputs are all open.

    A store is free to have a row or none for a node of which no input has arrived.
    """
    return {
        run.node_id: run.status
        for run in store.get_node_results(execution_id)
        if run.item == 0 and run.status is not NodeStatus.PENDING
    }


def item_statuses(store: ExecutionStore, execution_id: str, node_id: str) -> dict[int, NodeStatus]:
    """Return the statuses of a mapped node's items, by item, in the order that the store lists them in."""
    return {run.item: run.status for run in store.get_node_results(execution_id, [node_id]) if run.item}


def events_of(store: ExecutionStore, execution_id: str, node_id: str | None = None) -> list[str]:
    """Return the kinds of an execution's events in order: those about itself, or about one of its nodes."""
    return [event.kind for event in store.get_events(execution_id) if event.node_id == node_id]


def everything_of(store: ExecutionStore, execution_id: str) -> list[Any]:
    """Return all readable state of an execution and of its children."""
    seen: list[Any] = [
        store.get_execution(execution_id),
        store.get_node_results(execution_id),
        store.get_events(execution_id),
        store.get_logs(execution_id),
        store.get_trace(execution_id),
    ]
    return seen + [everything_of(store, child.id) for child in store.get_child_executions(execution_id)]
