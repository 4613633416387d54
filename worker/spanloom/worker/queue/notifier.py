"""The notifier: publishes the executions that have changed, where no other round trip to Redis does it soon."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import structlog

from spanloom.engine.errors import QueueUnavailable
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.service import JOIN_SECONDS

__all__ = ["Notifier"]

_log = structlog.get_logger("spanloom.worker")
_GATHER_SECONDS = 0.05  #: how long a change waits for a fetch or a push that takes it along


class Notifier:
    """The service that bounds the delay of published changes.

    A change is sent with the next fetch, push or other round trip of the worker. A worker that runs nodes inline makes
    no round trip for seconds: then the notifier's thread makes one, twenty times a second at most.
    """

    def __init__(self, consumer: JobConsumer, worker_name: str) -> None:
        self._consumer = consumer
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"spanloom-notifier-{worker_name}", daemon=True)

    def changed(self, execution_ids: Iterable[str]) -> None:
        """Mark these executions as changed; called after each commit."""
        self._consumer.publish_changed(execution_ids)
        if not self._wake.is_set():  # setting it again would cost each node of a busy worker a lock
            self._wake.set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the remaining changes are published with the consumer's last flush."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while self._wake.wait():
            self._wake.clear()  # before `stopped` is read: a stop that comes later sets it again
            if self._stopped.wait(_GATHER_SECONDS):
                return
            if not self._consumer.has_changes:
                continue  # another round trip took them along
            try:
                self._consumer.flush()
            except QueueUnavailable as error:
                _log.debug("changes_not_published", error=str(error))  # a watcher reads the store
