"""The engine's methods that wait for executions and watch their events."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from spanloom.engine.events.listener import Listener
from spanloom.engine.events.stream import AsyncEventStream, EventStream, EventWatcher
from spanloom.engine.events.waiter import Waiter
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.models import Execution
from spanloom.engine.store.port import ExecutionStore

__all__ = ["ExecutionFollowing"]


class ExecutionFollowing:
    """The part of WorkflowEngine that looks on: one listener serves all who wait and follow in this process."""

    def __init__(self, store: ExecutionStore, queue: NodeQueue) -> None:
        self._listener = Listener(queue)
        self._waiter = Waiter(store, self._listener)
        self._watcher = EventWatcher(store, self._listener)

    @abstractmethod
    def open(self) -> None:
        """Connect, if that has not happened yet."""

    def wait(self, execution_id: str, timeout: float | None = None) -> Execution:
        """Wait up to `timeout` seconds (None: without limit) for the end and return the terminal execution.

        Raises WaitTimeout (the execution goes on), UnknownExecution, StoreUnavailable.
        """
        self.open()
        return self._waiter.wait(execution_id, timeout)

    async def await_execution(self, execution_id: str, timeout: float | None = None) -> Execution:
        """Like wait(), on the running event loop, which it never blocks."""
        await asyncio.to_thread(self.open)
        return await self._waiter.await_execution(execution_id, timeout)

    def events(self, execution_id: str, after: str | None = None, *, timeout: float | None = None) -> EventStream:
        """Iterate over the events of an execution in commit order, from its start or after a cursor, live.

        Each event is yielded once, and has the `cursor` to go on after it, in another process too. Ends with what had
        been recorded when it read the end of the execution (completed, failed, cancelled). To follow a failed one that
        is retried, go on after the latest cursor. Outages of the store and of Redis are waited out.

        Raises UnknownExecution, ConfigurationError for a cursor that is none, and StoreUnavailable if the store does
        not answer at first, for a second; while iterating WaitTimeout after `timeout` seconds (None: never), and
        UnknownExecution if the execution was purged meanwhile.
        """
        self.open()
        return self._watcher.events(execution_id, after, timeout)

    def aevents(self, execution_id: str, after: str | None = None, *, timeout: float | None = None) -> AsyncEventStream:
        """Like events(), for `async for`: never blocks the event loop, needs no thread per watcher.

        What events() raises at once, this raises with the first event.
        """
        return self._watcher.aevents(execution_id, after, timeout, begin=self.open)
