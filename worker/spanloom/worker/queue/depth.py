"""Queue depths: the number of jobs that wait on each list, and since when, as of the last sweep."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.side_lists import side_list
from spanloom.engine.telemetry.instruments import Reading
from spanloom.engine.telemetry.metrics import LIST, SYSTEM

__all__ = ["QueueDepths"]

_REFRESH_SECONDS = 2.0
_STALE_SECONDS = 30.0


class QueueDepths:
    """The depths and ages of the lists as of the last sweep, so that collecting metrics does not wait for Redis.

    While Redis is away nothing is reported, instead of old values.
    """

    def __init__(self, queue: NodeQueue) -> None:
        self._queue = queue
        self._refreshed_at = float("-inf")
        self._lists: Mapping[str, tuple[int, float]] = {}

    def refresh(self, heads: Mapping[str, datetime | None]) -> None:
        """Store the heads that the sweep read, and count the jobs; once in two seconds at most."""
        if time.monotonic() - self._refreshed_at < _REFRESH_SECONDS:
            return
        prefix, now = f"{self._queue.namespace}.", time.time()
        try:
            named = {name: prefix + _list_name(name) for name in heads}
            depths = self._queue.depths(list(named.values()))
        except QueueUnavailable:
            return  # the next pass meets it too, and logs it
        self._lists = {
            named[name]: (depths[named[name]], 0.0 if head is None else max(0.0, now - head.timestamp()))
            for name, head in heads.items()
            if named[name] in depths  # else it is no list
        }
        self._refreshed_at = time.monotonic()

    def read_depths(self) -> Iterable[Reading]:
        """Return the number of jobs that wait on each list."""
        return [(depth, {SYSTEM: "rq", LIST: name}) for name, (depth, _) in self._fresh().items()]

    def read_ages(self) -> Iterable[Reading]:
        """Return the seconds for which the first job of each list has waited."""
        return [(age, {SYSTEM: "rq", LIST: name}) for name, (_, age) in self._fresh().items()]

    def _fresh(self) -> Mapping[str, tuple[int, float]]:
        return self._lists if time.monotonic() - self._refreshed_at < _STALE_SECONDS else {}


def _list_name(name: str) -> str:
    base, _, node_type = name.partition("@")
    return side_list(base, node_type) if node_type else base
