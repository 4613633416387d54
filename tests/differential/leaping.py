"""A store on a clock that leaps: when all that is open waits for time, the next sweep finds that it has come."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import NodeStatus
from spanloom.stores import open_store

_CENTURY = 100 * 365.25 * 24 * 3600.0  # a lease that no leap ends


class LeapingClock:
    """The machine's monotonic clock, and what it leapt ahead."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = datetime.now(UTC)
        self._origin = time.monotonic()
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        """Return the time."""
        with self._lock:
            return self._start + timedelta(seconds=time.monotonic() - self._origin) + self._ahead

    def leap(self, to: datetime) -> None:
        """Make it `to`, unless it is later already."""
        now = self()
        with self._lock:
            self._ahead += max(to - now, timedelta())


class _Leaps:
    """What is put before a store's own methods; each call is told to `changed`."""

    clock: LeapingClock
    changed: threading.Condition

    def register_worker(self, worker_id: str, *, lease_seconds: float, **options: Any) -> None:
        self._timed("register_worker", worker_id, lease_seconds=_CENTURY, **options)

    def renew_lease(self, worker_id: str, *, lease_seconds: float, **options: Any) -> Any:
        return self._timed("renew_lease", worker_id, lease_seconds=_CENTURY, **options)

    def sweep(self, **options: Any) -> Any:
        swept = self._timed("sweep", **options)
        if not any(swept.moved.values()) and not swept.more and self._leap():
            return self._timed("sweep", **options)
        return swept

    def _leap(self) -> bool:
        store: Any = self
        due = store.next_due()
        if due is None or due <= self.clock():
            return False
        open_runs = store.stats().open_node_runs
        if open_runs[NodeStatus.QUEUED] or open_runs[NodeStatus.RUNNING]:
            return False
        self.clock.leap(due)
        return True

    def _timed(self, transition: str, /, *args: Any, **options: Any) -> Any:
        options["now"] = options.get("now") or self.clock()
        answer = getattr(super(), transition)(*args, **options)
        with self.changed:
            self.changed.notify_all()
        return answer


def _on_the_clock(name: str) -> Callable[..., Any]:
    def method(self: _Leaps, *args: Any, **options: Any) -> Any:
        return self._timed(name, *args, **options)

    return method


for _name, _method in inspect.getmembers(ExecutionStore, inspect.isfunction):
    if "now" in inspect.signature(_method).parameters and not hasattr(_Leaps, _name):
        setattr(_Leaps, _name, _on_the_clock(_name))


def leaping_store(url: str) -> Any:
    """Make the store that `url` names, on a leaping clock: `store.clock`."""
    kind = type(open_store(url))
    store: Any = type(f"Leaping{kind.__name__}", (_Leaps, kind), {}).from_url(url)  # type: ignore[attr-defined]
    store.clock, store.changed = LeapingClock(), threading.Condition()
    return store
