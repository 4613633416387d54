"""Records that are sent again: found by the result or the event of the first, with the same continuation."""

from __future__ import annotations

import json

from spanloom.engine.store.requests import NodeClaim, NodeJob, Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.stores.transitions.claim import node_claim
from spanloom.stores.transitions.rows import ExecutionRow, ResultRow, RunFilter, RunRow, as_data, claim_reference
from spanloom.stores.transitions.transaction import Transaction
from spanloom.stores.transitions.waits.rules import PARKED

__all__ = ["answer_again"]

_STALE = RecordResult(recorded=False)


def answer_again(tx: Transaction, execution: ExecutionRow, request: RecordRequest, run: RunRow | None) -> RecordResult:
    """Answer a record whose claim is over: as before if it was recorded, else with a stale fence."""
    result = tx.result(request.key)
    mine = result is not None and result.fence == request.fence and (result.worker_id or "") == request.worker_id
    if result is not None and mine and result.status == NodeStatus.CANCELLED:
        # Nothing follows, but its telemetry is stored once, which the mark ensures.
        if tx.mark_cancelled(_with_span(result, request)):
            tx.add_telemetry(request.key, request.logs, request.spans)
        return RecordResult(True)
    if result is not None and mine and result.status == request.outcome:
        return _continuation(tx, execution, request, run)
    if request.outcome in PARKED and _was_parked(tx, request):
        return _continuation(tx, execution, request, run)
    return _STALE


def _with_span(result: ResultRow, request: RecordRequest) -> ResultRow:
    """Return the result of a cancelled run with the span of its attempt, which has an outcome of its own."""
    if request.own_span is None:
        return result
    start_ns, end_ns, attributes, links = request.own_span
    attributes = as_data({"spanloom.node.outcome": request.outcome.value, **json.loads(attributes)})
    return result._replace(
        span=request.span, span_start_ns=start_ns, span_end_ns=end_ns, span_attributes=attributes, span_links=links
    )


def _was_parked(tx: Transaction, request: RecordRequest) -> bool:
    """Return whether an event proves that the record was stored. After a reset of the run its fence is stale."""
    for event in tx.events(request.key, [PARKED[request.outcome], "node.reset"]):
        if event.kind == "node.reset":
            return False
        if event.worker_id == request.worker_id and json.loads(event.data or "{}").get("fence") == request.fence:
            return True
    return False


def _continuation(tx: Transaction, execution: ExecutionRow, request: RecordRequest, run: RunRow | None) -> RecordResult:
    """Return the continuation of a record, without the runs that were claimed or pushed otherwise since."""
    reference = claim_reference(*_claim(request))
    runs = tx.runs_made_ready(request.execution_id, reference)
    if request.outcome is Outcome.RELEASED and run is not None and run.fence == request.fence:
        runs.append(run)
    if request.outcome is Outcome.WAITING and request.child is not None:
        runs += _entries(tx, request)
    jobs: list[NodeJob] = []
    following: list[NodeClaim] = []
    for ready in sorted(set(runs)):
        if ready.status == NodeStatus.RUNNING and ready.worker_id == request.worker_id:
            following.append(node_claim(tx, execution, ready))
        elif ready.status == NodeStatus.QUEUED and ready.pushed_at is not None:
            jobs.append(tx.job(ready))
    for event in tx.end_events(request.execution_id):
        if json.loads(event.data or "{}").get("by") == reference:
            status = ExecutionStatus(event.kind.removeprefix("execution."))
            return RecordResult(
                True, tuple(jobs), tuple(following), status, tx.as_datetime(execution.ended_at or event.at)
            )
    return RecordResult(True, tuple(jobs), tuple(following))


def _entries(tx: Transaction, request: RecordRequest) -> list[RunRow]:
    """Return the entry nodes of the child that the claim has started, without those that were pushed again."""
    started = [
        child.id
        for child in tx.children(request.execution_id, [request.node_id])
        if (child.parent_item, child.parent_fence) == (request.item, request.fence)
    ]
    queued = tx.find_runs(RunFilter(started, [NodeStatus.QUEUED])) if started else []
    return [run for run in queued if run.push == 1 and run.fence == 0]


def _claim(request: RecordRequest) -> tuple[str, int, int]:
    return request.node_id, request.item, request.fence
