"""How an execution ends on SQLite, and what is left for its parent then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spanloom.engine.store.requests import END, PARENT, NodeKey
from spanloom.engine.store.states import ExecutionStatus, check_execution_transition
from spanloom.stores.sqlite.transaction import Run, Transaction

__all__ = ["complete_execution", "fail_execution", "notify_parent"]

_COMPLETE = """
UPDATE executions SET status = 'completed', ended_at = ? WHERE id = ? AND status IN ('running', 'paused')
"""

_FAIL = """
UPDATE executions SET status = 'failed', error = ?, ended_at = ? WHERE id = ? AND status IN ('running', 'paused')
"""

_HOLD_READY = """
UPDATE node_runs SET status = 'held', claim_reference = NULL, due_at = NULL, wait_kind = nullif(wait_kind, 'retry')
WHERE execution_id = ? AND (status = 'queued' OR (status = 'waiting' AND wait_kind = 'retry'))
RETURNING node_id, item, attempt
"""

_DELETE_END = "DELETE FROM node_runs WHERE execution_id = ? AND node_id = ? AND item = 0"

_FORGET_DEADLINE = "UPDATE node_runs SET due_at = NULL WHERE execution_id = ? AND node_id = '$end' AND item = 0"

_ADD_PARENT = """
INSERT OR REPLACE INTO node_runs (execution_id, node_id, item, status, node_type, queue, priority, pending, taken,
                                  fence, attempt, recovery_attempts, wait_kind, due_at, push, pushed_epoch)
VALUES (?, ?, 0, 'waiting', ?, '', ?, 0, 0, 0, 1, 0, 'child', ?, 0, 0)
"""


def complete_execution(tx: Transaction, run: Run, current: ExecutionStatus) -> None:
    """Complete the running or paused execution of the run whose record ends it."""
    check_execution_transition(run.execution_id, current, ExecutionStatus.COMPLETED)
    tx.execute(_COMPLETE, (tx.now, run.execution_id))
    tx.execute(_DELETE_END, (run.execution_id, END))
    tx.event(run.execution_id, "execution.completed", data={"by": run.by})
    if run.parent_id is not None:
        notify_parent(tx, run.execution_id, run.priority)


def fail_execution(
    tx: Transaction, run: Run, current: ExecutionStatus, error: Mapping[str, Any], by: str | None = None
) -> None:
    """Fail a running or paused execution: nothing of it that is not running now starts before a retry."""
    execution_id = run.execution_id
    check_execution_transition(execution_id, current, ExecutionStatus.FAILED)
    tx.execute(_FAIL, (json.dumps(error), tx.now, execution_id))
    brief = {name: error[name] for name in ("node_id", "type", "message") if name in error}
    tx.event(execution_id, "execution.failed", data={"error": brief, "by": by})
    for node_id, item, attempt in sorted(tx.execute(_HOLD_READY, (execution_id,)).fetchall()):
        tx.event(execution_id, "node.held", NodeKey(execution_id, node_id, item), attempt=attempt)
    tx.execute(_FORGET_DEADLINE, (execution_id,))
    if run.parent_id is not None:
        notify_parent(tx, execution_id, run.priority)


def notify_parent(tx: Transaction, execution_id: str, priority: str) -> None:
    """Leave word that a child has ended, due at once: its parent's rows are for another transaction."""
    tx.execute(_ADD_PARENT, (execution_id, PARENT, PARENT, priority, tx.now))
