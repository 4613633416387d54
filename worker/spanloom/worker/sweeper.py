"""The sweeper: the periodic pass of every worker that moves due rows on, and pushes lost jobs again."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog

from spanloom.engine.errors import ConfigurationError, QueueUnavailable, StoreUnavailable
from spanloom.engine.queue.job_pusher import JobPusher
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_epoch import NO_EPOCH, Epoch
from spanloom.engine.queue.redis_look import RedisLook
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import SweepResult
from spanloom.engine.store.states import ExecutionStatus
from spanloom.engine.telemetry.instruments import count_ended, instruments
from spanloom.worker.options import WorkerOptions
from spanloom.worker.queue.depth import QueueDepths
from spanloom.worker.queue.started_jobs import StartedJobCleaner
from spanloom.worker.service import JOIN_SECONDS, WorkerEvents
from spanloom.worker.slots import Slots
from spanloom.worker.store_troubles import StoreTroubles

__all__ = ["Sweeper"]

_log = structlog.get_logger("spanloom.worker")
_TURN = 0.75  #: of the time between two passes: less than any pause, so that one worker alone never misses its turn
_CLEAN_SECONDS = 30.0  #: between checks for jobs of workers that died before they claimed them
_PATIENCE_SECONDS = 5.0  #: how long passes may fail before the worker is not ready
_MAX_PAUSE = 1.0  #: short: jobs that were lost with a server are to run again soon after it is back
_RENEWAL_SECONDS = 2.0  #: longer than any worker waits between renewals that failed


class Sweeper:
    """The service that sweeps, on a thread of its own. Any number of them cooperate."""

    def __init__(
        self,
        store: ExecutionStore,
        queue: NodeQueue,
        epoch: Epoch,
        list_names: Sequence[str],
        options: WorkerOptions,
        events: WorkerEvents,
        troubles: StoreTroubles | None = None,
        slots: Slots | None = None,
    ) -> None:
        """With `slots`, passes are half as often while nothing runs there and the store has nothing due."""
        self._store = store
        self._troubles = troubles or StoreTroubles()
        self._queue = queue
        self._epoch = epoch
        self._list_names = list_names
        self._options = options
        self._events = events
        self._pusher = JobPusher(store, queue)
        self.queue_depths = QueueDepths(queue)
        self._changed = threading.Condition()
        self._wake_at = float("inf")
        self._was_due = False  # a row was, when the pause ended
        self._slots = slots
        self._ended = 0  # in the slots, as of the last pass
        self._more_pause = 0.0  # after the regular one, unless something has run in a slot
        self._stopped = False
        self.started_jobs = StartedJobCleaner(store, queue, list_names)
        self._clean_at = time.monotonic() + random.uniform(0.5, 1.0) * _CLEAN_SECONDS  # noqa: S311  as below
        self._redis_away = False  # and that was logged
        self._well_at = time.monotonic()  # the end of the latest pass that did all of its work
        self._problem: str | None = None  # of the passes since then
        self.turns = 0  #: rises with each pass, also with one that found a server away
        self._thread = threading.Thread(target=self._run, name="spanloom-sweep", daemon=True)

    @property
    def died(self) -> bool:
        """Whether the thread has ended without stop()."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stopped

    @property
    def longest_pause(self) -> float:
        """Seconds that may pass between two passes if no server is slow."""
        return max(1.2 * 2 * self._options.sweep_seconds, 1.2 * _MAX_PAUSE) + _RENEWAL_SECONDS

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def finish(self) -> None:
        """Let the pass that runs now be the last one, without waiting for its end."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the pass that runs now."""
        self.finish()
        self._thread.join(JOIN_SECONDS)

    @property
    def problem(self) -> str | None:
        """Why no pass has done all of its work for some seconds; None if one has."""
        if self._problem is None or time.monotonic() - self._well_at < _PATIENCE_SECONDS:
            return None
        return f"no pass has ended well for {time.monotonic() - self._well_at:.0f} s: {self._problem}"

    def due_in(self, seconds: float) -> None:
        """Make a pass in `seconds`, when a row becomes due, so that it need not wait for the next regular pass."""
        with self._changed:
            self._wake_at = min(self._wake_at, time.monotonic() + seconds + 0.005)
            self._changed.notify()

    def sweep(self, *, shared: bool = False) -> int:
        """Make one whole pass and return the number of rows it moved.

        A `shared` pass leaves the store to the worker that began to sweep it a moment ago, if there is one: a hundred
        workers need no more passes than one, and would wait for each other's locks.

        While Redis is away the store is swept all the same: deadlines pass, and lapsed leases are released. Node runs
        that become queued then belong to no epoch, so the first pass that reaches Redis pushes them. The pass removes
        the jobs of dead workers from RQ's registry every 30 seconds, and after it has recovered a dead worker's claims.

        Raises StoreUnavailable, ConfigurationError, and QueueUnavailable once the store is swept.
        """
        epoch, away = NO_EPOCH, None
        look: RedisLook | None = None
        self._ended, self._more_pause = 0 if self._slots is None else self._slots.ended, 0.0
        try:
            look = self._queue.look(_TURN * self._options.sweep_seconds if shared else 0.0)
            epoch = self._epoch.check(look)
        except QueueUnavailable as error:
            epoch, away = NO_EPOCH, error
        is_anothers = look is not None and not look.has_turn
        moved: Counter[str] = Counter()
        more, due_in = True, 0.0
        while more and not self._stopped:  # a stop must not wait for many passes
            heads: Mapping[str, datetime | None] = {}  # an unknown list is not used to find lost jobs
            if away is None:
                try:
                    heads = self._queue.heads(self._list_names, seen=self._events.lists_seen, look=look)
                    look = None  # for the next turn it is old
                except QueueUnavailable as error:
                    epoch, away = NO_EPOCH, error
            if heads and instruments() is not None:
                self.queue_depths.refresh(heads)
            if is_anothers:
                break
            swept = self._store.sweep(
                heads=heads, epoch=epoch, lost_job_after_seconds=self._options.lost_job_after_seconds
            )
            moved.update(swept.moved)
            more, due_in = swept.more, 0.0 if swept.errors else swept.due_in_seconds
            self._report(swept)
            if away is None and (swept.jobs or swept.ended):
                try:
                    self._pusher.push(swept.jobs, ended=swept.ended, changed={job.execution_id for job in swept.jobs})
                except QueueUnavailable as error:
                    epoch, away = NO_EPOCH, error
        if lost := {cause: count for cause, count in moved.items() if count and cause.startswith("lost")}:
            _log.info("recovered", **lost)
        if moved["lost_worker"]:
            self._clean_at = 0.0
        if away is not None:
            raise away
        if not moved.total():
            usual = self._options.sweep_seconds
            self._more_pause = max(0.0, min(due_in - usual, usual))
        if time.monotonic() >= self._clean_at:
            self.started_jobs.clean()
            self._queue.drop_empty_side_lists()
            self._clean_at = time.monotonic() + _CLEAN_SECONDS
        return moved.total()

    def _report(self, swept: SweepResult) -> None:
        """Report the result of a sweep to the callbacks and to the metrics."""
        for execution_id, error in swept.errors.items():
            subject = f" of execution {execution_id}"
            self._troubles.met("sweep", error, "row_not_swept", subject=subject, execution_id=execution_id)
        if swept.ended:
            self._events.executions_ended(swept.ended)
        if (measured := instruments()) is not None:
            measured.swept(swept.moved)
            count_ended(self._store, swept.ended, ExecutionStatus.FAILED)  # by their deadlines

    def _run(self) -> None:
        pause, swept = self._options.sweep_seconds, time.monotonic()
        while self._wait(pause * random.uniform(0.8, 1.2)):  # noqa: S311  so that sweepers do not run in step
            try:
                shared = not self._was_due
                if time.monotonic() - swept > self._options.lease_seconds / 2 and not self._let_renew():
                    return
                self._sweep_without_redis_too(shared=shared)
                self._troubles.over("sweep")
                self.turns += 1
                pause, swept = self._options.sweep_seconds, time.monotonic()
            except ConfigurationError as error:
                _log.error("sweep_ends", error=str(error))
                self._stopped = True
                self._events.incompatible(error)
                return
            except StoreUnavailable as error:
                self._troubles.met("sweep", error, "sweep_failed")
                self._problem = str(error)
                self.turns += 1
                if (measured := instruments()) is not None:
                    measured.swept({}, error)
                pause = min(pause * 2, _MAX_PAUSE)
            except Exception as error:
                _log.exception("sweep_failed")  # a bug of ours must not end the recovery of everything else
                self._problem = f"it fails with {type(error).__name__}"  # its text may hold secrets
                if (measured := instruments()) is not None:
                    measured.swept({}, error)
                pause = min(pause * 2, _MAX_PAUSE)

    def _sweep_without_redis_too(self, *, shared: bool) -> None:
        try:
            self.sweep(shared=shared)
            self._redis_away = False
            self._well_at, self._problem = time.monotonic(), None
        except QueueUnavailable as error:
            self._problem = str(error)
            if not self._redis_away:
                _log.warning("sweep_without_redis", error=str(error))
            self._redis_away = True
            if (measured := instruments()) is not None:
                measured.swept({}, error)

    def _let_renew(self) -> bool:
        """Wait, after an outage, until the surviving workers have renewed their leases; return False if stopped."""
        self._store.health()
        with self._changed:
            return not self._changed.wait_for(lambda: self._stopped, _RENEWAL_SECONDS)

    def _wait(self, seconds: float) -> bool:
        regular, more = time.monotonic() + seconds, self._more_pause
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                if now >= regular and more and self._idle():
                    regular, more = now + more, 0.0
                if now >= min(regular, self._wake_at):
                    self._was_due = now >= self._wake_at
                    self._wake_at = float("inf")
                    return True
                self._changed.wait(min(regular, self._wake_at) - now)
            return False

    def _idle(self) -> bool:
        """Return whether nothing has run in the slots since the last pass."""
        return self._slots is not None and not self._slots.busy and self._slots.ended == self._ended
