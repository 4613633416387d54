"""Cancelling an execution on SQLite."""

from __future__ import annotations

from collections.abc import Callable

from spanloom.engine.errors import StaleVersion, UnknownExecution
from spanloom.engine.records import NodeKey
from spanloom.engine.states import ExecutionStatus, check_execution_transition
from spanloom.engine.views import Execution
from spanloom.stores.sqlite_turn import Turn

__all__ = ["cancel"]

_FIND = "SELECT status, revision FROM executions WHERE id = ?"

_CANCEL = """
UPDATE executions SET status = 'cancelled', revision = revision + 1, ended_at = ?
WHERE id = ? AND status IN ('pending', 'running', 'paused')
"""

_END_RUNS = """
INSERT INTO node_results (execution_id, node_id, item, node_type, status, attempt, losses, fence, worker_id, started_at,
                          ended_at)
SELECT execution_id, node_id, item, node_type, 'cancelled', attempt, losses, fence, worker_id, started_at, ?
FROM node_runs WHERE execution_id = ? AND node_id NOT IN ('$start', '$end')
RETURNING node_id, item, attempt, worker_id
"""

_DELETE_RUNS = "DELETE FROM node_runs WHERE execution_id = ?"


def cancel(
    turn: Turn, execution_id: str, expected_revision: int | None, read: Callable[[str], Execution | None]
) -> bool:
    """Cancel an execution and its open runs; False if it was cancelled before. `read` is for a stale caller's error."""
    row = turn.execute(_FIND, (execution_id,)).fetchone()
    if row is None:
        raise UnknownExecution(execution_id)
    status, revision = ExecutionStatus(row[0]), row[1]
    if status is ExecutionStatus.CANCELLED:
        return False
    if expected_revision is not None and expected_revision != revision:
        raise StaleVersion(f"execution {execution_id}", expected_revision, revision, read(execution_id))
    check_execution_transition(execution_id, status, ExecutionStatus.CANCELLED)
    turn.execute(_CANCEL, (turn.now, execution_id))
    for node_id, item, attempt, worker_id in turn.execute(_END_RUNS, (turn.now, execution_id)).fetchall():
        key = NodeKey(execution_id, node_id, item)
        turn.event(execution_id, "node.cancelled", key, attempt=attempt, worker_id=worker_id)
    turn.execute(_DELETE_RUNS, (execution_id,))
    turn.event(execution_id, "execution.cancelled", data={"revision": revision + 1})
    return True
