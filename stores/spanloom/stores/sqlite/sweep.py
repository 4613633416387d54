"""The sweep on SQLite: lapsed leases, due rows and lost jobs, each moved on; and a worker's own goodbye."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from spanloom.engine.store.port import queue_key
from spanloom.engine.store.requests import END, PARENT, START, NodeJob, NodeKey, SweepResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.stores.schema import to_micros
from spanloom.stores.sqlite.children import wake_parent
from spanloom.stores.sqlite.executions import fail_execution
from spanloom.stores.sqlite.starts import begin
from spanloom.stores.sqlite.transaction import Run, Transaction

__all__ = ["LostJobCheck", "retire", "sweep"]

LONGEST_LOOK = 60_000_000  # microseconds: a queued run is looked at this often however old it is
RELEASED_KEPT = 3_600_000_000  # microseconds: how long a worker is known after its lease
LONGEST_BACKOFF = 300_000_000  # and pushed again this often however often it was pushed

_RELEASE_LAPSED = "UPDATE workers SET released_at = ? WHERE released_at IS NULL AND lease_until <= ?"

_LOST_RUNS = """
SELECT r.execution_id, r.node_id, r.item FROM workers w JOIN node_runs r ON r.worker_id = w.id
WHERE w.released_at IS NOT NULL AND r.status = 'running' LIMIT ?
"""

# Delayed starts and deadlines, which change an execution's status.
_DUE_EXECUTIONS = """
SELECT execution_id, node_id, item FROM node_runs
WHERE due_at IS NOT NULL AND due_at <= ? AND node_id IN ('$start', '$end') ORDER BY due_at LIMIT ?
"""

# In the order of the runs that they wake.
_ENDED_CHILDREN = """
SELECT due.execution_id, due.node_id, due.item
FROM (SELECT execution_id, node_id, item FROM node_runs
      WHERE due_at IS NOT NULL AND due_at <= ? AND node_id = '$parent' ORDER BY due_at LIMIT ?) due
JOIN executions e ON e.id = due.execution_id
ORDER BY e.parent_id, e.parent_node_id, e.parent_item
"""

_DUE = """
SELECT execution_id, node_id, item FROM node_runs
WHERE due_at IS NOT NULL AND due_at <= ? AND node_id NOT IN ('$start', '$end', '$parent') ORDER BY due_at LIMIT ?
"""

_OLDER_EPOCH = """
SELECT execution_id, node_id, item FROM node_runs WHERE status = 'queued' AND pushed_epoch < ? LIMIT ?
"""

_HELD_BY = """
SELECT execution_id, node_id, item FROM node_runs WHERE worker_id = ? AND status = 'running'
ORDER BY execution_id, node_id, item
"""

_RELEASE = "UPDATE workers SET released_at = ? WHERE id = ? AND released_at IS NULL"

_FORGET_WORKERS = """
DELETE FROM workers WHERE released_at < ?
  AND NOT EXISTS (SELECT 1 FROM node_runs n WHERE n.worker_id = workers.id AND n.status = 'running')
"""

_DEFER = "UPDATE node_runs SET due_at = ? WHERE execution_id = ? AND node_id = ? AND item = ?"

_DUE_AT = "SELECT due_at FROM node_runs WHERE execution_id = ? AND node_id = ? AND item = ?"

_DELETE_START = """
DELETE FROM node_runs WHERE execution_id = ? AND node_id = '$start' AND item = 0 AND status = 'waiting'
"""

_DEADLINE = "SELECT deadline_seconds FROM executions WHERE id = ?"


class LostJobCheck(NamedTuple):
    """What a sweep judges queued runs by."""

    heads: Mapping[str, datetime | None]  # of each list: when its head was pushed, None if it is empty
    micros: int

    def pushed_again(self, run: Run, now: int) -> bool:
        """Tell whether the run's job must be lost: its list is past it, or empty, for long enough."""
        key = queue_key(run.queue, run.priority)
        if key not in self.heads or run.pushed_at is None:
            return False
        head = self.heads[key]
        if head is None:
            return now - run.pushed_at >= self.micros
        return to_micros(head) - run.pushed_at > self.micros

    def wait(self, wanted: int, longest: int) -> int:
        """Return how long to wait for the next look at a run, within the limits."""
        return max(self.micros, min(wanted, longest))


def sweep(tx: Transaction, suspicion: LostJobCheck, *, limit: int) -> SweepResult:
    """Move on at most `limit` rows that are lost or due."""
    tx.execute(_RELEASE_LAPSED, (tx.now, tx.now))
    tx.execute(_FORGET_WORKERS, (tx.now - RELEASED_KEPT,))
    one = _Sweep(tx, suspicion)
    left = limit
    # What changes an execution's status comes first: it decides whether the others are queued or held.
    for finds in (
        ((_DUE_EXECUTIONS, (tx.now,)),),
        ((_ENDED_CHILDREN, (tx.now,)),),
        ((_LOST_RUNS, ()), (_DUE, (tx.now,)), (_OLDER_EPOCH, (tx.epoch,))),
    ):
        keys: dict[NodeKey, None] = {}
        for find, given in finds:
            rows = tx.execute(find, (*given, left)).fetchall() if left else ()
            found = [key for key in map(NodeKey._make, rows) if key not in keys]
            left -= len(found)
            keys.update(dict.fromkeys(found))
        for key in keys if len(finds) == 1 else sorted(keys):
            run = tx.load(*key)
            if run is not None:
                one.move(run)
    return SweepResult(one.jobs, dict(one.moved), more=left == 0, ended=one.ended)


