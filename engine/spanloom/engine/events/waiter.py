"""Waiting for executions to end. Redis makes it prompt, the store makes it reliable."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from spanloom.engine.arguments import Timeout, seconds_of
from spanloom.engine.errors import StoreUnavailable, UnknownExecution, WaitTimeout
from spanloom.engine.events.listener import Listener, waker
from spanloom.engine.events.wait_guard import check_wait
from spanloom.engine.logs import Logger
from spanloom.engine.store.models import Execution
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["Waiter", "read_first"]

_log = Logger("spanloom.engine")
_FIRST_PAUSES = (0.05, 0.2, 0.75)  #: pauses after first reads that failed
_POLL_SECONDS = (0.1, 1.0)  #: first and longest pause between reads of the store when no signal comes

T = TypeVar("T")


class Waiter:
    """The waiter for the ends of executions, blocking or on an event loop."""

    def __init__(
        self, opened: Callable[[], None], store: ExecutionStore, listener: Listener, output_limit: int | None = None
    ) -> None:
        """Take `opened`, a function that connects the store if it is not connected yet.

        An output of more bytes than `output_limit` is not read.
        """
        self._output_limit = output_limit
        self._opened = opened
        self._store = store
        self._listener = listener

    def wait(self, execution_id: str, timeout: Timeout, *, started: bool = False) -> Execution:
        """Return the ended execution. Raises WaitTimeout after `timeout` seconds (None: never), UnknownExecution.

        Raises StoreUnavailable if the store does not answer within about a second at first. Later outages are waited
        out. In a handler it raises WaitRefused if no worker is left to run the execution. One that was `started` just
        now is not looked at until it is watched.
        """
        look = _Look(self._store, execution_id, self._output_limit)
        if not started and (execution := self._first(look)) is not None:
            return execution
        signal = threading.Event()
        pauses = _Pauses(execution_id, timeout)
        signalled = False
        with self._listener.watch(execution_id, signal.set):
            while (execution := look.again(signalled=signalled)) is None:
                signalled = signal.wait(pauses.next(look.seen))
                signal.clear()
        return execution

    async def await_execution(self, execution_id: str, timeout: Timeout, *, started: bool = False) -> Execution:
        """Like wait(), without blocking the event loop and without a thread of its own."""
        look = _Look(self._store, execution_id, self._output_limit)
        if not started and (execution := await asyncio.to_thread(self._first, look)) is not None:
            return execution
        signal = asyncio.Event()
        pauses = _Pauses(execution_id, timeout)
        signalled = False
        async with self._listener.awatch(execution_id, waker(signal)):
            while (execution := await asyncio.to_thread(look.again, signalled=signalled)) is None:
                pause = pauses.next(look.seen)
                try:
                    signalled = await asyncio.wait_for(signal.wait(), pause)
                except TimeoutError:
                    signalled = False
                signal.clear()
        return execution

    def _first(self, look: _Look) -> Execution | None:
        self._opened()
        return read_first(look.ended)


class _Look:
    """The looks at one execution: at its status, which costs little, and once that has ended at all of it."""

    def __init__(self, store: ExecutionStore, execution_id: str, output_limit: int | None) -> None:
        self._store = store
        self._execution_id = execution_id
        self._output_limit = output_limit
        self.seen = ExecutionStatus.PENDING  #: the latest status

    def ended(self, *, signalled: bool = False) -> Execution | None:
        """Return the execution if it has ended; `signalled`: it probably has. Raises UnknownExecution."""
        if not signalled:
            self._note(self._store.get_status(self._execution_id))
            if not self.seen.ended:
                return None
        execution = self._store.get_execution(self._execution_id, data_limit=self._output_limit)
        self._note(None if execution is None else execution.status)
        return execution if self.seen.ended else None

    def again(self, *, signalled: bool) -> Execution | None:
        """Do as `ended`, but wait out a store that does not answer. Raises WaitRefused, UnknownExecution."""
        check_wait(self._execution_id)
        try:
            return self.ended(signalled=signalled)
        except StoreUnavailable as error:
            _log.warning("wait_goes_on_without_store", execution_id=self._execution_id, error=str(error))
            return None

    def _note(self, status: ExecutionStatus | None) -> None:
        if status is None:
            raise UnknownExecution(self._execution_id)
        self.seen = status


def read_first(read: Callable[[], T]) -> T:
    """Return the result of a first read of the store, repeated for about a second if it fails."""
    for pause in _FIRST_PAUSES:
        try:
            return read()
        except StoreUnavailable:
            time.sleep(pause)  # a connection that broke is no outage
    return read()


class _Pauses:
    """The pauses between two reads of the store when no signal comes."""

    def __init__(self, execution_id: str, timeout: Timeout) -> None:
        self._execution_id = execution_id
        self._timeout = seconds_of(timeout)
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout
        self._pause, self._longest = _POLL_SECONDS

    def next(self, status: ExecutionStatus) -> float:
        pause = self._pause
        self._pause = min(pause * 2, self._longest)
        if self._deadline is None:
            return pause
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise WaitTimeout(self._execution_id, self._timeout or 0.0, status)
        return min(pause, remaining)
