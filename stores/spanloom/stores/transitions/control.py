"""What operators do: pause, resume and cancel families of executions; fail, acknowledge and end by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from spanloom.engine.errors import InvalidTransition, StaleVersion, UnknownExecution, UserError
from spanloom.engine.store.models import Execution
from spanloom.engine.store.requests import END, PARENT, START, ControlResult, NodeKey, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind, check_execution_transition
from spanloom.stores.sql.base import canonical_id, check_manual
from spanloom.stores.transitions.arrivals import fail, notify_parent, queue_held
from spanloom.stores.transitions.record import record_taken
from spanloom.stores.transitions.rows import Event, ExecutionRow, ResultRow, RunRow, as_data
from spanloom.stores.transitions.transaction import RunFilter, Transaction, always

__all__ = [
    "ControlTarget",
    "acknowledge",
    "cancel",
    "cancel_open",
    "end_node",
    "fail_execution",
    "find",
    "pause",
    "resume",
]

_OPEN = (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED)


class ControlTarget(NamedTuple):
    """The execution to change, and the revision at which its caller has read it."""

    execution_id: str
    expected_revision: int | None
    read: Callable[[str], Execution | None]  # for a stale caller's error


def lock(tx: Transaction, target: ControlTarget) -> ExecutionRow:
    """Lock the execution alone. Raises UnknownExecution."""
    execution_id = canonical_id(target.execution_id)
    locked = {} if execution_id is None else tx.lock_executions([execution_id], alone=always)
    if execution_id is None or execution_id not in locked:
        raise UnknownExecution(target.execution_id)
    return locked[execution_id]


def find(
    tx: Transaction, target: ControlTarget, wanted: ExecutionStatus, *, only: ExecutionStatus | None = None
) -> ExecutionRow:
    """Return the execution that is to become `wanted`, or is so already; raise what forbids the change.

    `only` is the one status from which this way leads, where the table knows other ways as well.
    """
    row = lock(tx, target)
    if row.status == wanted and only is not ExecutionStatus.FAILED:
        return row
    check_revision(target, row)
    if only is not None and row.status != only:
        raise InvalidTransition(f"execution {row.id}", row.status, wanted)
    check_execution_transition(row.id, ExecutionStatus(row.status), wanted)
    return row


def check_revision(target: ControlTarget, row: ExecutionRow) -> None:
    """Raise StaleVersion if the caller has read another revision."""
    expected = target.expected_revision
    if expected is not None and expected != row.revision:
        raise StaleVersion(f"execution {row.id}", expected, row.revision, target.read(row.id))


def pause(tx: Transaction, target: ControlTarget) -> ControlResult:
    """Pause a running execution and its running descendants; what is queued in them is held.

    What waits goes on waiting, and the deadline goes on counting.
    """
    root = find(tx, target, ExecutionStatus.PAUSED)
    if root.status == ExecutionStatus.PAUSED:
        return ControlResult(False, root.revision)
    family = _in_family(tx, root, ExecutionStatus.RUNNING)
    paused = tx.set_status(family, ExecutionStatus.PAUSED)
    held = tx.move_runs(
        RunFilter(_ids(paused), [NodeStatus.QUEUED]), NodeStatus.HELD, due_at=None, claim_reference=None
    )
    tx.add_events([_revised(row, "execution.paused") for row in paused])
    tx.add_events([Event(run.execution_id, "node.held", run.node_id, run.item, run.attempt) for run in held])
    return ControlResult(True, paused[0].revision, _ids(paused))


def resume(tx: Transaction, target: ControlTarget) -> ControlResult:
    """Set a paused execution and its paused descendants running; what is held in them is queued."""
    root = find(tx, target, ExecutionStatus.RUNNING, only=ExecutionStatus.PAUSED)
    if root.status == ExecutionStatus.RUNNING:
        return ControlResult(False, root.revision)
    resumed = tx.set_status(_in_family(tx, root, ExecutionStatus.PAUSED), ExecutionStatus.RUNNING)
    tx.add_events([_revised(row, "execution.resumed") for row in resumed])
    runs = queue_held(tx, _ids(resumed), because="resumed")
    return ControlResult(True, resumed[0].revision, _ids(resumed), [run.job for run in runs])


def cancel(tx: Transaction, target: ControlTarget) -> ControlResult:
    """Cancel an execution, its open descendants, and the open runs of them all."""
    root = find(tx, target, ExecutionStatus.CANCELLED)
    if root.status == ExecutionStatus.CANCELLED:
        return ControlResult(False, root.revision)
    cancelled = cancel_open(tx, [root, *tx.lock_descendants([root.id])])
    notify_parent(tx, root)
    return ControlResult(True, root.revision + 1, _ids(cancelled))


def cancel_open(tx: Transaction, rows: Sequence[ExecutionRow]) -> list[ExecutionRow]:
    """Cancel those that have not ended, and return them. Their parents end or start anew as well."""
    cancelled = tx.set_status([row for row in rows if row.status in _OPEN], ExecutionStatus.CANCELLED, ended_at=tx.now)
    runs = [run for run in tx.delete_runs_of(_ids(cancelled)) if run.node_id not in (START, END, PARENT)]
    tx.insert_results(
        [
            ResultRow(
                *run.key, run.node_type, NodeStatus.CANCELLED.value, None, None, None, False, run.attempt,
                run.recovery_attempts, run.fence, run.push, run.worker_id, None, run.started_at, tx.now,
            )
            for run in runs
        ]
    )  # fmt: skip
    tx.add_events(
        [Event(run.execution_id, "node.cancelled", run.node_id, run.item, run.attempt, run.worker_id) for run in runs]
    )
    tx.add_events([_revised(row, "execution.cancelled") for row in cancelled])
    return cancelled


def _in_family(tx: Transaction, root: ExecutionRow, status: ExecutionStatus) -> list[ExecutionRow]:
    return [root, *(row for row in tx.lock_descendants([root.id]) if row.status == status)]


def _ids(rows: Sequence[ExecutionRow]) -> list[str]:
    return [row.id for row in rows]


def _revised(row: ExecutionRow, kind: str) -> Event:
    return Event(row.id, kind, data=as_data({"revision": row.revision}))


# ---- by hand ----


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
    locked = {} if execution_id is None else tx.lock_executions([execution_id], alone=always)
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
