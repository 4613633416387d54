"""The tally: what a worker counts of the runs it records, and tells of itself when metrics are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from spanloom.engine.store.requests import Claim, Outcome, RecordResult
from spanloom.engine.telemetry.instruments import Instruments, Reading, unwatch, watch
from spanloom.engine.telemetry.metrics import (
    CLAIMS,
    DEFINITION_LOOKUPS,
    LOST,
    OTHER,
    QUEUE_AGE,
    QUEUE_DEPTH,
    SLOTS,
    Metric,
)
from spanloom.engine.workflow.cache import DefinitionCache
from spanloom.worker.node.outcomes import Ending
from spanloom.worker.queue.depth import QueueDepths
from spanloom.worker.slots import Slots

__all__ = ["WorkerGauges", "count_run"]


class WorkerGauges:
    """Tell of one worker, between start and stop: its claims and slots, its lists, its engine's definitions."""

    def __init__(self, slots: Slots, definitions: DefinitionCache, backlog: QueueDepths) -> None:
        self._readings: list[tuple[Metric, Callable[[], Iterable[Reading]]]] = [
            (CLAIMS, lambda: [(slots.busy, {})]),
            (SLOTS, lambda: [(slots.size, {})]),
            (QUEUE_DEPTH, backlog.read_depths),
            (QUEUE_AGE, backlog.read_ages),
            (DEFINITION_LOOKUPS, definitions.read_lookups),
        ]

    def start(self) -> None:
        """Be asked from now on."""
        for metric, read in self._readings:
            watch(metric, read)

    def stop(self) -> None:
        """Be asked no more."""
        for metric, read in self._readings:
            unwatch(metric, read)


def count_run(
    measured: Instruments,
    claim: Claim,
    ending: Ending,
    answer: RecordResult,
    error: BaseException | None,
    seconds: float,
) -> None:
    """Count a run that was recorded, or whose claim was lost, and what began or ended with it."""
    outcome = ending.outcome if answer.recorded else LOST
    failed = outcome in (Outcome.FAILED, Outcome.RETRY)
    kind = OTHER if error is None else type(error).__qualname__
    measured.node_ran(claim.node.node_type, outcome, seconds, kind if failed else None)
    if ending.child is not None and answer.recorded:
        measured.execution_started(ending.child.workflow_id)
    if answer.ended is not None:
        measured.execution_ended(claim.header.workflow_id, answer.ended)
