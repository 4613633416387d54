"""The sweep of lapsed leases, due rows and lost jobs; and the end of a worker's lease."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from spanloom.engine.store.port import queue_key
from spanloom.engine.store.requests import END, PARENT, START, NodeJob, NodeKey, SweepResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.transitions.arrivals import fail, requeue
from spanloom.stores.transitions.rows import Event, ExecutionRow, RunRow, as_data
from spanloom.stores.transitions.start import begin
from spanloom.stores.transitions.transaction import Transaction, always
from spanloom.stores.transitions.waits.children import wake_parents
from spanloom.stores.transitions.waits.rules import WAITS

__all__ = ["LostJobCheck", "find_due", "forget_pushes", "sweep", "sweep_rows", "unregister_worker"]

LONGEST_CHECK = timedelta(minutes=1)  # between checks of a queued run, however old it is
LONGEST_BACKOFF = timedelta(minutes=5)  # between pushes of a queued run, however often it was pushed


class LostJobCheck(NamedTuple):
    """The rule by which the job of a queued run counts as lost."""

    heads: Mapping[str, datetime | None]  # of each list: when its head was pushed, None if it is empty
    after: timedelta

    def is_lost(self, tx: Transaction, run: RunRow) -> bool:
        """Return whether a run's list has been past it, or empty, for long enough."""
        key = queue_key(run.queue, run.priority)
        if (of_type := f"{key}@{run.node_type}") in self.heads:  # such jobs were put beside the others
            key = of_type
        if key not in self.heads or run.pushed_at is None:
            return False
        head = self.heads[key]
        if head is None:
            return tx.elapsed(run.pushed_at, tx.now) >= self.after
        return tx.elapsed(run.pushed_at, tx.as_time(head)) > self.after

    def pause(self, wanted: timedelta, longest: timedelta) -> timedelta:
        """Return the time until the next check of a run, within the limits."""
        return max(self.after, min(wanted, longest))


def sweep(tx: Transaction, check: LostJobCheck, *, limit: int) -> SweepResult:
    """Move at most `limit` rows that are lost or due. Rows locked by other transactions are left to the next pass."""
    tx.release_lapsed_leases()
    sweep_pass = _Sweep(tx, check, limit)
    sweep_pass.starts_and_deadlines(tx.due_runs(limit, [START, END]))
    sweep_pass.ended_children(tx.due_runs(sweep_pass.left, [PARENT]) if sweep_pass.left > 0 else [])
    sweep_pass.other_runs(_others(tx, sweep_pass.left))
    return sweep_pass.result


def find_due(tx: Transaction, *, limit: int) -> list[NodeKey]:
    """Mark the leases that have lapsed, and return the rows that one sweep would try to move."""
    tx.release_lapsed_leases()
    return [*tx.due_runs(limit, [START, END]), *tx.due_runs(limit, [PARENT]), *_others(tx, limit)][:limit]


def sweep_rows(tx: Transaction, check: LostJobCheck, keys: Sequence[NodeKey]) -> SweepResult:
    """Move those of these rows that are still lost or due."""
    sweep_pass = _Sweep(tx, check, len(keys) + 1)
    sweep_pass.starts_and_deadlines([key for key in keys if key.node_id in (START, END)])
    sweep_pass.ended_children([key for key in keys if key.node_id == PARENT])
    sweep_pass.other_runs([key for key in keys if key.node_id not in (START, END, PARENT)])
    return sweep_pass.result


def _others(tx: Transaction, limit: int) -> list[NodeKey]:
    """Return the runs that are lost or due again, at most `limit`."""
    found: dict[NodeKey, None] = {}
    for find in (tx.lost_runs, tx.due_runs, tx.outdated_runs):
        found |= dict.fromkeys(find(limit) if limit > 0 else [])
    return list(found)[: max(limit, 0)]


def unregister_worker(tx: Transaction, worker_id: str) -> list[NodeJob]:
    """Close a worker's lease and queue its running runs again. Their recovery attempts do not rise."""
    tx.close_lease(worker_id)
    keys = tx.runs_of_worker(worker_id)
    executions = tx.lock_executions({key.execution_id for key in keys})
    jobs: list[NodeJob] = []
    for key, run in sorted(tx.lock_runs(keys).items()):
        if run.worker_id != worker_id or run.status != NodeStatus.RUNNING:
            continue
        # Without a fence, which the event of a record has: a record of this claim must not be taken for repeated.
        details = as_data({"because": "retired"})
        tx.add_events([Event(*key[:1], "node.released", run.node_id, run.item, run.attempt, worker_id, details)])
        new = requeue(tx, run, executions[key.execution_id].status, because="retired")
        if new.status == NodeStatus.QUEUED:
            jobs.append(tx.job(new))
    return jobs


def forget_pushes(tx: Transaction, jobs: Sequence[NodeJob]) -> None:
    """Mark the runs of jobs that were not pushed as of no epoch, unless they have moved on since then."""
    pushes = {NodeKey(job.execution_id, job.node_id, job.item): job.push for job in jobs}
    runs = tx.lock_runs(pushes, status=NodeStatus.QUEUED)
    tx.update_runs(
        [(run, run._replace(pushed_epoch=0)) for key, run in sorted(runs.items()) if run.push == pushes[key]]
    )


