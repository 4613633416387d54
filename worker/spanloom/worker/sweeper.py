"""The sweeper: the periodic pass of every worker that moves on whatever is due, and puts back what Redis lost."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from spanloom.engine.epoch import Epoch
from spanloom.engine.errors import ConfigurationError, QueueUnavailable, StoreUnavailable
from spanloom.engine.queue import NodeQueue
from spanloom.engine.store import ExecutionStore
from spanloom.worker.options import WorkerOptions

__all__ = ["Sweeper"]

_log = structlog.get_logger("spanloom.worker")
_MAX_PAUSE = 1.0  #: short: what was lost with a server is to run again soon after it is back
_RENEWAL_SECONDS = 2.0  #: longer than any worker waits between renewals that failed


class Sweeper:
    """Sweep on a thread of its own. Any number of them cooperate."""

    def __init__(
        self, store: ExecutionStore, queue: NodeQueue, epoch: Epoch, list_names: Sequence[str], options: WorkerOptions
    ) -> None:
        self._store = store
        self._queue = queue
        self._epoch = epoch
        self._list_names = list_names
        self._options = options
        self.on_misfit: Callable[[ConfigurationError], object] = lambda _: None  #: called when it can't go on, ever
        self._changed = threading.Condition()
        self._wake_at = float("inf")
        self._stopped = False
        self.thread = threading.Thread(target=self._run, name="spanloom-sweep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.thread.start()

    def stop(self) -> None:
        """End after the pass that runs now; `thread` may be joined."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def due_in(self, seconds: float) -> None:
        """Note that something becomes due then, so that a short delay need not wait for the next regular pass."""
        with self._changed:
            self._wake_at = min(self._wake_at, time.monotonic() + seconds + 0.005)
            self._changed.notify()

    def sweep(self) -> int:
        """Make one whole pass and return how many rows it moved. Raises QueueUnavailable, StoreUnavailable."""
        epoch = self._epoch.check()
        moved: Counter[str] = Counter()
        while True:
            swept = self._store.sweep(
                heads=self._queue.heads(self._list_names),
                epoch=epoch,
                suspect_seconds=self._options.suspect_seconds,
            )
            self._queue.push(swept.jobs, ended=swept.ended)
            moved.update(swept.moved)
            if not swept.more:
                break
        if lost := {cause: count for cause, count in moved.items() if count and cause.startswith("lost")}:
            _log.info("recovered", **lost)
        return moved.total()

    def _run(self) -> None:
        pause, swept = self._options.sweep_seconds, time.monotonic()
        while self._wait(pause * random.uniform(0.8, 1.2)):  # noqa: S311  so that many sweepers do not march in step
            try:
                if time.monotonic() - swept > self._options.lease_seconds / 2 and not self._let_renew():
                    return
                self.sweep()
                pause, swept = self._options.sweep_seconds, time.monotonic()
            except ConfigurationError as error:
                _log.error("sweep_ends", error=str(error))
                self.on_misfit(error)
                return
            except (QueueUnavailable, StoreUnavailable) as error:
                _log.warning("sweep_failed", error=str(error))
                pause = min(pause * 2, _MAX_PAUSE)
            except Exception:
                _log.exception("sweep_failed")  # a bug of ours must not end the recovery of everything else
                pause = min(pause * 2, _MAX_PAUSE)

    def _let_renew(self) -> bool:
        """Wait, after an outage, until the workers that outlived it have renewed their leases; False if stopped."""
        self._store.health()
        with self._changed:
            return not self._changed.wait_for(lambda: self._stopped, _RENEWAL_SECONDS)

    def _wait(self, seconds: float) -> bool:
        regular = time.monotonic() + seconds
        with self._changed:
            while not self._stopped:
                remaining = min(regular, self._wake_at) - time.monotonic()
                if remaining <= 0:
                    self._wake_at = float("inf")
                    return True
                self._changed.wait(remaining)
            return False
