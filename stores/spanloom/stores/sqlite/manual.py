"""What operators end by hand on SQLite: an execution, an open node run; and failures that they let rest."""

from __future__ import annotations

import json
from dataclasses import replace

from spanloom.engine.errors import InvalidTransition, StaleVersion, UnknownExecution, UserError
from spanloom.engine.store.requests import ControlResult, NodeKey, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.sql.base import check_manual
from spanloom.stores.sqlite.control import ControlTarget, find
from spanloom.stores.sqlite.executions import fail_execution
from spanloom.stores.sqlite.records import record_ended
from spanloom.stores.sqlite.transaction import Run, Transaction

__all__ = ["acknowledge", "end_manually", "fail"]

_RAISE_REVISION = "UPDATE executions SET revision = revision + 1 WHERE id = ?"

_FIND = "SELECT status, revision, acknowledged_at FROM executions WHERE id = ?"

_DISCARD = "UPDATE executions SET acknowledged_at = ?, revision = revision + 1 WHERE id = ?"

_VERSION = "SELECT workflow_id, version FROM executions WHERE id = ?"

_ENDED = "SELECT status FROM node_results WHERE execution_id = ? AND node_id = ? AND item = ?"

_TAKE = """
UPDATE node_runs SET status = 'running', fence = fence + 1, worker_id = NULL, claim_reference = NULL, due_at = NULL
WHERE execution_id = ? AND node_id = ? AND item = ?
"""


def fail(tx: Transaction, target: ControlTarget, error: str) -> ControlResult:
    """Fail a running or paused execution, as its deadline would."""
    member = find(tx, target, ExecutionStatus.FAILED)
    if member.status == ExecutionStatus.FAILED:
        return ControlResult(False, member.revision)
    end = tx.load(member.id, "$end", 0)
    assert end is not None, f"execution {member.id} is open and has no $end"
    tx.execute(_RAISE_REVISION, (member.id,))
    fail_execution(tx, end, ExecutionStatus(member.status), json.loads(error))
    return ControlResult(True, member.revision + 1, [member.id])


def acknowledge(tx: Transaction, target: ControlTarget) -> ControlResult:
    """Let a failed execution rest."""
    execution_id, expected = target.execution_id, target.expected_revision
    row = tx.execute(_FIND, (execution_id,)).fetchone()
    if row is None:
        raise UnknownExecution(execution_id)
    status, revision, acknowledged_at = row
    if acknowledged_at is not None:
        return ControlResult(False, revision)
    if expected is not None and expected != revision:
        raise StaleVersion(f"execution {execution_id}", expected, revision, target.read(execution_id))
    if status != ExecutionStatus.FAILED:
        raise InvalidTransition(f"execution {execution_id}", status, "acknowledged")
    tx.execute(_DISCARD, (tx.now, execution_id))
    tx.event(execution_id, "execution.acknowledged", data={"revision": revision + 1})
    return ControlResult(True, revision + 1)


def end_manually(tx: Transaction, request: RecordRequest) -> RecordResult:
    """End an open run, unless a live worker runs it, under a fence of its own."""
    check_manual(request)
    key = NodeKey(request.execution_id, request.node_id, request.item)
    run = tx.load(*key)
    if run is None or run.node_id.startswith("$"):
        raise _no_open_run(tx, key, request)
    waits_for_items = run.status == NodeStatus.WAITING and run.wait_kind == WaitKind.ITEMS
    if run.status == NodeStatus.PENDING or waits_for_items or _is_held(tx, run):
        raise InvalidTransition(f"node run {key.node_id}", run.status, request.outcome)
    tx.execute(_TAKE, key)
    taken = run._replace(
        status=NodeStatus.RUNNING.value, fence=run.fence + 1, worker_id=None, claim_reference=None, lease_until=None
    )
    return record_ended(tx, taken, replace(request, successors=()), claims=False)


def _is_held(tx: Transaction, run: Run) -> bool:
    """Tell whether a worker runs it under a lease that has neither lapsed nor been released."""
    return run.status == NodeStatus.RUNNING and run.lease_until is not None and run.lease_until > tx.now


def _no_open_run(tx: Transaction, key: NodeKey, request: RecordRequest) -> Exception:
    version = tx.execute(_VERSION, (key.execution_id,)).fetchone()
    if version is None:
        return UnknownExecution(key.execution_id)
    ended = tx.execute(_ENDED, key).fetchone()
    names = {edge.target for edges in tx.graph(*version).values() for edge in edges}
    if ended is None and (key.node_id not in names or key.node_id.startswith("$")):
        return UserError(f"execution {key.execution_id} has no node {key.node_id!r}")
    status = NodeStatus.PENDING if ended is None else ended[0]
    return InvalidTransition(f"node run {key.node_id}", status, request.outcome)
