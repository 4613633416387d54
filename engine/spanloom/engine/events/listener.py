"""The listener: one subscription to Redis for all waiters and watchers of executions in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.logs import Logger
from spanloom.engine.queue.node_queue import NodeQueue

__all__ = ["Listener", "waker"]

_log = Logger("spanloom.engine")
_LISTEN_SECONDS = 1.0  #: how long one read of the subscription blocks; bounds the time of close()
_PAUSES = (0.1, 5.0)  #: first and longest pause while Redis is away


class Listener:
    """The subscription to the channels of watched executions: one connection, one thread."""

    def __init__(self, queue: NodeQueue) -> None:
        self._queue = queue
        # Reentrant: a stream that is dropped unread may be collected, and leave, wherever this is held.
        self._lock = threading.RLock()
        self._watchers: dict[str, list[Callable[[], None]]] = {}
        self._pubsub: Any = None
        self._behind = False  # a subscription could not be made
        self._wanted = threading.Event()  # there is a watcher, or close() was called
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()  # one for each thread

    @contextmanager
    def watch(self, execution_id: str, notify: Callable[[], None], *, changes: bool = False) -> Generator[None]:
        """Call `notify` from the listener's thread when the end of the execution, or any change, is published.

        A Redis that does not answer is no error here: watchers poll the store anyway.
        """
        channels = [self._queue.keys.ended_channel(execution_id)]
        if changes:
            channels.append(self._queue.keys.changed_channel(execution_id))
        with self._lock:
            self._start()
            new = [channel for channel in channels if channel not in self._watchers]
            for channel in channels:
                self._watchers.setdefault(channel, []).append(notify)
            if new:
                self._send("subscribe", *new)
            self._wanted.set()
        try:
            yield
        finally:
            with self._lock:
                self._leave(channels, notify)

    @asynccontextmanager
    async def awatch(
        self, execution_id: str, notify: Callable[[], None], *, changes: bool = False
    ) -> AsyncGenerator[None]:
        """Like watch(), without blocking the event loop. Unsubscribes also if it is cancelled while subscribing."""
        watching = self.watch(execution_id, notify, changes=changes)
        entering = asyncio.ensure_future(asyncio.to_thread(watching.__enter__))
        try:
            await asyncio.shield(entering)
            yield
        finally:
            await asyncio.shield(asyncio.ensure_future(_left(watching, entering)))

    def close(self) -> None:
        """Stop listening and wait for the thread. The listener may be used again afterwards."""
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
            self._thread = threading.Thread(target=self._listen, args=arguments, name="spanloom-listener", daemon=True)
            self._thread.start()

    def _leave(self, channels: Sequence[str], notify: Callable[[], None]) -> None:
        for channel in channels:
            self._watchers[channel].remove(notify)
        if empty := [channel for channel in channels if not self._watchers[channel]]:
            for channel in empty:
                del self._watchers[channel]
            if self._thread is not None:
                self._send("unsubscribe", *empty)
        if not self._watchers and not self._stop.is_set():
            self._wanted.clear()

    def _send(self, command: str, *channels: str) -> None:
        try:
            with self._queue.breaker.guard(needed=False):  # watchers poll the store as well
                getattr(self._pubsub, command)(*channels)
        except QueueUnavailable as error:
            _log.debug("listener_unavailable", error=str(error))
            self._behind = True  # the listener's thread subscribes when Redis is back

    def _listen(self, pubsub: Any, stop: threading.Event) -> None:
        pause = 0.0
        while True:
            wanted = self._wanted.wait(_LISTEN_SECONDS)
            if stop.is_set():
                break
            if not wanted:
                continue
            try:
                with self._queue.breaker.guard(anyway=True, needed=False):
                    message = pubsub.get_message(timeout=_LISTEN_SECONDS)
                pause = 0.0
            except QueueUnavailable as error:
                # One warning per outage is enough for a user at a terminal.
                (_log.debug if pause else _log.warning)("listener_reconnects", error=str(error))
                pause = min(pause * 2, _PAUSES[1]) or _PAUSES[0]
                stop.wait(pause)
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
            self._notify_all()

    def _subscribe_anew(self, broken: Any) -> Any:
        with self._lock:
            broken.close()
            if self._pubsub is not broken:
                return broken  # another thread listens by now; this one is about to see its end
            self._pubsub = self._queue.redis.pubsub(ignore_subscribe_messages=True)
            if self._watchers:
                self._send("subscribe", *self._watchers)
            self._notify_all()
            return self._pubsub

    def _notify_all(self) -> None:
        """Notify every watcher, so that it reads the store: messages published in between are lost."""
        for watchers in list(self._watchers.values()):
            for notify in list(watchers):
                notify()


def waker(signal: asyncio.Event) -> Callable[[], None]:
    """Return a function that sets `signal` on the running event loop, from any thread, also once the loop is closed."""
    loop = asyncio.get_running_loop()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(signal.set)

    return wake


async def _left(watching: AbstractContextManager[None], entering: asyncio.Future[None]) -> None:
    await entering
    await asyncio.to_thread(watching.__exit__, None, None, None)
