"""What operators end themselves: an execution, an open node run; and failures that they acknowledge."""

from __future__ import annotations

import json
from dataclasses import replace

from spanloom.engine.errors import InvalidTransition, UnknownExecution, UserError
from spanloom.engine.store.requests import ControlResult, NodeKey, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.sql.base import canonical_id, check_manual
from spanloom.stores.transitions.arrivals import fail
from spanloom.stores.transitions.control import ControlTarget, check_revision, find, lock
from spanloom.stores.transitions.record import record_taken
from spanloom.stores.transitions.rows import Event, ExecutionRow, RunRow, as_data
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["acknowledge", "end_node", "fail_execution"]


def fail_execution(tx: Transaction, target: ControlTarget, error: str) -> ControlResult:
    """Fail a running or paused execution, as its deadline would."""
    row = find(tx, target, ExecutionStatus.FAILED)
    if row.status == ExecutionStatus.FAILED:
        return ControlResult(False, row.revision)
    (revised,) = tx.update_executions([row], revise=True)
    fail(tx, revised, json.loads(error), None)
    return ControlResult(True, revised.revision, [row.id])


def acknowledge(tx: Transaction, target: ControlTarget) -> ControlResult:
    """Mark a failed execution as dealt with."""
    row = lock(tx, target)
    if row.acknowledged_at is not None:
        return ControlResult(False, row.revision)
    check_revision(target, row)
    if row.status != ExecutionStatus.FAILED:
        raise InvalidTransition(f"execution {row.id}", row.status, "acknowledged")
    (revised,) = tx.update_executions([row], revise=True, acknowledged_at=tx.now)
    tx.add_events([Event(row.id, "execution.acknowledged", data=as_data({"revision": revised.revision}))])
    return ControlResult(True, revised.revision)


def end_node(tx: Transaction, request: RecordRequest) -> RecordResult:
    """End an open run, unless a live worker runs it, under a fence of its own."""
    check_manual(request)
    execution_id = canonical_id(request.execution_id)
    locked = {} if execution_id is None else tx.lock_executions([execution_id], alone=[execution_id])
    if execution_id is None or execution_id not in locked:
        raise UnknownExecution(request.execution_id)
    key = NodeKey(execution_id, request.node_id, request.item)
    run = None if key.node_id.startswith("$") else tx.lock_runs([key]).get(key)
    if run is None:
        raise _no_open_run(tx, locked[execution_id], key, request)
    if not _may_be_ended(tx, run):
        raise InvalidTransition(f"node run {key.node_id}", run.status, request.outcome)
    taken = run._replace(
        status=NodeStatus.RUNNING.value, fence=run.fence + 1, worker_id=None, claim_reference=None, due_at=None
    )
    mine = replace(request, execution_id=execution_id, fence=taken.fence, worker_id="", successors=(), exported_ns=None)
    return record_taken(tx, locked[execution_id], taken, mine)


def _may_be_ended(tx: Transaction, run: RunRow) -> bool:
    if run.status == NodeStatus.WAITING:
        return run.wait_kind != WaitKind.ITEMS
    if run.status == NodeStatus.RUNNING:
        return run.worker_id is None or not tx.is_live(run.worker_id)
    return run.status in (NodeStatus.QUEUED, NodeStatus.HELD)


def _no_open_run(tx: Transaction, execution: ExecutionRow, key: NodeKey, request: RecordRequest) -> Exception:
    ended = tx.result(key)
    known = tx.graph(execution.workflow_id, execution.version).target(key.node_id) is not None
    if ended is None and (not known or key.node_id.startswith("$")):
        return UserError(f"execution {key.execution_id} has no node {key.node_id!r}")
    status = NodeStatus.PENDING if ended is None else ended.status
    return InvalidTransition(f"node run {key.node_id}", status, request.outcome)
