"""The notifier: publishes which watched executions have changed, and nothing while nobody watches."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import structlog

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.queue.node_queue import NodeQueue

__all__ = ["Notifier"]

_log = structlog.get_logger("spanloom.worker")
_GATHER_SECONDS = 0.01  #: the least between two round trips: changes of a busy execution are announced together


class Notifier:
    """Announce changes of watched executions, on a thread of its own that starts when it is first needed.

    Redis keeps a mark while anybody watches: every fetch brings it, and the sweeper looks twice a second. When it is
    another one, Redis is asked which executions are watched. Until a worker knows, and without Redis, watchers find
    out from the store.
    """

    def __init__(self, queue: NodeQueue, worker_name: str) -> None:
        self._queue = queue
        self._worker_name = worker_name
        self._mark = 0  # 0: nobody watches
        self._watched: frozenset[str] | None = frozenset()  # None: others than before, not yet known which
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def refresh_watched(self) -> None:
        """Read from Redis whether anybody watches, and what. Raises QueueUnavailable."""
        mark = self._queue.watched_mark()
        watched = self._queue.watched_executions() if mark else frozenset[str]()
        with self._lock:
            self._mark, self._watched = mark, watched

    def note_mark(self, mark: int) -> None:
        """Note the mark that came with a fetch."""
        if mark != self._mark:
            with self._lock:
                self._mark = mark
                self._watched = None if mark else frozenset()

    def changed(self, execution_ids: Iterable[str]) -> None:
        """Note that something of these executions was committed; costs next to nothing while nobody watches."""
        if not self._mark:
            return
        with self._lock:
            if self._watched is not None:
                execution_ids = self._watched.intersection(execution_ids)
                if not execution_ids:
                    return
            self._changed.update(execution_ids)
            if self._thread is None and not self._closed.is_set():
                name = f"spanloom-notifier-{self._worker_name}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Announce what is left, and end the thread."""
        with self._lock:
            self._closed.set()
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while self._wake.wait():
            self._wake.clear()
            try:
                if self._watched is None:
                    self.refresh_watched()
                with self._lock:
                    changed, self._changed = self._changed, set()
                    if self._watched is not None:
                        changed &= self._watched
                if changed:
                    self._queue.announce(changed)
            except QueueUnavailable as error:
                _log.debug("changes_not_announced", error=str(error))
                with self._lock:
                    self._changed.clear()  # watchers poll the store; nothing gathers while Redis is away
            if self._closed.wait(_GATHER_SECONDS):
                return
