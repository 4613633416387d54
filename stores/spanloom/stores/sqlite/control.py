"""What operators do to a whole family of executions on SQLite: find it, check what they read of it, pause, resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spanloom.engine.errors import InvalidTransition, StaleVersion, UnknownExecution
from spanloom.engine.store.models import Execution
from spanloom.engine.store.requests import ControlResult, NodeJob, NodeKey
from spanloom.engine.store.states import ExecutionStatus, check_execution_transition
from spanloom.stores.schema import from_micros
from spanloom.stores.sqlite.transaction import SUSPECT_MICROS, Transaction

__all__ = ["ControlTarget", "FamilyMember", "descendants", "find", "pause", "queue_held", "resume"]

_FIND = "SELECT id, status, revision, priority, parent_id FROM executions WHERE id = ?"

_DESCENDANTS = """
WITH RECURSIVE family (id, status, revision, priority, parent_id, level, created_at) AS (
  SELECT id, status, revision, priority, parent_id, 1, created_at FROM executions WHERE parent_id = ?
  UNION ALL
  SELECT e.id, e.status, e.revision, e.priority, e.parent_id, level + 1, e.created_at
  FROM family JOIN executions e ON e.parent_id = family.id
)
SELECT id, status, revision, priority, parent_id FROM family ORDER BY level, created_at, id
"""

_SET_STATUS = "UPDATE executions SET status = ?, revision = revision + 1 WHERE id = ? AND status = ?"

_HOLD_QUEUED = """
UPDATE node_runs SET status = 'held', claim_reference = NULL, due_at = NULL
WHERE execution_id = ? AND status = 'queued'
RETURNING node_id, item, attempt
"""

_QUEUE_HELD = """
UPDATE node_runs SET status = 'queued', push = push + 1, pushed_epoch = ?, pushed_at = ?, due_at = ?
WHERE execution_id = ? AND status = 'held'
RETURNING node_id, item, attempt, node_type, queue, priority, push, recovery_attempts
"""


class FamilyMember(NamedTuple):
    """One execution of a family."""

    id: str
    status: str
    revision: int
    priority: str
    parent_id: str | None


class ControlTarget(NamedTuple):
    """What a caller asks to be changed: which execution, and at which revision it was read."""

    execution_id: str
    expected_revision: int | None
    read: Callable[[str], Execution | None]  # for a stale caller's error


def find(
    tx: Transaction, target: ControlTarget, wanted: ExecutionStatus, *, only: ExecutionStatus | None = None
) -> FamilyMember:
    """Return the execution that is to become `wanted`, or is so already; raise what forbids the change.

    `only` is the one status from which this way leads, where the table knows other ways as well.
    """
    execution_id = target.execution_id
    row = tx.execute(_FIND, (execution_id,)).fetchone()
    if row is None:
        raise UnknownExecution(execution_id)
    member = FamilyMember._make(row)
    if member.status == wanted and only is not ExecutionStatus.FAILED:
        return member
    expected = target.expected_revision
    if expected is not None and expected != member.revision:
        raise StaleVersion(f"execution {execution_id}", expected, member.revision, target.read(execution_id))
    if only is not None and member.status != only:
        raise InvalidTransition(f"execution {execution_id}", member.status, wanted)
    check_execution_transition(execution_id, ExecutionStatus(member.status), wanted)
    return member


def descendants(tx: Transaction, execution_id: str) -> list[FamilyMember]:
    """List an execution's children, their children and so on, parents first."""
    return [FamilyMember._make(row) for row in tx.execute(_DESCENDANTS, (execution_id,)).fetchall()]


def pause(tx: Transaction, target: ControlTarget) -> ControlResult:
    """Pause a running execution and its running descendants."""
    root = find(tx, target, ExecutionStatus.PAUSED)
    if root.status == ExecutionStatus.PAUSED:
        return ControlResult(False, root.revision)
    changed: list[str] = []
    for member in _those(tx, root, ExecutionStatus.RUNNING):
        tx.execute(_SET_STATUS, (ExecutionStatus.PAUSED.value, member.id, member.status))
        tx.event(member.id, "execution.paused", data={"revision": member.revision + 1})
        for node_id, item, attempt in _in_order(tx.execute(_HOLD_QUEUED, (member.id,)).fetchall()):
            tx.event(member.id, "node.held", NodeKey(member.id, node_id, item), attempt=attempt)
        changed.append(member.id)
    return ControlResult(True, root.revision + 1, changed)


def resume(tx: Transaction, target: ControlTarget) -> ControlResult:
    """Set a paused execution and its paused descendants running."""
    root = find(tx, target, ExecutionStatus.RUNNING, only=ExecutionStatus.PAUSED)
    if root.status == ExecutionStatus.RUNNING:
        return ControlResult(False, root.revision)
    changed: list[str] = []
    jobs: list[NodeJob] = []
    for member in _those(tx, root, ExecutionStatus.PAUSED):
        tx.execute(_SET_STATUS, (ExecutionStatus.RUNNING.value, member.id, member.status))
        tx.event(member.id, "execution.resumed", data={"revision": member.revision + 1})
        jobs.extend(queue_held(tx, member.id, because="resumed"))
        changed.append(member.id)
    return ControlResult(True, root.revision + 1, changed, jobs)


def queue_held(tx: Transaction, execution_id: str, *, because: str) -> list[NodeJob]:
    """Queue all held runs of an execution that runs again, each under its next push number."""
    at = (tx.epoch, tx.now, tx.now + SUSPECT_MICROS, execution_id)
    pushed_at = from_micros(tx.now)
    jobs: list[NodeJob] = []
    for row in _in_order(tx.execute(_QUEUE_HELD, at).fetchall()):
        node_id, item, attempt, node_type, queue, priority, push, recovery_attempts = row
        key = NodeKey(execution_id, node_id, item)
        tx.event(execution_id, "node.queued", key, attempt=attempt, data={"push": push, "because": because})
        jobs.append(NodeJob(*key, node_type, queue, priority, push, pushed_at, recovery_attempts))
    return jobs


def _those(tx: Transaction, root: FamilyMember, status: ExecutionStatus) -> list[FamilyMember]:
    return [root, *(member for member in descendants(tx, root.id) if member.status == status)]


def _in_order(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Sort rows by node and item: an update returns them in whatever order it found them."""
    return sorted(rows, key=lambda row: row[:2])
