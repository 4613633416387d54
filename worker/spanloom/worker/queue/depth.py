"""Queue depths: how many jobs wait on each list, and since when, as the sweep saw them last."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.telemetry.instruments import Reading
from spanloom.engine.telemetry.metrics import LIST, SYSTEM

__all__ = ["QueueDepths"]

_REFRESH_SECONDS = 2.0
_STALE_SECONDS = 30.0


class QueueDepths:
    """Remember the lists as the sweep saw them last: a collection of metrics waits for no Redis.

    While Redis is away nothing is reported, rather than old values.
    """

    def __init__(self, queue: NodeQueue) -> None:
        self._queue = queue
        self._refreshed_at = float("-inf")
        self._lists: Mapping[str, tuple[int, float]] = {}

    def refresh(self, heads: Mapping[str, datetime | None]) -> None:
        """Note what the sweep found (the queue's heads), and count the jobs, but not with every pass."""
        if time.monotonic() - self._refreshed_at < _REFRESH_SECONDS:
            return
        prefix, now = f"{self._queue.namespace}.", time.time()
        try:
            depths = self._queue.depths([prefix + name for name in heads])
        except QueueUnavailable:
            return  # the next pass meets it, too, and says so
        self._lists = {
            prefix + name: (depths[prefix + name], 0.0 if head is None else max(0.0, now - head.timestamp()))
            for name, head in heads.items()
        }
        self._refreshed_at = time.monotonic()

    def read_depths(self) -> Iterable[Reading]:
        """Return how many jobs wait on each list."""
        return [(depth, {SYSTEM: "rq", LIST: name}) for name, (depth, _) in self._fresh().items()]

    def read_ages(self) -> Iterable[Reading]:
        """Return for how many seconds the first job of each list has waited."""
        return [(age, {SYSTEM: "rq", LIST: name}) for name, (_, age) in self._fresh().items()]

    def _fresh(self) -> Mapping[str, tuple[int, float]]:
        return self._lists if time.monotonic() - self._refreshed_at < _STALE_SECONDS else {}