def retire(tx: Transaction, worker_id: str) -> list[NodeJob]:
    """Close a worker's lease and queue again what it still held, without a loss counted."""
    jobs: list[NodeJob] = []
    for key in tx.execute(_HELD_BY, (worker_id,)).fetchall():
        run = tx.load(*key)
        assert run is not None
        # Without the fence that the event of a record carries: had its worker sent one, it would be refused now.
        told = {"because": "retired"}
        tx.event(run.execution_id, "node.released", run, attempt=run.attempt, worker_id=worker_id, data=told)
        job = tx.requeue(run, because="retired")
        if job is not None:
            jobs.append(job)
    tx.execute(_RELEASE, (tx.now, worker_id))
    return jobs


class _Sweep:
    """One pass: what it moved, by cause, and what is to be pushed for it."""

    def __init__(self, tx: Transaction, suspicion: LostJobCheck) -> None:
        self.jobs: list[NodeJob] = []
        self.moved: Counter[str] = Counter()
        self.ended: list[str] = []
        self._turn = tx
        self._suspicion = suspicion

    def move(self, run: Run) -> None:
        """Do what this row calls for, as it is read now: what was moved before it may have held it."""
        if run.node_id == START:
            self._start(run)
        elif run.node_id == END:
            self._miss_deadline(run)
        elif run.node_id == PARENT:
            self._wake_parent(run)
        elif run.status == NodeStatus.RUNNING:
            self.lost_run(run)
        elif run.status == NodeStatus.WAITING:
            cause = run.wait_kind or "timer"
            self.moved[cause] += 1
            self._requeue(run, cause)
        elif run.status == NodeStatus.QUEUED:
            self._judge(run)

    def lost_run(self, run: Run) -> None:
        """Take a run from a worker whose lease lapsed; whoever claims it next learns that it was lost."""
        self.moved["lost_worker"] += 1
        self._requeue(run, "lost_worker", recovery_attempts=1)

    def _judge(self, run: Run) -> None:
        if run.pushed_epoch < self._turn.epoch:
            self.moved["lost_redis"] += 1
            self._requeue(run, "lost_redis")
        elif self._suspicion.pushed_again(run, self._turn.now):
            self.moved["lost_job"] += 1
            # Not by the number of pushes alone, which had other reasons too, nor by how long it was in a backlog.
            trusted = self._due_at(run) - (run.pushed_at or 0)
            wait = self._suspicion.wait(min(2 * trusted, self._suspicion.micros << min(run.push, 20)), LONGEST_BACKOFF)
            self._requeue(run, "lost_job")
            self._defer(run, self._turn.now + wait)
        else:
            age = self._turn.now - (run.pushed_at or self._turn.now)
            self._defer(run, self._turn.now + self._suspicion.wait(age, LONGEST_LOOK))

    def _start(self, run: Run) -> None:
        self.moved["start"] += 1
        self._turn.execute(_DELETE_START, (run.execution_id,))
        self.jobs.extend(begin(self._turn, run.execution_id))

    def _wake_parent(self, run: Run) -> None:
        woken, job = wake_parent(self._turn, run.execution_id)
        if woken:
            self.moved["child"] += 1
        if job is not None:
            self.jobs.append(job)

    def _miss_deadline(self, run: Run) -> None:
        current = ExecutionStatus(run.execution_status)
        if current.ended:
            self._defer(run, None)
            return
        self.moved["deadline"] += 1
        (seconds,) = self._turn.execute(_DEADLINE, (run.execution_id,)).fetchone()
        message = f"execution {run.execution_id} had not ended {seconds:g} s after its start"
        fail_execution(self._turn, run, current, {"type": "DeadlineExceeded", "message": message})
        self.ended.append(run.execution_id)

    def _requeue(self, run: Run, because: str, *, recovery_attempts: int = 0) -> None:
        job = self._turn.requeue(run, recovery_attempts=recovery_attempts, because=because)
        if job is not None:
            self.jobs.append(job)

    def _due_at(self, run: Run) -> int:
        (due_at,) = self._turn.execute(_DUE_AT, (run.execution_id, run.node_id, run.item)).fetchone()
        return int(due_at)

    def _defer(self, run: Run, due_at: int | None) -> None:
        self._turn.execute(_DEFER, (due_at, run.execution_id, run.node_id, run.item))
