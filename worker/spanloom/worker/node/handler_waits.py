"""Waits within handlers: each holds a slot, and the last slot may be the one that the awaited execution needs."""

from __future__ import annotations

import threading
import time

import structlog

from spanloom.engine.errors import StoreUnavailable, WaitRefused
from spanloom.engine.store.port import ExecutionStore
from spanloom.worker.slots import Slots
from spanloom.worker.telemetry.log_buffer import CURRENT, LogBuffer

__all__ = ["HandlerWaits"]

_log = structlog.get_logger("spanloom.worker")
_FRESH_SECONDS = 3.0  #: after its last check a wait has ended
_STUCK_SECONDS = 1.0  #: for so long nobody may be there: another worker may be about to start


class HandlerWaits:
    """The handlers of a worker that wait for executions, as the WaitGuard of each. Thread-safe.

    A wait is refused once every slot of this worker waits, and no other worker is alive. It is logged in any case: with
    other workers it can end, but they may all come to wait like this.
    """

    def __init__(self, store: ExecutionStore, slots: Slots, worker_name: str) -> None:
        self._store = store
        self._slots = slots
        self._worker_name = worker_name
        self._lock = threading.Lock()
        self._waiting: dict[LogBuffer, float] = {}  # by attempt: when it was checked last
        self._logged: set[tuple[object, object]] = set()
        self._stuck_since: float | None = None

    def check(self, execution_id: str) -> None:
        """Raise WaitRefused if this worker is the only one, and all of its slots wait."""
        attempt = CURRENT.get()
        if attempt is None:
            return
        now = time.monotonic()
        with self._lock:
            self._log_once(attempt, execution_id)
            self._waiting = {one: at for one, at in self._waiting.items() if now - at < _FRESH_SECONDS}
            self._waiting[attempt] = now
            if len(self._waiting) < self._slots.size:
                self._stuck_since = None
                return
        if self._others():
            self._stuck_since = None
            return
        self._stuck_since = self._stuck_since or now
        if now - self._stuck_since >= _STUCK_SECONDS:
            with self._lock:
                del self._waiting[attempt]
            raise WaitRefused(str(attempt.ids()["node_id"]), execution_id)

    def _others(self) -> bool:
        try:
            return any(worker.name != self._worker_name for worker in self._store.list_workers())
        except StoreUnavailable:
            return True

    def _log_once(self, attempt: LogBuffer, execution_id: str) -> None:
        ids = attempt.ids()
        key = (ids["node_id"], attempt.workflow_id)
        if key not in self._logged:
            self._logged.add(key)
            hint = "the wait holds a slot, which the other one may need; a node of type 'workflow' waits without one"
            _log.warning("handler_waits", **ids, waits_for=execution_id, hint=hint)
