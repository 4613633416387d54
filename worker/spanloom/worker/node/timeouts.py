"""Time limits of synchronous handlers: NodeTimeout is raised in the thread of a handler that runs for too long.

Python raises the exception between two bytecodes, so a handler inside one long C call receives it when that call
returns. If the handler swallows it, or Python drops it because a finalizer was running, it is raised again every
second, except while the handler is cleaning up after it. The slot stays occupied until the handler ends.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from spanloom.engine.errors import NodeTimeout
from spanloom.engine.thread_stacks import handled_exception_of

__all__ = ["TimeLimit"]

_MANY = 1_000  #: pending calls after which those that ended are removed
_AGAIN_SECONDS = 1.0
_DELIVERY_TICKS = 100  #: how often a thread yields to others, which is when Python delivers a pending exception


class _TimedCall:
    """One call with a time limit, and the owner of each round: the call, which has ended, or the limit, which raises.

    The first to claim a round owns it; claiming it again gives the same result. There is no lock: the exception may
    come between any two bytecodes of the watched thread, and a lock that is interrupted between being taken and being
    entered is never released.
    """

    __slots__ = ("_owners", "begun", "over", "round", "thread_id")

    def __init__(self, thread_id: int) -> None:
        self.thread_id = thread_id
        self.begun = False
        self.over = False
        self.round = 0  #: how many exceptions were raised
        self._owners: dict[int, str] = {}

    def claim(self, number: int, who: Literal["call", "limit"]) -> bool:
        """Claim a round, by its number; False if the other side owns it."""
        return self._owners.setdefault(number, who) == who


class TimeLimit:
    """A thread that watches timed calls in any number of other threads. Starts at its first use."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, _TimedCall]] = []
        self._count = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, function: Callable[[], Any], node_id: str, seconds: float) -> Any:
        """Call `function` in this thread. Raises NodeTimeout if it takes longer than `seconds`."""
        watch = _TimedCall(threading.get_ident())
        self._watch(watch, time.monotonic() + seconds)
        cause: BaseException | None = None
        try:
            watch.begun = True
            try:
                result = function()
            except BaseException as error:
                if _ended_in_time(watch):
                    raise
                cause = error
            else:
                if _ended_in_time(watch):
                    return result
        except NodeTimeout as error:
            if watch.over and watch.round == 0:
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

    def _watch(self, watch: _TimedCall, due: float) -> None:
        with self._changed:
            if len(self._due) > _MANY:
                self._due = [entry for entry in self._due if not entry[2].over]
                heapq.heapify(self._due)
            heapq.heappush(self._due, (due, next(self._count), watch))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spanloom-time-limit", daemon=True)
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

    def _end(self, watch: _TimedCall) -> None:
        pause = 0.001  # for a call that is about to begin
        if watch.begun and not (watch.round and _cleans_up(watch.thread_id)):
            if not watch.claim(watch.round, "limit"):
                return
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(watch.thread_id), ctypes.py_object(NodeTimeout))
            watch.round += 1
        if watch.round:
            pause = _AGAIN_SECONDS
        heapq.heappush(self._due, (time.monotonic() + pause, next(self._count), watch))


def _cleans_up(thread_id: int) -> bool:
    """Return whether the thread is in an except or a finally clause, or in an __exit__, because of NodeTimeout."""
    error = handled_exception_of(thread_id)
    seen: set[int] = set()  # the chain of exceptions may be cyclic
    while error is not None and id(error) not in seen:
        if isinstance(error, NodeTimeout):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _ended_in_time(watch: _TimedCall) -> bool:
    if not watch.claim(0, "call"):
        return False  # NodeTimeout was raised, or is about to be
    watch.over = True
    return True


def _await_delivery(watch: _TimedCall) -> None:
    """Return once no exception is pending: it must not hit this thread's next work."""
    while True:
        try:
            while not watch.claim(watch.round, "call"):
                time.sleep(0.0002)  # the time limit is about to raise
            watch.over = True
            for _ in range(_DELIVERY_TICKS):
                time.sleep(0)
        except NodeTimeout:
            continue
        return
