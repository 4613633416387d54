"""The slots: the threads of a worker that run nodes, each one node at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from spanloom.worker.error_text import log_failure

__all__ = ["Slots"]

_log = structlog.get_logger("spanloom.worker")

# Slots with nodes that take next to no time are refilled together: one fetch, one claim and one commit serve them all.
_BRIEF_SECONDS = 0.02
_GATHER_SECONDS = 0.002


class Slots:
    """A fixed number of threads, and the count of free ones. A handler that does not end keeps its slot occupied."""

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._free = size
        self._brief = False  # the work that ended last took next to no time
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self.ended = 0  #: how often a slot has become free
        self.failure: str | None = None  #: why the end of a node that ran here may be unknown

    @property
    def busy(self) -> int:
        """The number of slots that run something."""
        return self.size - self._free

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not raise, in a free slot. Call it at most as often as wait_free() has counted.

        If the system can't start another thread, the work waits for one of the existing threads. Raises RuntimeError if
        there is none.
        """
        with self._changed:
            if len(self._threads) <= self.busy:
                self._add_thread()
            self._free -= 1
        self._queue.put(work)

    def submit_beside(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not raise, beside the slots. It counts as a busy slot until it has ended."""
        with self._changed:
            self._free -= 1
        thread = threading.Thread(target=self._work, args=(work,), name=f"{self._name}-beside", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had
            self._work(work)

    def occupy(self, number: int) -> None:
        """Count so many slots as busy for work that needs no thread; negative: as free again."""
        with self._changed:
            self._free -= number
            if number < 0:
                self.ended -= number
                self._changed.notify_all()

    def wait_free(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for a free slot, a moment longer after brief work; return the number free."""
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0, timeout)
            if self._brief and 0 < self._free < self.size:
                self._changed.wait_for(lambda: self._free == self.size, _GATHER_SECONDS)
            return max(0, self._free)

    def wait_idle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until no slot is busy, and return whether all are free."""
        with self._changed:
            return self._changed.wait_for(lambda: self._free == self.size, timeout)

    def close(self) -> None:
        """End the idle threads and wait for them; busy ones end after their work."""
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + 1.0
        for thread in self._threads:
            if self._free == self.size:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise
            _log.warning("slot_not_opened", slots=len(self._threads), error=str(error))
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            self._work(work)

    def _work(self, work: Callable[[], None]) -> None:
        started = time.monotonic()
        try:
            work()
        except BaseException as error:
            self.failure = f"its own code failed after a handler, with {type(error).__name__}"
            _log_failure()
        finally:
            with self._changed:
                self._brief = time.monotonic() - started < _BRIEF_SECONDS
                self._free += 1
                self.ended += 1
                self._changed.notify_all()


def _log_failure() -> None:
    with suppress(BaseException):  # what made it fail may make this fail: a recursion limit that a handler left
        log_failure(_log, "slot_failed")  # a bug of ours must not end the slot's thread
