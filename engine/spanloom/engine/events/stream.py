"""Streams of an execution's events as they are recorded. Redis makes them prompt, the store makes them complete."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext

from spanloom.engine.arguments import Timeout, seconds_of
from spanloom.engine.errors import StoreUnavailable, UnknownExecution, WaitTimeout
from spanloom.engine.events.listener import Listener, waker
from spanloom.engine.events.wait_guard import check_wait
from spanloom.engine.events.waiter import read_first
from spanloom.engine.logs import Logger
from spanloom.engine.store.models import Event, Execution
from spanloom.engine.store.port import ExecutionStore

__all__ = ["AsyncEventStream", "EventStream", "EventWatcher"]

_log = Logger("spanloom.engine")
_PAGE = 1000
_POLL_SECONDS = (0.05, 1.0)  #: first and longest pause between reads of the store when no signal comes
_GATHER_SECONDS = 0.02  #: the least pause between two reads: an execution that changes all the time is read in portions
_ENDS = frozenset({"execution.completed", "execution.failed", "execution.cancelled"})
#: The kinds that change whether it runs. Any other kind, such as an acknowledgement, does not.
_STATUSES = _ENDS | {f"execution.{what}" for what in ("created", "started", "paused", "resumed", "retried")}


class EventStream(Iterator[Event]):
    """An iterator over the events of one execution, also future ones, until its end. Not for several threads.

    `close()`, the end of a `with` block, or dropping the stream ends its subscription. `cursor` is the cursor of the
    latest event that was yielded.

    Example::

        with engine.events(execution_id) as events:
            for event in events:
                print(event.at, event.kind, event.node_id)
    """

    def __init__(self, events: Generator[Event], after: str | None) -> None:
        self._events = events
        self.cursor = after

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        event = next(self._events)
        self.cursor = event.cursor
        return event

    def close(self) -> None:
        """End the stream; a second call does nothing."""
        self._events.close()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncEventStream(AsyncIterator[Event]):
    """An EventStream for `async for`, which never blocks the event loop."""

    def __init__(self, events: AsyncGenerator[Event], after: str | None) -> None:
        self._events = events
        self.cursor = after

    def __aiter__(self) -> AsyncEventStream:
        return self

    async def __anext__(self) -> Event:
        event = await anext(self._events)
        self.cursor = event.cursor
        return event

    async def aclose(self) -> None:
        """End the stream; a second call does nothing."""
        await self._events.aclose()

    async def __aenter__(self) -> AsyncEventStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class EventWatcher:
    """The source of event streams for one store. Without a listener it polls the store only."""

    def __init__(
        self, store: ExecutionStore, listener: Listener | None, opened: Callable[[], None] = lambda: None
    ) -> None:
        """Take `opened`, a function that connects the store if it is not connected yet."""
        self._opened = opened
        self._store = store
        self._listener = listener

    def events(self, execution_id: str, after: str | None, timeout: Timeout) -> EventStream:
        """Return the execution's events after a cursor, live. Raises the errors of WorkflowEngine.events."""
        self._opened()
        reading = _Reading(self._store, execution_id, after, timeout)
        return EventStream(self._follow(reading, reading.poll_first()), after)

    def aevents(self, execution_id: str, after: str | None, timeout: Timeout) -> AsyncEventStream:
        """Like events(), on an event loop. Raises from the first `anext`."""
        reading = _Reading(self._store, execution_id, after, timeout)
        return AsyncEventStream(self._afollow(reading), after)

    def changes(self, execution_id: str, every: float) -> Generator[None]:
        """Yield at once, and then whenever the execution may have changed, at least `every` seconds."""
        signal = threading.Event()
        with self._watch(execution_id, signal.set):
            while True:
                signal.clear()
                yield
                time.sleep(min(_GATHER_SECONDS, every))
                signal.wait(every)

    def _follow(self, reading: _Reading, found: list[Event]) -> Generator[Event]:
        yield from found
        if reading.over:
            return
        signal = threading.Event()
        with self._watch(reading.execution_id, signal.set):
            while True:
                signal.clear()
                yield from reading.poll()
                if reading.over:
                    return
                time.sleep(reading.gather_seconds())
                reading.signalled(signal.wait(reading.pause_seconds()))

    async def _afollow(self, reading: _Reading) -> AsyncGenerator[Event]:
        await asyncio.to_thread(self._opened)
        for event in await asyncio.to_thread(reading.poll_first):
            yield event
        if reading.over:
            return
        signal = asyncio.Event()
        async with self._awatch(reading.execution_id, waker(signal)):
            while True:
                signal.clear()
                for event in await asyncio.to_thread(reading.poll):
                    yield event
                if reading.over:
                    return
                await asyncio.sleep(reading.gather_seconds())
                try:
                    await asyncio.wait_for(signal.wait(), reading.pause_seconds())
                    reading.signalled(True)
                except TimeoutError:
                    reading.signalled(False)

    def _watch(self, execution_id: str, notify: Callable[[], None]) -> AbstractContextManager[None]:
        return self._listener.watch(execution_id, notify, changes=True) if self._listener else nullcontext()

    def _awatch(self, execution_id: str, notify: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        return self._listener.awatch(execution_id, notify, changes=True) if self._listener else nullcontext()


class _Reading:
    """The position of one reader of an execution's events, and the time of its next read."""

    def __init__(self, store: ExecutionStore, execution_id: str, after: str | None, timeout: Timeout) -> None:
        self._store = store
        self.execution_id = execution_id
        self._after = self._cursor = after
        self._timeout = seconds_of(timeout)
        self._deadline = float("inf") if self._timeout is None else time.monotonic() + self._timeout
        self._last_look = False  # the read after the deadline
        self._pause, self._longest = _POLL_SECONDS
        self._more = False  # a full page: the next one is there already
        self._away = False  # the store did not answer
        self._status = ""
        self._had_ended = False  # at the first read
        # Whether the latest start, end, pause … that was read is an end; None: none of these was read.
        self._ended: bool | None = None

    @property
    def over(self) -> bool:
        """Whether the end and all events up to now were read."""
        return self._ended is True and not self._more

    def poll_first(self) -> list[Event]:
        """Return the first page. Raises UnknownExecution, ConfigurationError for a bad cursor, StoreUnavailable."""
        return read_first(self._first_page)

    def poll(self) -> list[Event]:
        """Return the next page, empty if there is none yet or the store does not answer.

        Raises UnknownExecution if the execution was purged, WaitTimeout once the time is over, and in a handler
        WaitRefused if no worker is left to run the execution.
        """
        check_wait(self.execution_id)
        if self._last_look and not self._more:
            raise WaitTimeout(self.execution_id, self._timeout or 0.0, self._status)
        self._last_look = time.monotonic() >= self._deadline
        try:
            quiet = self._last_look or self._pause == self._longest
            if quiet:  # a purged execution has no further events
                self._status = self._execution().status
            events = self._page()
        except StoreUnavailable as error:
            _log.warning("events_wait_for_store", execution_id=self.execution_id, error=str(error))
            events = []
            self._away = True
        else:
            self._away = False
        return events

    def gather_seconds(self) -> float:
        """Return the seconds for changes to gather before the next read."""
        return 0.0 if self._more and not self._away else _GATHER_SECONDS

    def pause_seconds(self) -> float:
        """Return the longest seconds to wait for a signal before the next read."""
        if self._more and not self._away:
            return 0.0
        return max(0.0, min(self._pause, self._deadline - time.monotonic()))

    def signalled(self, came: bool) -> None:
        """Adapt the pauses to whether a signal came. Its event may be visible later: an older transaction hides it."""
        self._pause = _POLL_SECONDS[0] if came else min(self._pause * 2, self._longest)

    def _first_page(self) -> list[Event]:
        execution = self._execution()  # read first: an end that it shows is among the events, or before the cursor
        self._status, self._had_ended = execution.status, execution.status.ended
        return self._page()

    def _page(self) -> list[Event]:
        events = self._store.get_events(self.execution_id, after=self._cursor, limit=_PAGE)
        self._more = len(events) == _PAGE
        if events:
            self._cursor = events[-1].cursor
            self._pause = _POLL_SECONDS[0]
            self._ended = _is_end(events, self._ended)
        if self._ended is None and self._after is not None and not self._more:
            self._ended = self._had_ended and self._ended_at(self._after)
        return events

    def _ended_at(self, cursor: str) -> bool:
        """Return whether the execution had ended at a cursor. Reads from the start: rare, and a cursor is opaque."""
        ended: bool | None = None
        at: str | None = None
        while events := self._store.get_events(self.execution_id, after=at, limit=_PAGE):
            at = events[-1].cursor
            upto = next((index for index, event in enumerate(events) if event.cursor == cursor), _PAGE) + 1
            ended = _is_end(events[:upto], ended)
            if upto <= len(events):
                break
        return ended is True

    def _execution(self) -> Execution:
        execution = self._store.get_execution(self.execution_id, data_limit=0)
        if execution is None:
            raise UnknownExecution(self.execution_id)
        return execution


def _is_end(events: list[Event], before: bool | None) -> bool | None:
    """Return whether an execution has ended after these events; `before` if none of them changes that."""
    for event in reversed(events):
        if event.node_id is None and event.kind in _STATUSES:
            return event.kind in _ENDS
    return before
