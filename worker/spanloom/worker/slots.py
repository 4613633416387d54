"""Slots: the threads of a worker that run nodes, one node at a time each."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

__all__ = ["Slots"]

# Slots whose nodes take next to no time are refilled together: one fetch, one claim and one commit serve them all.
_BRIEF_SECONDS = 0.02
_GATHER_SECONDS = 0.002


class Slots:
    """A fixed number of threads, and the count of free ones. A slot whose handler does not end stays accounted for."""

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._free = size
        self._brief = False  # what ended last took next to no time
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    @property
    def busy(self) -> int:
        """How many slots run something."""
        return self.size - self._free

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not raise, in a free slot. Only call it for slots that wait_free() counted.

        If the system gives no thread for it, it waits for one that is there. Raises RuntimeError if there is none.
        """
        with self._changed:
            if len(self._threads) <= self.busy:
                thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
                try:
                    thread.start()
                    self._threads.append(thread)
                except RuntimeError:
                    if not self._threads:
                        raise
            self._free -= 1
        self._work.put(work)

    def wait_free(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for a free slot, a moment more behind brief work; return how many are free."""
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0, timeout)
            if self._brief and 0 < self._free < self.size:
                self._changed.wait_for(lambda: self._free == self.size, _GATHER_SECONDS)
            return self._free

    def wait_idle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until no slot is busy, and return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._free == self.size, timeout)

    def close(self) -> None:
        """End the idle threads and wait for them; busy ones end after their work."""
        for _ in self._threads:
            self._work.put(None)
        deadline = time.monotonic() + 1.0
        for thread in self._threads:
            if self._free == self.size:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            started = time.monotonic()
            try:
                work()
            finally:
                with self._changed:
                    self._brief = time.monotonic() - started < _BRIEF_SECONDS
                    self._free += 1
                    self._changed.notify_all()
