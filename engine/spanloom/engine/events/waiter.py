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

    def wait(self, execution_id: str, timeout: Timeout) -> Execution:
        """Return the ended execution. Raises WaitTimeout after `timeout` seconds (None: never), UnknownExecution.

        Raises StoreUnavailable if the store does not answer within about a second at first. Later outages are waited
        out. In a handler it raises WaitRefused if no worker is left to run the execution.
        """
        if (execution := self._read_first(execution_id)).status.ended:
            return execution
        signal = threading.Event()
        pauses = _Pauses(execution_id, timeout)
        with self._listener.watch(execution_id, signal.set):
            while True:
                execution = self._read_again(execution)
                if execution.status.ended:
                    return execution
                signal.wait(pauses.next(execution))
                signal.clear()

    async def await_execution(self, execution_id: str, timeout: Timeout) -> Execution:
        """Like wait(), without blocking the event loop and without a thread of its own."""
        if (execution := await asyncio.to_thread(self._read_first, execution_id)).status.ended:
            return execution
        signal = asyncio.Event()
        pauses = _Pauses(execution_id, timeout)
        async with self._listener.awatch(execution_id, waker(signal)):
            while True:
                execution = await asyncio.to_thread(self._read_again, execution)
                if execution.status.ended:
                    return execution
                pause = pauses.next(execution)
                try:
                    await asyncio.wait_for(signal.wait(), pause)
                except TimeoutError:
                    continue
                signal.clear()

    def _read(self, execution_id: str) -> Execution:
        execution = self._store.get_execution(execution_id, data_limit=self._output_limit)
        if execution is None:
            raise UnknownExecution(execution_id)
        return execution

    def _read_first(self, execution_id: str) -> Execution:
        self._opened()
        return read_first(lambda: self._read(execution_id))

    def _read_again(self, seen: Execution) -> Execution:
        check_wait(seen.id)
        try:
            return self._read(seen.id)
        except StoreUnavailable as error:
            _log.warning("wait_goes_on_without_store", execution_id=seen.id, error=str(error))
            return seen


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

    def next(self, execution: Execution) -> float:
        pause = self._pause
        self._pause = min(pause * 2, self._longest)
        if self._deadline is None:
            return pause
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise WaitTimeout(self._execution_id, self._timeout or 0.0, execution.status)
        return min(pause, remaining)
