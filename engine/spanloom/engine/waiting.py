"""Waiting for executions to end: one listener serves all waiters. Redis makes it prompt, the store makes it true."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from spanloom.engine.errors import QueueUnavailable, StoreUnavailable, UnknownExecution, WaitTimeout
from spanloom.engine.logs import Logger
from spanloom.engine.queue import NodeQueue
from spanloom.engine.store import ExecutionStore
from spanloom.engine.views import Execution

__all__ = ["EndListener", "Waiter"]

_log = Logger("spanloom.engine")
_LISTEN_SECONDS = 1.0  #: how long one look at the subscription blocks; bounds how long close() takes
_FIRST_LOOKS = (0.05, 0.2, 0.75)  #: pauses after first looks that failed
_POLL_SECONDS = (0.1, 1.0)  #: first and longest pause between looks at the store when no signal comes


class EndListener:
    """Subscribe to the ends of those executions that somebody waits for, on one connection and one thread."""

    def __init__(self, queue: NodeQueue) -> None:
        self._queue = queue
        self._lock = threading.Lock()
        self._watchers: dict[str, list[Callable[[], None]]] = {}
        self._pubsub: Any = None
        self._behind = False  # a subscription could not be made
        self._wanted = threading.Event()  # somebody watches, or close() was called
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()  # one for each thread

    @contextmanager
    def watch(self, execution_id: str, notify: Callable[[], None]) -> Generator[None]:
        """Call `notify`, from the listener's thread, each time the end of the execution is announced.

        A Redis that does not answer is no error here: the waiter looks at the store anyway.
        """
        channel = self._queue.ended_channel(execution_id)
        with self._lock:
            self._start()
            self._watchers.setdefault(channel, []).append(notify)
            if len(self._watchers[channel]) == 1:
                self._send("subscribe", channel)
            self._wanted.set()
        try:
            yield
        finally:
            with self._lock:
                watchers = self._watchers.get(channel, [])
                watchers.remove(notify)
                if not watchers:
                    self._watchers.pop(channel, None)
                    self._send("unsubscribe", channel)
                if not self._watchers and not self._stop.is_set():
                    self._wanted.clear()

    def close(self) -> None:
        """Stop listening and wait for the thread; may be used again afterwards."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
            self._wanted.set()
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():  # not alive: this is a forked child
            self._stop = threading.Event()
            self._pubsub = self._queue.redis.pubsub(ignore_subscribe_messages=True)
            arguments = (self._pubsub, self._stop)
            self._thread = threading.Thread(target=self._listen, args=arguments, name="spanloom-ends", daemon=True)
            self._thread.start()

    def _send(self, command: str, *channels: str) -> None:
        try:
            with self._queue.breaker.asking():
                getattr(self._pubsub, command)(*channels)
        except QueueUnavailable as error:
            _log.debug("end_listener_unavailable", error=str(error))
            self._behind = True  # the listener sees to it when Redis is back

    def _listen(self, pubsub: Any, stop: threading.Event) -> None:
        pause = 0.1
        while True:
            wanted = self._wanted.wait(_LISTEN_SECONDS)
            if stop.is_set():
                break
            if not wanted:
                continue
            try:
                with self._queue.breaker.asking(anyway=True):
                    message = pubsub.get_message(timeout=_LISTEN_SECONDS)
                pause = 0.1
            except QueueUnavailable as error:
                _log.warning("end_listener_reconnects", error=str(error))
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
                pubsub = self._subscribe_anew(pubsub)
                continue
            if message is None:
                self._catch_up()
            else:
                with self._lock:
                    notified = list(self._watchers.get(message["channel"].decode(), ()))
                for notify in notified:
                    notify()
        pubsub.close()

    def _catch_up(self) -> None:
        if not self._behind:
            return
        with self._lock:
            self._behind = False
            if self._watchers:
                self._send("subscribe", *self._watchers)

    def _subscribe_anew(self, broken: Any) -> Any:
        with self._lock:
            broken.close()
            if self._pubsub is not broken:
                return broken  # another thread listens by now; this one is about to see its end
            self._pubsub = self._queue.redis.pubsub(ignore_subscribe_messages=True)
            if self._watchers:
                self._send("subscribe", *self._watchers)
            for watchers in self._watchers.values():
                for notify in watchers:
                    notify()  # what was announced in between is lost: look at the store now
            return self._pubsub


class Waiter:
    """Wait for the end of executions, blocking or on an event loop."""

    def __init__(self, store: ExecutionStore, listener: EndListener) -> None:
        self._store = store
        self._listener = listener

    def wait(self, execution_id: str, timeout: float | None) -> Execution:
        """Return the ended execution. Raises WaitTimeout after `timeout` seconds (None: never), UnknownExecution.

        Raises StoreUnavailable if the store does not answer at first, for a second; an outage after that is waited out.
        """
        if (execution := self._look_first(execution_id)).status.ended:
            return execution
        signal = threading.Event()
        pauses = _Pauses(execution_id, timeout)
        with self._listener.watch(execution_id, signal.set):
            while True:
                execution = self._look_again(execution)
                if execution.status.ended:
                    return execution
                signal.wait(pauses.next(execution))
                signal.clear()

    async def await_end(self, execution_id: str, timeout: float | None) -> Execution:
        """Like wait(), without blocking the event loop and without a thread of its own."""
        if (execution := await asyncio.to_thread(self._look_first, execution_id)).status.ended:
            return execution
        loop = asyncio.get_running_loop()
        signal = asyncio.Event()
        pauses = _Pauses(execution_id, timeout)
        watching = self._listener.watch(execution_id, lambda: _wake(loop, signal))
        await asyncio.to_thread(watching.__enter__)
        try:
            while True:
                execution = await asyncio.to_thread(self._look_again, execution)
                if execution.status.ended:
                    return execution
                pause = pauses.next(execution)
                try:
                    await asyncio.wait_for(signal.wait(), pause)
                except TimeoutError:
                    continue
                signal.clear()
        finally:
            await asyncio.to_thread(watching.__exit__, None, None, None)

    def _look(self, execution_id: str) -> Execution:
        execution = self._store.get_execution(execution_id)
        if execution is None:
            raise UnknownExecution(execution_id)
        return execution

    def _look_first(self, execution_id: str) -> Execution:
        for pause in _FIRST_LOOKS:
            try:
                return self._look(execution_id)
            except StoreUnavailable:
                time.sleep(pause)  # a connection that broke is no outage
        return self._look(execution_id)

    def _look_again(self, seen: Execution) -> Execution:
        try:
            return self._look(seen.id)
        except StoreUnavailable as error:
            _log.warning("wait_goes_on_without_store", execution_id=seen.id, error=str(error))
            return seen


def _wake(loop: asyncio.AbstractEventLoop, signal: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(signal.set)


class _Pauses:
    """How long to wait for a signal before the next look at the store."""

    def __init__(self, execution_id: str, timeout: float | None) -> None:
        self._execution_id = execution_id
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
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
