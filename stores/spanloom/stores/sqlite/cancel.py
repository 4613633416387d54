"""Cancelling an execution on SQLite, with all that it has started."""

from __future__ import annotations

from collections.abc import Sequence

from spanloom.engine.store.requests import ControlResult, NodeKey
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.sqlite.control import ControlTarget, FamilyMember, descendants, find
from spanloom.stores.sqlite.executions import notify_parent
from spanloom.stores.sqlite.transaction import Transaction

__all__ = ["cancel", "cancel_open"]

_CANCEL = """
UPDATE executions SET status = 'cancelled', revision = revision + 1, ended_at = ?
WHERE id = ? AND status IN ('pending', 'running', 'paused')
"""

_END_RUNS = """
INSERT INTO node_results (execution_id, node_id, item, node_type, status, arrived, attempt, recovery_attempts, fence,
       push,
                          worker_id, started_at, ended_at)
SELECT execution_id, node_id, item, node_type, 'cancelled', 0, attempt, recovery_attempts, fence, push, worker_id,
       started_at, ?
FROM node_runs WHERE execution_id = ? AND node_id NOT IN ('$start', '$end', '$parent')
RETURNING node_id, item, attempt, worker_id
"""

_DELETE_RUNS = "DELETE FROM node_runs WHERE execution_id = ?"


def cancel(tx: Transaction, target: ControlTarget) -> ControlResult:
    """Cancel an execution, its open descendants, and the open runs of them all."""
    root = find(tx, target, ExecutionStatus.CANCELLED)
    if root.status == ExecutionStatus.CANCELLED:
        return ControlResult(False, root.revision)
    changed = cancel_open(tx, [root, *descendants(tx, root.id)])
    if root.parent_id is not None:
        notify_parent(tx, root.id, root.priority)
    return ControlResult(True, root.revision + 1, changed)


def cancel_open(tx: Transaction, members: Sequence[FamilyMember]) -> list[str]:
    """Cancel those that have not ended, and name them. Nobody is told: their parents end or start anew as well."""
    changed: list[str] = []
    for member in members:
        if ExecutionStatus(member.status).ended:
            continue
        tx.execute(_CANCEL, (tx.now, member.id))
        ended = tx.execute(_END_RUNS, (tx.now, member.id)).fetchall()
        for node_id, item, attempt, worker_id in sorted(ended, key=lambda row: row[:2]):
            key = NodeKey(member.id, node_id, item)
            tx.event(member.id, "node.cancelled", key, attempt=attempt, worker_id=worker_id)
        tx.execute(_DELETE_RUNS, (member.id,))
        tx.event(member.id, "execution.cancelled", data={"revision": member.revision + 1})
        changed.append(member.id)
    return changed
