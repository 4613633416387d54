"""The observable gauges of one worker: its claims and slots, its queues, its engine's definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from spanloom.engine.telemetry.instruments import Reading, unwatch, watch
from spanloom.engine.telemetry.metrics import (
    CACHE_RESULT,
    CLAIMS,
    DEFINITION_LOOKUPS,
    QUEUE_AGE,
    QUEUE_DEPTH,
    SLOTS,
    Metric,
)
from spanloom.engine.workflow.cache import DefinitionCache
from spanloom.worker.queue.depth import QueueDepths
from spanloom.worker.slots import Slots

__all__ = ["WorkerGauges"]


class WorkerGauges:
    """The gauges of one worker, which report between start and stop."""

    def __init__(self, slots: Slots, definitions: DefinitionCache, depths: QueueDepths) -> None:
        self._readings: list[tuple[Metric, Callable[[], Iterable[Reading]]]] = [
            (CLAIMS, lambda: [(slots.busy, {})]),
            (SLOTS, lambda: [(slots.size, {})]),
            (QUEUE_DEPTH, depths.read_depths),
            (QUEUE_AGE, depths.read_ages),
            (DEFINITION_LOOKUPS, lambda: _lookups(definitions)),
        ]

    def start(self) -> None:
        """Register the gauges."""
        for metric, read in self._readings:
            watch(metric, read)

    def stop(self) -> None:
        """Unregister the gauges."""
        for metric, read in self._readings:
            unwatch(metric, read)


def _lookups(definitions: DefinitionCache) -> list[Reading]:
    hits, misses = definitions.read_lookups()
    return [(hits, {CACHE_RESULT: "hit"}), (misses, {CACHE_RESULT: "miss"})]
