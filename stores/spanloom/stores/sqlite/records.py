"""Recording the outcomes of claims on SQLite, and finding the answer again when a record is sent twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spanloom.engine.errors import UnknownWorkflow
from spanloom.engine.store.requests import NodeClaim, NodeJob, NodeKey, Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind, check_node_transition
from spanloom.stores.schema import from_micros, to_micros
from spanloom.stores.sql.base import check_wait
from spanloom.stores.sqlite.children import entry_keys, start_child
from spanloom.stores.sqlite.ends import Ending, end
from spanloom.stores.sqlite.items import end_item, fan_out
from spanloom.stores.sqlite.transaction import Run, Transaction, record_reference

__all__ = ["record", "record_ended"]

_STALE = RecordResult(recorded=False)

_WAIT = """
UPDATE node_runs SET status = 'waiting', worker_id = NULL, claim_reference = NULL, attempt = ?, wait_kind = ?,
       wait_key = ?, due_at = ?
WHERE execution_id = ? AND node_id = ? AND item = ? AND status = 'running'
"""

_KEEP_SPAN = "UPDATE node_runs SET span = ? WHERE execution_id = ? AND node_id = ? AND item = ?"

_OWE_EXPORT = """
INSERT INTO span_exports (worker_id, execution_id, until_ns, exporter) VALUES (?, ?, ?, ?)
ON CONFLICT (worker_id, execution_id) DO UPDATE
SET until_ns = max(until_ns, excluded.until_ns), exporter = excluded.exporter
"""

_FIND_RESULT = """
SELECT status FROM node_results
WHERE execution_id = ? AND node_id = ? AND item = ? AND worker_id = ? AND fence = ?
"""

# Unless the run was reset since: then its fence is stale, whatever came of it.
_FIND_EVENT = """
SELECT json_extract(told.data, '$.wait_key') FROM events told
WHERE told.execution_id = ? AND told.node_id = ? AND told.item = ? AND told.kind = ? AND told.worker_id = ?
  AND json_extract(told.data, '$.fence') = ?
  AND NOT EXISTS (SELECT 1 FROM events reset
                  WHERE reset.execution_id = told.execution_id AND reset.seq > told.seq AND reset.kind = 'node.reset'
                    AND reset.node_id = told.node_id AND reset.item = told.item)