class _Sweep:
    """One pass: the number of moved rows by cause, and the jobs to push."""

    def __init__(self, tx: Transaction, check: LostJobCheck, limit: int) -> None:
        self.jobs: list[NodeJob] = []
        self.moved: Counter[str] = Counter()
        self.ended: list[str] = []
        self.left = limit
        self.touched = 0
        self._tx = tx
        self._check = check

    @property
    def result(self) -> SweepResult:
        """The result of the pass."""
        more = self.left <= 0 and self.touched > 0
        return SweepResult(self.jobs, dict(self.moved), more=more, ended=self.ended)

    # ---- 1. changes of an execution's status ----

    def starts_and_deadlines(self, keys: Sequence[NodeKey]) -> None:
        """Begin executions whose delay is over, and fail those whose deadline has passed."""
        for key in self._taken(keys):
            execution = self._tx.lock_executions([key.execution_id], alone=always, wait=False)
            run = self._tx.runs([key]).get(key)
            if not execution or run is None or run.due_at is None or run.due_at > self._tx.now:
                continue
            self.touched += 1
            if key.node_id == START:
                self._begin(execution[key.execution_id], key)
            else:
                self._miss_deadline(execution[key.execution_id], run)

    def _begin(self, execution: ExecutionRow, key: NodeKey) -> None:
        self.moved["start"] += 1
        self._tx.delete_runs([key])
        (running,) = self._tx.set_status([execution], ExecutionStatus.RUNNING, revise=False, started_at=self._tx.now)
        self.jobs.extend(begin(self._tx, running))

    def _miss_deadline(self, execution: ExecutionRow, run: RunRow) -> None:
        if ExecutionStatus(execution.status).ended:
            self._tx.update_runs([(run, run._replace(due_at=None))])
            return
        self.moved["deadline"] += 1
        message = f"execution {execution.id} had not ended {execution.deadline_seconds:g} s after its start"
        fail(self._tx, execution, {"type": "DeadlineExceeded", "message": message}, None)
        self.ended.append(execution.id)

    # ---- 2. ended children ----

    def ended_children(self, keys: Sequence[NodeKey]) -> None:
        """Wake the parents' runs that wait for ended children."""
        if self._taken(keys):
            woken = wake_parents(self._tx, [key.execution_id for key in keys], wait=False)
            self.touched += woken.passed
            self.jobs.extend(woken.jobs)
            if woken.children:
                self.moved["child"] += len(woken.children)

    # ---- 3. all other runs ----

    def other_runs(self, keys: Sequence[NodeKey]) -> None:
        """Queue runs that are lost or due again: lock them, and decide by the locked rows."""
        self._taken(keys)
        executions = self._tx.lock_executions({key.execution_id for key in keys}, wait=False)
        runs = self._tx.lock_runs([key for key in keys if key.execution_id in executions], wait=False)
        gone = self._tx.released_workers({run.worker_id for run in runs.values() if run.worker_id is not None})
        for _, run in sorted(runs.items()):
            if (cause := self._cause(run, gone)) is not None:
                self.touched += 1
                self._move(run, executions[run.execution_id].status, cause)

    def _cause(self, run: RunRow, gone: set[str]) -> str | None:
        """Return the cause for which a run is moved. None: another transaction has moved it already."""
        if run.status == NodeStatus.RUNNING:
            return "lost_worker" if run.worker_id in gone else None
        due = run.due_at is not None and run.due_at <= self._tx.now
        if run.status == NodeStatus.WAITING:
            kind = WaitKind(run.wait_kind or WaitKind.TIMER)
            return kind.value if due and WAITS[kind].timed else None
        if run.status != NodeStatus.QUEUED:
            return None
        if due and not run.push:
            return "start"  # from a caller's own transaction
        if run.pushed_epoch < self._tx.epoch:
            return "lost_redis"
        if not due:
            return None
        return "lost_job" if self._check.is_lost(self._tx, run) else "check"

    def _move(self, run: RunRow, execution_status: str, cause: str) -> None:
        if cause == "check" and execution_status == ExecutionStatus.RUNNING:
            assert run.pushed_at is not None
            pause = self._check.pause(self._tx.elapsed(run.pushed_at, self._tx.now), LONGEST_CHECK)
            self._tx.update_runs([(run, run._replace(due_at=self._tx.after(pause)))])
            return
        if cause != "check":
            self.moved[cause] += 1
        new = requeue(
            self._tx, run, execution_status, because=cause, losses=cause == "lost_worker",
        )  # fmt: skip
        if new.status == NodeStatus.QUEUED:
            if cause == "lost_job":
                pause = self._backoff(run)
                deferred = new._replace(due_at=self._tx.after(pause))
                self._tx.update_runs([(new, deferred)])
                new = deferred
            self.jobs.append(self._tx.job(new))

    def _backoff(self, run: RunRow) -> timedelta:
        """Return the time until a run that was found lost is checked again, twice as long each time.

        It depends neither on the number of pushes alone, which have other causes too, nor on the time in a backlog.
        """
        assert run.due_at is not None
        assert run.pushed_at is not None
        trusted = self._tx.elapsed(run.pushed_at, run.due_at)
        return self._check.pause(min(2 * trusted, self._check.after * 2 ** min(run.push, 20)), LONGEST_BACKOFF)

    def _taken(self, keys: Sequence[NodeKey]) -> Sequence[NodeKey]:
        self.left -= len(keys)
        return keys
