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
from collections import deque
from collections.abc import Callable
from typing import Any

from spanloom.engine.errors import NodeTimeout

__all__ = ["Watchdog"]

_MANY = 1_000  #: watches after which those that ended are cleared away


class _Watch:
    """One call. Whoever takes the token decides: the watchdog that it timed out, the call that it ended in time.

    No lock: the exception may come between any two bytecodes of the watched thread, and a lock that is
    interrupted between being taken and being entered is never given back.
    """

    __slots__ = ("ended", "raised", "thread_id", "token")

    def __init__(self, thread_id: int) -> None:
        self.thread_id = thread_id
        self.token: deque[bool] = deque()  # empty until the call begins
        self.ended = False
        self.raised = False


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
        cause: BaseException | None = None
        try:
            watch.token.append(True)
            try:
                result = function()
            except BaseException as error:
                if _ended_in_time(watch):
                    raise
                cause = error
            else:
                if _ended_in_time(watch):
                    return result
            _await_delivery(watch)
        except NodeTimeout as error:
            if watch.ended:
                raise  # the handler's own
            cause = error
            _await_delivery(watch)
        raise NodeTimeout(node_id, seconds) from cause

    def close(self) -> None:
        """Stop watching and wait for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, watch: _Watch, due: float) -> None:
        with self._changed:
            if len(self._due) > _MANY:
                self._due = [entry for entry in self._due if not entry[2].ended]
                heapq.heapify(self._due)
            heapq.heappush(self._due, (due, next(self._count), watch))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spanloom-watchdog", daemon=True)
                self._thread.start()
            if self._due[0][2] is watch:
                self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                if not self._due:
                    self._changed.wait()
                elif (remaining := self._due[0][0] - time.monotonic()) > 0:
                    self._changed.wait(min(remaining, threading.TIMEOUT_MAX))
                else:
                    self._end(heapq.heappop(self._due)[2])

    def _end(self, watch: _Watch) -> None:
        try:
            watch.token.pop()
        except IndexError:
            if not watch.ended:  # its call is about to begin: look again
                heapq.heappush(self._due, (time.monotonic() + 0.001, next(self._count), watch))
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(watch.thread_id), ctypes.py_object(NodeTimeout))
        watch.raised = True


def _ended_in_time(watch: _Watch) -> bool:
    try:
        watch.token.pop()
    except IndexError:
        return False  # the watchdog has it: NodeTimeout has come or is coming
    watch.ended = True
    return True


def _await_delivery(watch: _Watch) -> None:
    """Return once the exception was delivered, here or earlier: it must not hit what this thread does next."""
    ticks = 0
    while ticks < 100:
        try:
            while ticks < 100:
                time.sleep(0.0002 if not watch.raised else 0)
                ticks += watch.raised
        except NodeTimeout:
            watch.raised = True
            return