"""

_FIND_END = """
SELECT kind, coalesce(e.ended_at, at) FROM events JOIN executions e ON e.id = execution_id
WHERE execution_id = ? AND kind IN ('execution.completed', 'execution.failed') AND json_extract(data, '$.by') = ?
"""

_FIND_READY = """
SELECT execution_id, node_id, item FROM node_runs
WHERE execution_id = ? AND claim_reference = ? AND status IN ('queued', 'running')
ORDER BY node_id, item
"""

# A cancelled run keeps this mark once its record has come, so that its logs are stored once.
_MARK_CANCELLED = """
UPDATE node_results SET taken = '[]'
WHERE execution_id = ? AND node_id = ? AND item = ? AND status = 'cancelled' AND taken IS NULL
"""

_ENDS = {
    Outcome.COMPLETED: NodeStatus.COMPLETED,
    Outcome.FAILED: NodeStatus.FAILED,
    Outcome.SKIPPED: NodeStatus.SKIPPED,
}

_PARKED = {Outcome.RETRY: "node.retrying", Outcome.WAITING: "node.waiting", Outcome.RELEASED: "node.released"}


def record(tx: Transaction, request: RecordRequest, *, before_failure: bool = False) -> RecordResult:
    """Record one outcome and all that follows from it; write nothing if the fence is stale.

    Nothing that this makes ready is claimed `before_failure`, which may end the execution in the same call.
    """
    check_wait(request)
    run = tx.load(request.execution_id, request.node_id, request.item)
    if (
        run is None
        or run.status != NodeStatus.RUNNING
        or run.fence != request.fence
        or run.worker_id != request.worker_id
    ):
        return _answer_again(tx, request, run)
    if request.exported_ns is not None:
        worker_id = request.worker_id
        tx.execute(_OWE_EXPORT, (worker_id, request.execution_id, request.exported_ns, worker_id))
    # A worker whose lease has lapsed is about to lose its claims: it gets no new one.
    claims = not before_failure and run.lease_until is not None and run.lease_until > tx.now
    if request.outcome in _ENDS:
        return record_ended(tx, run, request, claims=claims)
    answer = _park(tx, run, request, claims=claims)
    if answer.refused is None:
        tx.telemetry(run, request.logs, request.spans)
        if request.span is not None:
            tx.execute(_KEEP_SPAN, (request.span, run.execution_id, run.node_id, run.item))
    return answer


def record_ended(tx: Transaction, run: Run, request: RecordRequest, *, claims: bool) -> RecordResult:
    """End a running run as asked, and do all that follows; `claims`: its worker may be given a ready successor."""
    tx.telemetry(run, request.logs, request.spans)
    status = _ENDS[request.outcome]
    ending = Ending(
        status, request.data, request.error, request.taken, request.handled, request.successors, request.span
    )
    return (end_item if run.item else end)(tx, run, ending, claims=claims)


def _park(tx: Transaction, run: Run, request: RecordRequest, *, claims: bool) -> RecordResult:
    """Give up a claim without ending its run: for a retry, to wait, or because its worker stops."""
    if request.outcome is Outcome.WAITING:
        return _wait(tx, run, request, claims=claims)
    if request.outcome is Outcome.RELEASED:
        _tell(tx, run, request, {})
        job = tx.requeue(run, because="released")
        return RecordResult(True, () if job is None else (job,))
    error = {} if request.error is None else {"error": json.loads(request.error)}
    _tell(tx, run, request, {**error, "delay_seconds": request.delay_seconds})
    attempt = run.attempt + request.spends_attempt
    _put_to_wait(tx, run, WaitKind.RETRY, None, attempt, tx.now + round(request.delay_seconds * 1e6))
    if run.execution_status == ExecutionStatus.FAILED:
        tx.hold(run._replace(status=NodeStatus.WAITING), attempt=attempt)
    return RecordResult(True)


def _wait(tx: Transaction, run: Run, request: RecordRequest, *, claims: bool) -> RecordResult:
    kind, wait_key = request.wait_kind or WaitKind.TIMER, request.wait_key
    if kind is WaitKind.TIMER:
        _tell_waiting(tx, run, request, kind, wait_key)
        due_at = tx.now + round(request.delay_seconds * 1e6) if request.due_at is None else to_micros(request.due_at)
        _put_to_wait(tx, run, kind, wait_key, run.attempt, due_at)
        return RecordResult(True)
    if kind is WaitKind.CHILD:
        return _wait_for_child(tx, run, request)
    return _wait_for_items(tx, run, request, claims=claims)


def _wait_for_child(tx: Transaction, run: Run, request: RecordRequest) -> RecordResult:
    assert request.child is not None
    child_id = request.child.execution_id
    if run.execution_status != ExecutionStatus.RUNNING:
        return _ask_again(tx, run, request, child_id)
    started = start_child(tx, run, request.child)
    if isinstance(started, UnknownWorkflow):
        return RecordResult(True, refused=started)
    _tell_waiting(tx, run, request, WaitKind.CHILD, child_id)
    _put_to_wait(tx, run, WaitKind.CHILD, child_id, run.attempt, None)
    return RecordResult(True, started.jobs)


def _wait_for_items(tx: Transaction, run: Run, request: RecordRequest, *, claims: bool) -> RecordResult:
    asked = request.fan_out
    assert asked is not None
    if run.execution_status != ExecutionStatus.RUNNING:
        return _ask_again(tx, run, request, request.wait_key)
    bounds = {
        "items": len(asked.items),
        "max_concurrency": asked.max_concurrency,
        "tolerated_failures": asked.tolerated_failures,
    }
    _tell_waiting(tx, run, request, WaitKind.ITEMS, request.wait_key, bounds)
    return fan_out(tx, run, request.wait_key, asked, claims=claims and run.node_id in request.successors)


def _ask_again(tx: Transaction, run: Run, request: RecordRequest, wait_key: str | None) -> RecordResult:
    """Hold a run whose wait would start something, until something may start again; what woke it stays."""
    _tell_waiting(tx, run, request, request.wait_kind or WaitKind.TIMER, wait_key)
    tx.hold(run)
    return RecordResult(True)


def _tell_waiting(
    tx: Transaction,
    run: Run,
    request: RecordRequest,
    kind: WaitKind,
    wait_key: str | None,
    bounds: Mapping[str, int] | None = None,
) -> None:
    _tell(tx, run, request, {"wait_kind": kind.value, "wait_key": wait_key, **(bounds or {})})


def _tell(tx: Transaction, run: Run, request: RecordRequest, told: Mapping[str, Any]) -> None:
    tx.event(
        run.execution_id, _PARKED[request.outcome], run, attempt=run.attempt, worker_id=run.worker_id,
        data={**told, "fence": run.fence},
    )  # fmt: skip


def _put_to_wait(
    tx: Transaction, run: Run, kind: WaitKind, wait_key: str | None, attempt: int, due_at: int | None
) -> None:
    check_node_transition(run.node_id, NodeStatus.RUNNING, NodeStatus.WAITING)
    tx.execute(_WAIT, (attempt, kind.value, wait_key, due_at, run.execution_id, run.node_id, run.item))


def _answer_again(tx: Transaction, request: RecordRequest, run: Run | None) -> RecordResult:
    """Answer a record whose claim is over: as before if it was recorded, else that its fence is stale."""
    key = NodeKey(request.execution_id, request.node_id, request.item)
    parked = _PARKED.get(request.outcome)
    tx.flush()  # an earlier record of this call may be the one that was sent again
    if parked is not None:
        seen = tx.execute(_FIND_EVENT, (*key, parked, request.worker_id, request.fence)).fetchone()
        if seen is None:
            return _cancelled(tx, request, key)
        if request.outcome is Outcome.WAITING:
            return _continuation(tx, request, child_id=seen[0])
        if request.outcome is Outcome.RELEASED and run is not None and run.fence == request.fence:
            return RecordResult(True, _pushed(run))
        return RecordResult(True)
    found = tx.execute(_FIND_RESULT, (*key, request.worker_id, request.fence)).fetchone()
    if found is None:
        return _STALE
    if found[0] == NodeStatus.CANCELLED:
        return _cancelled(tx, request, key)
    if found[0] != _ENDS[request.outcome]:
        return _STALE
    return _continuation(tx, request)


def _cancelled(tx: Transaction, request: RecordRequest, key: NodeKey) -> RecordResult:
    """Keep what a run of a cancelled execution has told; nothing follows from it."""
    found = tx.execute(_FIND_RESULT, (*key, request.worker_id, request.fence)).fetchone()
    if found is None or found[0] != NodeStatus.CANCELLED:
        return _STALE
    if tx.execute(_MARK_CANCELLED, key).rowcount == 1:
        tx.telemetry(key, request.logs, request.spans)
    return RecordResult(True)


def _continuation(tx: Transaction, request: RecordRequest, *, child_id: str | None = None) -> RecordResult:
    """Find what followed from a record and has not been taken up by anyone else since."""
    by = record_reference(request.node_id, request.item, request.fence)
    keys = [NodeKey._make(row) for row in tx.execute(_FIND_READY, (request.execution_id, by)).fetchall()]
    if request.child is not None and child_id is not None:
        key = NodeKey(request.execution_id, request.node_id, request.item)
        keys += entry_keys(tx, key, request.fence, child_id)
    jobs: list[NodeJob] = []
    following: NodeClaim | None = None
    for run in filter(None, (tx.load(*key) for key in keys)):
        if run.worker_id == request.worker_id:
            following = tx.node_claim(run, run.fence)
        jobs.extend(_pushed(run))
    ended = tx.execute(_FIND_END, (request.execution_id, by)).fetchone()
    if ended is None:
        return RecordResult(True, jobs, following)
    status = ExecutionStatus(ended[0].removeprefix("execution."))
    return RecordResult(True, jobs, following, status, from_micros(ended[1]))


def _pushed(run: Run) -> tuple[NodeJob, ...]:
    """Return the job of the last push of a queued run, nothing for any other."""
    if run.status != NodeStatus.QUEUED or run.pushed_at is None:
        return ()
    pushed_at = from_micros(run.pushed_at)
    key = NodeKey(run.execution_id, run.node_id, run.item)
    return (NodeJob(*key, run.node_type, run.queue, run.priority, run.push, pushed_at, run.recovery_attempts),)
