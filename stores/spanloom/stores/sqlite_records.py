"""Recording the outcomes of claims on SQLite, and finding the answer again when a record is sent twice."""

from __future__ import annotations

import json
from typing import Any

from spanloom.engine.records import NodeClaim, NodeJob, NodeKey, Outcome, Record, Recorded
from spanloom.engine.states import ExecutionStatus, NodeStatus, WaitKind, check_node_transition
from spanloom.stores.schema import from_micros
from spanloom.stores.sqlite_ends import Ending, brief, end, via
from spanloom.stores.sqlite_turn import Run, Turn

__all__ = ["record"]

_STALE = Recorded(recorded=False)

_WAIT = """
UPDATE node_runs SET status = 'waiting', worker_id = NULL, claimed_via = NULL, attempt = ?, wait_kind = ?, wait_key = ?,
       due_at = ?
WHERE execution_id = ? AND node_id = ? AND item = ? AND status = 'running'
"""

_FIND_RESULT = """
SELECT r.status, e.workflow_id, e.version
FROM node_results r JOIN executions e ON e.id = r.execution_id
WHERE r.execution_id = ? AND r.node_id = ? AND r.item = ? AND r.worker_id = ? AND r.fence = ?
"""

_FIND_EVENT = """
SELECT 1 FROM events
WHERE execution_id = ? AND node_id = ? AND item = ? AND kind = ? AND worker_id = ?
  AND json_extract(data, '$.fence') = ?
"""

_FIND_END = """
SELECT kind FROM events
WHERE execution_id = ? AND kind IN ('execution.completed', 'execution.failed') AND json_extract(data, '$.by') = ?
"""

_FIND_READY = """
SELECT node_id, item, status, node_type, queue, priority, push, pushed_at, fence, attempt, losses, worker_id
FROM node_runs
WHERE execution_id = ? AND claimed_via = ? AND status IN ('queued', 'running')
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


def record(turn: Turn, request: Record) -> Recorded:
    """Record one outcome and all that follows from it; write nothing if the fence is stale."""
    run = turn.load(request.execution_id, request.node_id, request.item)
    if (
        run is None
        or run.status != NodeStatus.RUNNING
        or run.fence != request.fence
        or run.worker_id != request.worker_id
    ):
        return _answer_again(turn, request, run)
    turn.telemetry(run, request.logs, request.spans)
    status = _ENDS.get(request.outcome)
    if status is not None:
        ending = Ending(status, request.data, request.error, request.taken, request.successors)
        # A worker whose lease has lapsed is about to lose its claims: it gets no new one.
        return end(turn, run, ending, claims=run.lease_until is not None and run.lease_until > turn.now)
    return _park(turn, run, request)


def _park(turn: Turn, run: Run, request: Record) -> Recorded:
    """Give up a claim without ending its run: for a retry, to wait, or because its worker stops."""
    kind = _PARKED[request.outcome]
    told: dict[str, Any] = {"fence": run.fence}
    if request.outcome is Outcome.RELEASED:
        turn.event(run.execution_id, kind, run, attempt=run.attempt, worker_id=run.worker_id, data=told)
        job = turn.requeue(run, because="released")
        return Recorded(True, () if job is None else (job,))
    wait_kind, attempt = request.wait_kind or WaitKind.TIMER, run.attempt
    if request.outcome is Outcome.RETRY:
        wait_kind, attempt = WaitKind.RETRY, run.attempt + request.spends_attempt
        error = {} if request.error is None else {"error": brief(json.loads(request.error))}
        told = {**error, "delay_seconds": request.delay_seconds, **told}
    else:
        told = {"wait_kind": wait_kind.value, "wait_key": request.wait_key, **told}
    turn.event(run.execution_id, kind, run, attempt=run.attempt, worker_id=run.worker_id, data=told)
    if wait_kind is WaitKind.RETRY and run.execution_status != ExecutionStatus.RUNNING:
        turn.hold(run, attempt=attempt)
        return Recorded(True)
    check_node_transition(run.node_id, NodeStatus.RUNNING, NodeStatus.WAITING)
    due_at = None if wait_kind is WaitKind.CHILD else turn.now + round(request.delay_seconds * 1e6)
    turn.execute(_WAIT, (attempt, wait_kind.value, request.wait_key, due_at, run.execution_id, run.node_id, run.item))
    return Recorded(True)


def _answer_again(turn: Turn, request: Record, run: Run | None) -> Recorded:
    """Answer a record whose claim is over: as before if it was recorded, else that its fence is stale."""
    key = NodeKey(request.execution_id, request.node_id, request.item)
    parked = _PARKED.get(request.outcome)
    turn.flush()  # an earlier record of this call may be the one that was sent again
    if parked is not None:
        seen = turn.execute(_FIND_EVENT, (*key, parked, request.worker_id, request.fence)).fetchone()
        if seen is None:
            return _cancelled(turn, request, key)
        still_queued = run is not None and run.status == NodeStatus.QUEUED and run.fence == request.fence
        if request.outcome is not Outcome.RELEASED or run is None or not still_queued:
            return Recorded(True)
        return Recorded(True, (_pushed(run),))
    found = turn.execute(_FIND_RESULT, (*key, request.worker_id, request.fence)).fetchone()
    if found is None:
        return _STALE
    status, workflow_id, version = found
    if status == NodeStatus.CANCELLED:
        return _cancelled(turn, request, key)
    if status != _ENDS[request.outcome]:
        return _STALE
    return _continuation(turn, request, workflow_id, version)


def _cancelled(turn: Turn, request: Record, key: NodeKey) -> Recorded:
    """Keep what a run of a cancelled execution has told; nothing follows from it."""
    found = turn.execute(_FIND_RESULT, (*key, request.worker_id, request.fence)).fetchone()
    if found is None or found[0] != NodeStatus.CANCELLED:
        return _STALE
    if turn.execute(_MARK_CANCELLED, key).rowcount == 1:
        turn.telemetry(key, request.logs, request.spans)
    return Recorded(True)


def _continuation(turn: Turn, request: Record, workflow_id: str, version: int) -> Recorded:
    """Find what followed from a record and has not been taken up by anyone else since."""
    by = via(request.node_id, request.item, request.fence)
    jobs: list[NodeJob] = []
    following: NodeClaim | None = None
    for row in turn.execute(_FIND_READY, (request.execution_id, by)).fetchall():
        node_id, item, status, node_type, queue, priority, push, pushed_at, fence, attempt, losses, worker_id = row
        if status == NodeStatus.QUEUED:
            pushed = from_micros(pushed_at)
            jobs.append(NodeJob(request.execution_id, node_id, item, node_type, queue, priority, push, pushed))
        elif worker_id == request.worker_id:
            results = turn.parents(request.execution_id, workflow_id, version, node_id)
            following = NodeClaim(node_id, item, node_type, queue, fence, attempt, losses, results)
    ended = turn.execute(_FIND_END, (request.execution_id, by)).fetchone()
    ended_as = None if ended is None else ExecutionStatus(ended[0].removeprefix("execution."))
    return Recorded(True, jobs, following, ended_as)


def _pushed(run: Run) -> NodeJob:
    assert run.pushed_at is not None
    return NodeJob(
        run.execution_id, run.node_id, run.item, run.node_type, run.queue, run.priority, run.push,
        from_micros(run.pushed_at),
    )  # fmt: skip
