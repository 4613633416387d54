"""What operators end by hand on SQLite: an execution, an open node run; and failures that they let rest."""

from __future__ import annotations

import json
from dataclasses import replace

from spanloom.engine.errors import InvalidTransition, StaleVersion, UnknownExecution, UserError
from spanloom.engine.store.requests import Controlled, NodeKey, Record, Recorded
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.sql.base import check_by_hand
from spanloom.stores.sqlite.control import Target, find
from spanloom.stores.sqlite.executions import fail_execution
from spanloom.stores.sqlite.records import record_ended
from spanloom.stores.sqlite.transaction import Run, Turn

__all__ = ["discard", "end_by_hand", "fail"]

_RAISE_REVISION = "UPDATE executions SET revision = revision + 1 WHERE id = ?"

_FIND = "SELECT status, revision, discarded_at FROM executions WHERE id = ?"

_DISCARD = "UPDATE executions SET discarded_at = ?, revision = revision + 1 WHERE id = ?"

_VERSION = "SELECT workflow_id, version FROM executions WHERE id = ?"

_ENDED = "SELECT status FROM node_results WHERE execution_id = ? AND node_id = ? AND item = ?"

_TAKE = """
UPDATE node_runs SET status = 'running', fence = fence + 1, worker_id = NULL, claimed_via = NULL, due_at = NULL
WHERE execution_id = ? AND node_id = ? AND item = ?
"""


def fail(turn: Turn, target: Target, error: str) -> Controlled:
    """Fail a running or paused execution, as its deadline would."""
    member = find(turn, target, ExecutionStatus.FAILED)
    if member.status == ExecutionStatus.FAILED:
        return Controlled(False, member.revision)
    end = turn.load(member.id, "$end", 0)
    assert end is not None, f"execution {member.id} is open and has no $end"
    turn.execute(_RAISE_REVISION, (member.id,))
    fail_execution(turn, end, ExecutionStatus(member.status), json.loads(error))
    return Controlled(True, member.revision + 1, [member.id])


def discard(turn: Turn, target: Target) -> Controlled:
    """Let a failed execution rest."""
    execution_id, expected = target.execution_id, target.expected_revision
    row = turn.execute(_FIND, (execution_id,)).fetchone()
    if row is None:
        raise UnknownExecution(execution_id)
    status, revision, discarded_at = row
    if discarded_at is not None:
        return Controlled(False, revision)
    if expected is not None and expected != revision:
        raise StaleVersion(f"execution {execution_id}", expected, revision, target.read(execution_id))
    if status != ExecutionStatus.FAILED:
        raise InvalidTransition(f"execution {execution_id}", status, "discarded")
    turn.execute(_DISCARD, (turn.now, execution_id))
    turn.event(execution_id, "execution.discarded", data={"revision": revision + 1})
    return Controlled(True, revision + 1)


def end_by_hand(turn: Turn, request: Record) -> Recorded:
    """End an open run, unless a live worker runs it, under a fence of its own."""
    check_by_hand(request)
    key = NodeKey(request.execution_id, request.node_id, request.item)
    run = turn.load(*key)
    if run is None or run.node_id.startswith("$"):
        raise _no_open_run(turn, key, request)
    waits_for_items = run.status == NodeStatus.WAITING and run.wait_kind == WaitKind.ITEMS
    if run.status == NodeStatus.PENDING or waits_for_items or _is_held(turn, run):
        raise InvalidTransition(f"node run {key.node_id}", run.status, request.outcome)
    turn.execute(_TAKE, key)
    taken = run._replace(
        status=NodeStatus.RUNNING.value, fence=run.fence + 1, worker_id=None, claimed_via=None, lease_until=None
    )
    return record_ended(turn, taken, replace(request, successors=()), claims=False)


def _is_held(turn: Turn, run: Run) -> bool:
    """Tell whether a worker runs it under a lease that has neither lapsed nor been released."""
    return run.status == NodeStatus.RUNNING and run.lease_until is not None and run.lease_until > turn.now


def _no_open_run(turn: Turn, key: NodeKey, request: Record) -> Exception:
    version = turn.execute(_VERSION, (key.execution_id,)).fetchone()
    if version is None:
        return UnknownExecution(key.execution_id)
    ended = turn.execute(_ENDED, key).fetchone()
    names = {edge.target for edges in turn.graph(*version).values() for edge in edges}
    if ended is None and (key.node_id not in names or key.node_id.startswith("$")):
        return UserError(f"execution {key.execution_id} has no node {key.node_id!r}")
    status = NodeStatus.PENDING if ended is None else ended[0]
    return InvalidTransition(f"node run {key.node_id}", status, request.outcome)
