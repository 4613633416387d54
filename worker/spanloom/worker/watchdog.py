"""The watchdog: raises NodeTimeout in the thread of a synchronous handler that ran for too long.

Python delivers it between two bytecodes: a handler inside one long C call gets it when that call returns, and one that
catches it goes on. Its slot stays accounted for either way.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from spanloom.engine.errors import NodeTimeout

__all__ = ["Watchdog"]


class _Watch:
    __slots__ = ("armed", "fired", "thread_id")

    def __init__(self, thread_id: int) -> None:
        self.thread_id = thread_id
        self.armed = True
        self.fired = False


class Watchdog:
    """Watch any number of threads from one. Starts at its first use."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, _Watch]] = []
        self._count = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, function: Callable[[], Any], node_id: str, seconds: float) -> Any:
        """Call `function` in this thread; raises NodeTimeout if it takes longer than `seconds`."""
        watch = _Watch(threading.get_ident())
        self._watch(watch, time.monotonic() + seconds)
        try:
            try:
                result = function()
            finally:
                self._disarm(watch)
        except NodeTimeout as error:
            if watch.fired:
                raise NodeTimeout(node_id, seconds) from error
            raise
        if watch.fired:  # it ended in the instant in which it was given up
            raise NodeTimeout(node_id, seconds)
        return result

    def close(self) -> None:
        """Stop watching."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self, watch: _Watch, due: float) -> None:
        with self._changed:
            heapq.heappush(self._due, (due, next(self._count), watch))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spanloom-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _disarm(self, watch: _Watch) -> None:
        with self._changed:
            watch.armed = False
            if watch.fired:
                _raise_in(watch.thread_id, None)  # it may not have been delivered yet; it must not hit our own code

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                while self._due and not self._due[0][2].armed:
                    heapq.heappop(self._due)
                if not self._due:
                    self._changed.wait()
                    continue
                remaining = self._due[0][0] - time.monotonic()
                if remaining > 0:
                    self._changed.wait(remaining)
                    continue
                watch = heapq.heappop(self._due)[2]
                watch.fired = True
                _raise_in(watch.thread_id, NodeTimeout)


def _raise_in(thread_id: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(error) if error else None)
