"""Control by operators: pause, resume and cancel families of executions; fail, acknowledge and end by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from spanloom.engine.errors import InvalidTransition, StaleVersion, UnknownExecution, UserError
from spanloom.engine.store.models import Execution
from spanloom.engine.store.requests import (
    END,
    PARENT,
    START,
    ControlResult,
    NodeJob,
    NodeKey,
    RecordRequest,
    RecordResult,
)
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind, check_execution_transition
from spanloom.stores.sql.base import canonical_id, check_manual
from spanloom.stores.transitions.arrivals import fail, notify_parent, queue_held
from spanloom.stores.transitions.record import record_taken
from spanloom.stores.transitions.rows import Event, ExecutionRow, ResultRow, RunFilter, RunRow, as_data
from spanloom.stores.transitions.transaction import Transaction, always

__all__ = [
    "Answer",
    "ControlTarget",
    "acknowledge",
    "cancel",
    "cancel_open",
    "end_node",
    "fail_execution",
    "find_all",
    "pause",
    "resume",
]

_OPEN = (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED)


class ControlTarget(NamedTuple):
    """The execution to change, and the revision at which the caller has read it."""

    execution_id: str
    expected_revision: int | None
    read: Callable[[str], Execution | None]  # for a stale caller's error


Found = ExecutionRow | UserError
Answer = ControlResult | UserError


def lock_all(tx: Transaction, targets: Sequence[ControlTarget]) -> list[Found]:
    """Lock executions exclusively and return them, or UnknownExecution, in the order of the targets."""
    ids = [canonical_id(target.execution_id) for target in targets]
    locked = tx.lock_executions({known for known in ids if known is not None}, alone=always)
    return [
        locked[known] if known in locked else UnknownExecution(target.execution_id)
        for target, known in zip(targets, ids, strict=True)
    ]


def find_all(
    tx: Transaction,
    targets: Sequence[ControlTarget],
    wanted: ExecutionStatus,
    *,
    only: ExecutionStatus | None = None,
) -> list[Found]:
    """Return, for each target, the execution that is to become `wanted` or is so already, or the error that forbids it.

    `only` restricts the status from which it may change, where the table allows more of them.
    """
    found: list[Found] = []
    for target, row in zip(targets, lock_all(tx, targets), strict=True):
        try:
            found.append(row if isinstance(row, UserError) else _checked(target, row, wanted, only))
        except UserError as error:
            found.append(error)
    return found


def _checked(
    target: ControlTarget, row: ExecutionRow, wanted: ExecutionStatus, only: ExecutionStatus | None
) -> ExecutionRow:
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


def pause(tx: Transaction, targets: Sequence[ControlTarget]) -> list[Answer]:
    """Pause running executions and their running descendants, and hold their queued runs.

    Waiting runs go on waiting, and the deadline goes on counting.
    """
    found = find_all(tx, targets, ExecutionStatus.PAUSED)
    families = Families(tx, found, leave=ExecutionStatus.PAUSED)
    paused = tx.set_status(families.members(ExecutionStatus.RUNNING), ExecutionStatus.PAUSED)
    held = tx.move_runs(
        RunFilter(_ids(paused), [NodeStatus.QUEUED]), NodeStatus.HELD, due_at=None, claim_reference=None
    )
    tx.add_events([_revised(row, "execution.paused") for row in paused])
    tx.add_events([Event(run.execution_id, "node.held", run.node_id, run.item, run.attempt) for run in held])
    return families.answers(found, paused)


def resume(tx: Transaction, targets: Sequence[ControlTarget]) -> list[Answer]:
    """Set paused executions and their paused descendants running, and queue their held runs."""
    found = find_all(tx, targets, ExecutionStatus.RUNNING, only=ExecutionStatus.PAUSED)
    families = Families(tx, found, leave=ExecutionStatus.RUNNING)
    resumed = tx.set_status(families.members(ExecutionStatus.PAUSED), ExecutionStatus.RUNNING)
    tx.add_events([_revised(row, "execution.resumed") for row in resumed])
    return families.answers(found, resumed, queue_held(tx, _ids(resumed), because="resumed"))


def cancel(tx: Transaction, targets: Sequence[ControlTarget]) -> list[Answer]:
    """Cancel executions, their open descendants, and the open runs of them all."""
    found = find_all(tx, targets, ExecutionStatus.CANCELLED)
    families = Families(tx, found, leave=ExecutionStatus.CANCELLED)
    cancelled = cancel_open(tx, families.members(*_OPEN))
    for root in families.roots:
        notify_parent(tx, root)
    return families.answers(found, cancelled)


class Families:
    """The executions that a control transition reaches, with their descendants. All rows are locked exclusively.

    An execution that is a descendant of another target belongs to the family of that one. Executions with the status
    `leave` are not reached.
    """

    def __init__(self, tx: Transaction, found: Sequence[Found], *, leave: ExecutionStatus) -> None:
        rows = {row.id: row for row in found if isinstance(row, ExecutionRow) and row.status != leave}
        descendants = tx.lock_descendants(list(rows)) if rows else []
        self._owners = {execution_id: execution_id for execution_id in rows}
        for row in descendants:  # parents come before their children
            self._owners[row.id] = self._owner(tx, row)
            rows[row.id] = row
        self._tx = tx
        self._rows = rows
        self.roots = [row for row in rows.values() if self._owners[row.id] == row.id]

    def _owner(self, tx: Transaction, row: ExecutionRow) -> str:
        parent = row.parent_id
        while parent is not None and parent not in self._owners:  # it has ended before its child, and is not locked
            parent = tx.executions([parent])[parent].parent_id
        assert parent is not None, f"execution {row.id} descends from no target"
        return self._owners[parent]

    def members(self, *statuses: ExecutionStatus) -> list[ExecutionRow]:
        """Return all executions with these statuses: each root, then its descendants, parents first."""
        by_root: dict[str, list[ExecutionRow]] = {root.id: [] for root in self.roots}
        for row in self._rows.values():
            by_root[self._owners[row.id]].append(row)
        return [row for family in by_root.values() for row in family if row.status in statuses]

    def answers(
        self, found: Sequence[Found], changed: Sequence[ExecutionRow], runs: Sequence[RunRow] = ()
    ) -> list[Answer]:
        """Return the result for each target: the executions that were changed, and the jobs to push."""
        now = {row.id: row for row in changed}
        executions: dict[str, list[str]] = {}
        jobs: dict[str, list[NodeJob]] = {}
        for row in changed:
            executions.setdefault(self._owners[row.id], []).append(row.id)
        for run in runs:
            jobs.setdefault(self._owners[run.execution_id], []).append(self._tx.job(run))
        return [
            row
            if isinstance(row, UserError)
            else ControlResult(
                row.id in executions, now.get(row.id, row).revision, executions.get(row.id, ()), jobs.get(row.id, ())
            )
            for row in found
        ]


def cancel_open(tx: Transaction, rows: Sequence[ExecutionRow]) -> list[ExecutionRow]:
    """Cancel the executions that have not ended, and return them. Their parents end or start anew as well."""
    cancelled = tx.set_status([row for row in rows if row.status in _OPEN], ExecutionStatus.CANCELLED, ended_at=tx.now)
    runs = [run for run in tx.delete_runs_of(_ids(cancelled)) if run.node_id not in (START, END, PARENT)]
    tx.insert_results(
        [
            ResultRow(
                *run.key, run.node_type, NodeStatus.CANCELLED.value, None, None, None, False, run.attempt,
                run.recovery_attempts, run.fence, run.push, run.worker_id, started_at=run.started_at, ended_at=tx.now,
            )
            for run in runs
        ]
    )  # fmt: skip
    tx.add_events(
        [Event(run.execution_id, "node.cancelled", run.node_id, run.item, run.attempt, run.worker_id) for run in runs]
    )
    tx.add_events([_revised(row, "execution.cancelled") for row in cancelled])
    return cancelled


def _ids(rows: Sequence[ExecutionRow]) -> list[str]:
    return [row.id for row in rows]


def _revised(row: ExecutionRow, kind: str) -> Event:
    return Event(row.id, kind, data=as_data({"revision": row.revision}))


# ---- by hand ----


def fail_execution(tx: Transaction, target: ControlTarget, error: str) -> Answer:
    """Fail a running or paused execution, as its deadline would."""
    (row,) = find_all(tx, [target], ExecutionStatus.FAILED)
    if isinstance(row, UserError):
        return row
    if row.status == ExecutionStatus.FAILED:
        return ControlResult(False, row.revision)
    (revised,) = tx.update_executions([row], revise=True)
    fail(tx, revised, json.loads(error), None)
    return ControlResult(True, revised.revision, [row.id])


def acknowledge(tx: Transaction, targets: Sequence[ControlTarget]) -> list[Answer]:
    """Mark failed executions as dealt with."""
    rows = zip(targets, lock_all(tx, targets), strict=True)
    return [row if isinstance(row, UserError) else _acknowledge(tx, target, row) for target, row in rows]


def _acknowledge(tx: Transaction, target: ControlTarget, row: ExecutionRow) -> Answer:
    if row.acknowledged_at is not None:
        return ControlResult(False, row.revision)
    try:
        check_revision(target, row)
    except StaleVersion as error:
        return error
    if row.status != ExecutionStatus.FAILED:
        return InvalidTransition(f"execution {row.id}", row.status, "acknowledged")
    (revised,) = tx.update_executions([row], revise=True, acknowledged_at=tx.now)
    tx.add_events([_revised(revised, "execution.acknowledged")])
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
    mine = request._replace(execution_id=execution_id, fence=taken.fence, worker_id="", successors=())
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
