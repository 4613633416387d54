"""The claim of queued node runs, and the description of a claim with its input data."""

from __future__ import annotations

from collections.abc import Sequence

from spanloom.engine.store.requests import (
    Claim,
    ClaimAnswer,
    NodeClaim,
    NodeKey,
    RecordRequest,
    Refusal,
)
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.transitions.arrivals import hold, inputs
from spanloom.stores.transitions.rows import Event, ExecutionRow, RunRow
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["claim", "node_claim"]

_RUNNING = NodeStatus.RUNNING.value


def claim(tx: Transaction, keys: Sequence[NodeKey], worker_id: str, token: str | None) -> list[ClaimAnswer]:
    """Claim runs for a worker whose lease is live, or find the claims that the same call was granted before.

    The same key twice is claimed once.
    """
    if not tx.is_live(worker_id):
        return [Refusal.RETIRED] * len(keys)
    known = set(filter(canonical_id, {key.execution_id for key in keys}))
    tx.prefetch([key for key in keys if key.execution_id in known])
    executions = tx.lock_executions(known)
    wanted = [key for key in keys if key.execution_id in executions]
    # Only queued runs: a run that a record has locked may be waiting for a join that is locked before it here.
    queued = tx.lock_runs(wanted, status=NodeStatus.QUEUED)
    others = tx.runs([key for key in wanted if key not in queued])
    reference = None if token is None else _call_reference(token)
    answers: dict[NodeKey, ClaimAnswer] = {}
    claimed: list[RunRow] = []
    for key in sorted(set(keys)):
        if (run := queued.get(key)) is not None:
            found = _claim(tx, executions[key.execution_id], run, worker_id, reference)
        elif (run := others.get(key)) is not None:
            found = _claimed_before(run, worker_id, reference)
        else:
            found = Refusal.GONE
        if isinstance(found, Refusal):
            answers[key] = found
        else:
            claimed.append(found)
    headers = tx.headers(
        [executions[execution_id] for execution_id in dict.fromkeys(run.execution_id for run in claimed)]
    )
    for run in claimed:
        answers[run.key] = Claim(headers[run.execution_id], node_claim(tx, executions[run.execution_id], run))
    given: set[NodeKey] = set()
    ordered: list[ClaimAnswer] = []
    for key in keys:
        answer = answers[key]
        ordered.append(Refusal.TAKEN if key in given and isinstance(answer, Claim) else answer)
        given.add(key)
    return ordered


def _claim(
    tx: Transaction, execution: ExecutionRow, run: RunRow, worker_id: str, reference: str | None
) -> RunRow | Refusal:
    if execution.status != ExecutionStatus.RUNNING:
        hold(tx, run)
        return Refusal.NOT_READY
    new = run._replace(
        status=_RUNNING, fence=run.fence + 1, worker_id=worker_id, claim_reference=reference,
        due_at=None, started_at=tx.now,
    )  # fmt: skip
    tx.update_runs([(run, new)])
    tx.add_events([Event(run.execution_id, "node.started", run.node_id, run.item, run.attempt, worker_id)])
    return new


def _claimed_before(run: RunRow, worker_id: str, reference: str | None) -> RunRow | Refusal:
    """Return a run that the same call has claimed before, or the reason why it is refused: it is not queued."""
    if run.status != NodeStatus.RUNNING:
        return Refusal.NOT_READY
    again = reference is not None and run.worker_id == worker_id and run.claim_reference == reference
    return run if again else Refusal.TAKEN


def node_claim(
    tx: Transaction, execution: ExecutionRow, run: RunRow, *, sole_parent: RecordRequest | None = None
) -> NodeClaim:
    """Describe the claim of a running run. `sole_parent` is the record of its only parent, which holds its data."""
    data: str | None = None
    results: dict[str, str] = {}
    spans: dict[str, str] = {}
    if run.item:
        data = tx.item(run.key)
    elif sole_parent is not None:
        results = {sole_parent.node_id: "null" if sole_parent.data is None else sole_parent.data}
        spans = {} if sole_parent.span is None else {sole_parent.node_id: sole_parent.span}
    else:
        results, spans = inputs(tx, execution, run.node_id)
    return NodeClaim(
        run.node_id, run.item, run.node_type, run.queue, run.fence, run.attempt, run.recovery_attempts, results, data,
        None if run.wait_kind is None else WaitKind(run.wait_kind), run.wait_key if run.wait_kind else None, run.span,
        spans,
    )  # fmt: skip


def _call_reference(token: str) -> str:
    return f"claim {token}"  # distinct from the references of records: node/item/fence
