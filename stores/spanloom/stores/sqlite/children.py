"""Child executions on SQLite: made in the step in which a run begins to wait for them; their end wakes that run."""

from __future__ import annotations

from dataclasses import replace

from spanloom.engine.errors import StoreRefused, UnknownWorkflow
from spanloom.engine.store.requests import END, PARENT, NodeJob, NodeKey, StartRequest, StartResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.sqlite.starts import create
from spanloom.stores.sqlite.transaction import Run, Transaction

__all__ = ["entry_keys", "start_child", "wake_parent"]

LEAST_DEADLINE = 0.001  # seconds: of a child whose parent has no time left

_DEADLINE = "SELECT due_at FROM node_runs WHERE execution_id = ? AND node_id = ? AND item = 0"

_FIND_ENDED = """
SELECT e.status, e.parent_id, e.parent_node_id, e.parent_item, e.parent_fence
FROM node_runs r JOIN executions e ON e.id = r.execution_id
WHERE r.execution_id = ? AND r.node_id = ? AND r.item = 0
"""

_DELETE = "DELETE FROM node_runs WHERE execution_id = ? AND node_id = ? AND item = 0"

_ENTRIES = """
SELECT r.execution_id, r.node_id, r.item FROM node_runs r JOIN executions e ON e.id = r.execution_id
WHERE e.id = ? AND e.parent_id = ? AND e.parent_node_id = ? AND e.parent_item = ? AND e.parent_fence = ?
  AND r.status = 'queued' AND r.push = 1 AND r.fence = 0
ORDER BY r.node_id
"""


def start_child(tx: Transaction, run: Run, asked: StartRequest) -> StartResult | UnknownWorkflow:
    """Create the child of a running run, under its fence, or say why it can't be started."""
    child = replace(
        asked,
        parent=NodeKey(run.execution_id, run.node_id, run.item),
        parent_fence=run.fence,
        deadline_seconds=_deadline(tx, run, asked),
    )
    answer = create(tx, child)
    if isinstance(answer, UnknownWorkflow):
        return answer
    if not isinstance(answer, StartResult):
        raise answer
    if not answer.created:
        raise StoreRefused(
            f"node {run.node_id!r} of execution {run.execution_id} can't start execution {answer.execution_id} as its "
            "child: it was started before; ask for one with a new id and without an idempotency key"
        )
    return answer


def entry_keys(tx: Transaction, run: NodeKey, fence: int, child_id: str) -> list[NodeKey]:
    """Name the entry nodes that are still queued as they were when a run under this fence started the child."""
    return [NodeKey._make(row) for row in tx.execute(_ENTRIES, (child_id, *run, fence))]


def wake_parent(tx: Transaction, execution_id: str) -> tuple[bool, NodeJob | None]:
    """Tell the parent's run, if it waits for this child still, that it has ended; tell whether it did."""
    row = tx.execute(_FIND_ENDED, (execution_id, PARENT)).fetchone()
    if row is None or not ExecutionStatus(row[0]).ended:
        return False, None
    _, *key, fence = row
    tx.execute(_DELETE, (execution_id, PARENT))
    run = tx.load(*key)
    if (
        run is None
        or run.status != NodeStatus.WAITING
        or run.wait_kind != WaitKind.CHILD
        or run.wait_key != execution_id
        or run.fence != fence
    ):
        return False, None
    return True, tx.requeue(run, because="child")


def _deadline(tx: Transaction, run: Run, asked: StartRequest) -> float | None:
    (due_at,) = tx.execute(_DEADLINE, (run.execution_id, END)).fetchone()
    if due_at is None:
        return asked.deadline_seconds
    left: float = max((due_at - tx.now) / 1e6 - asked.delay_seconds, LEAST_DEADLINE)
    return left if asked.deadline_seconds is None else min(asked.deadline_seconds, left)
