"""The calls of a worker that its store can't serve now: logged ever more rarely, counted, and shown by readiness."""

from __future__ import annotations

import threading
import time

import structlog

from spanloom.engine.errors import (
    ConfigurationError,
    SpanloomError,
    StoreNotMigrated,
    StoreUnavailable,
    Unavailability,
)
from spanloom.engine.telemetry.instruments import instruments

__all__ = ["StoreTroubles", "as_passing"]

_log = structlog.get_logger("spanloom.worker")
_PAUSES = (1.0, 60.0)  #: first and longest between two log lines of one trouble
_CURRENT_SECONDS = 60.0  #: how long a trouble is shown after it was met last: every call is repeated sooner


def as_passing(error: Exception) -> StoreUnavailable | None:
    """Return an error of a store's call as one that may pass; None if the store would refuse the same item again.

    What an operator or another process puts right passes, and what this process lacks at the moment.
    """
    if isinstance(error, StoreUnavailable):
        return error
    if isinstance(error, ConfigurationError | StoreNotMigrated):
        return StoreUnavailable(str(error), reason=Unavailability.OTHER)
    if isinstance(error, OSError | MemoryError):
        what = f"this worker can't call its store: {type(error).__name__}: {error}"
        return StoreUnavailable(what, reason=Unavailability.RESOURCES)
    return None


class _Trouble:
    __slots__ = ("error", "log_at", "met_at", "pause", "since")

    def __init__(self, error: SpanloomError, now: float) -> None:
        self.error = error
        self.since = self.met_at = self.log_at = now
        self.pause = _PAUSES[0]


class StoreTroubles:
    """The troubles of one worker with its store, by operation. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _Trouble] = {}

    def met(self, operation: str, error: SpanloomError, event: str, *, subject: str = "", **fields: object) -> None:
        """Note that an operation was not served, and log it as `event` unless that was done a moment ago.

        `subject` is the item, if others are served.
        """
        now = time.monotonic()
        reason = str(error.reason) if isinstance(error, StoreUnavailable) else "refused"
        with self._lock:
            if f"{operation}{subject}" not in self._open:
                self._forget_old(now)
            trouble = self._open.setdefault(f"{operation}{subject}", _Trouble(error, now))
            trouble.error, trouble.met_at = error, now
            is_due = now >= trouble.log_at
            if is_due:
                trouble.log_at = now + trouble.pause
                trouble.pause = min(trouble.pause * 2, _PAUSES[1])
        if is_due:
            _log.warning(event, **fields, reason=reason, error=str(error), seconds=round(now - trouble.since, 1))
        if (measured := instruments()) is not None:
            measured.store_unavailable(operation, reason)

    def over(self, operation: str, *, subject: str = "") -> None:
        """Note that an operation is served again. Costs next to nothing if it always was."""
        if not self._open:
            return
        with self._lock:
            trouble = self._open.pop(f"{operation}{subject}", None)
        if trouble is not None:
            seconds = round(time.monotonic() - trouble.since, 1)
            _log.info("store_serves_again", operation=f"{operation}{subject}", seconds=seconds)

    def problems(self) -> list[str]:
        """Return a sentence for each operation that is not served now."""
        now = time.monotonic()
        with self._lock:
            return [
                f"{what}, for {now - trouble.since:.0f} s: {trouble.error}"
                for what, trouble in self._open.items()
                if now - trouble.met_at < _CURRENT_SECONDS
            ]

    def _forget_old(self, now: float) -> None:
        for what in [what for what, trouble in self._open.items() if now - trouble.met_at >= _CURRENT_SECONDS]:
            del self._open[what]
