"""Claiming queued node runs on SQLite."""

from __future__ import annotations

import json
from typing import NamedTuple

from spanloom.engine.store.requests import Claim, ClaimAnswer, ExecutionHeader, NodeKey, Refusal
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, check_node_transition
from spanloom.stores.schema import from_micros
from spanloom.stores.sqlite.transaction import Run, Transaction

__all__ = ["claim", "may_claim"]

_IS_LIVE = "SELECT 1 FROM workers WHERE id = ? AND released_at IS NULL AND lease_until > ?"

_CLAIM = """
UPDATE node_runs SET status = 'running', fence = ?, worker_id = ?, claim_reference = ?, due_at = NULL, started_at = ?
WHERE execution_id = ? AND node_id = ? AND item = ? AND status = 'queued'
"""

_HEADER = """
SELECT input, priority, depth, parent_id, metadata, trace_parent, trace_state, caller_span_id, created_at
FROM executions WHERE id = ?
"""


class _Header(NamedTuple):
    input: str
    priority: str
    depth: int
    parent_id: str | None
    metadata: str
    trace_parent: str | None
    trace_state: str | None
    caller_span_id: str | None
    created_at: int


def may_claim(tx: Transaction, worker_id: str) -> bool:
    """Tell whether the worker holds a lease that has neither lapsed nor been released."""
    return tx.execute(_IS_LIVE, (worker_id, tx.now)).fetchone() is not None


def claim(tx: Transaction, key: NodeKey, worker_id: str, token: str | None) -> ClaimAnswer:
    """Claim one run for a worker whose lease is live, or find the claim that the same call was given before."""
    run = tx.load(*key)
    if run is None:
        return Refusal.GONE
    if run.status == NodeStatus.RUNNING:
        again = token is not None and run.worker_id == worker_id and run.claim_reference == _call_reference(token)
        return _claimed(tx, run, run.fence) if again else Refusal.TAKEN
    if run.status != NodeStatus.QUEUED:
        return Refusal.NOT_READY
    if run.execution_status != ExecutionStatus.RUNNING:
        tx.hold(run)
        return Refusal.NOT_READY
    check_node_transition(run.node_id, NodeStatus.QUEUED, NodeStatus.RUNNING)
    fence = run.fence + 1
    tx.execute(_CLAIM, (fence, worker_id, None if token is None else _call_reference(token), tx.now, *key))
    tx.event(run.execution_id, "node.started", run, attempt=run.attempt, worker_id=worker_id)
    return _claimed(tx, run, fence)


def _call_reference(token: str) -> str:
    return f"claim {token}"  # apart from what records write there: node/item/fence


def _claimed(tx: Transaction, run: Run, fence: int) -> Claim:
    return Claim(_header(tx, run), tx.node_claim(run, fence))


def _header(tx: Transaction, run: Run) -> ExecutionHeader:
    row = _Header._make(tx.execute(_HEADER, (run.execution_id,)).fetchone())
    return ExecutionHeader(
        execution_id=run.execution_id,
        workflow_id=run.workflow_id,
        version=run.version,
        input=row.input,
        priority=row.priority,
        depth=row.depth,
        parent_execution_id=row.parent_id,
        metadata=json.loads(row.metadata),
        trace_parent=row.trace_parent,
        trace_state=row.trace_state,
        caller_span_id=row.caller_span_id,
        created_at=from_micros(row.created_at),
    )
