"""The OpenTelemetry instruments of the table of metrics, made once an SDK is set up.

Only the OpenTelemetry API is imported. Without a MeterProvider `instruments()` returns None, and callers stop there:
no attributes are built, no instrument is called.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from spanloom.engine.errors import SpanloomError
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import StartAnswer, StartRequest, StartResult
from spanloom.engine.telemetry.metrics import (
    CAUSE,
    DATABASE,
    ERROR,
    EXECUTIONS_ENDED,
    EXECUTIONS_STARTED,
    LEASES_LOST,
    LIST,
    METRICS,
    NODE_DURATION,
    NODE_RUNS,
    NODE_TYPE,
    OTHER,
    OUTCOME,
    QUEUE_CALL,
    QUEUE_CALLS,
    QUEUE_WAIT,
    REASON,
    RECYCLES,
    STATUS,
    STORE_CALL,
    STORE_CALLS,
    STORE_UNAVAILABLE,
    SWEEP_MOVED,
    SWEEPS,
    SYSTEM,
    WORKFLOW,
    Kind,
    Metric,
)
from spanloom.engine.telemetry.tracing import LOOK_AGAIN_SECONDS, SCOPE

__all__ = ["Instruments", "Reading", "count_ended", "count_started", "instruments", "unwatch", "watch"]

_LOOK_UPS = 100  #: reads of ended executions from the store, for their workflows' ids, in one transition

Reading = tuple[float, Mapping[str, str]]  #: a value and its attributes


class Instruments:
    """The instruments of one MeterProvider; each records the attributes of its row in the table."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(SCOPE)
        self.provider = provider
        made: dict[str, Any] = {}  # Any: of six classes without a common method
        for metric in METRICS:
            if metric.kind is Kind.COUNTER:
                made[metric.name] = meter.create_counter(metric.name, metric.unit, metric.description)
            elif metric.kind is Kind.HISTOGRAM:
                made[metric.name] = meter.create_histogram(
                    metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=metric.bounds
                )
            else:
                create = {
                    Kind.GAUGE: meter.create_observable_gauge,
                    Kind.UP_DOWN_COUNTER: meter.create_observable_up_down_counter,
                    Kind.OBSERVED_COUNTER: meter.create_observable_counter,
                }[metric.kind]
                create(metric.name, [_observer(metric)], metric.unit, metric.description)
        self._started = made[EXECUTIONS_STARTED.name]
        self._ended = made[EXECUTIONS_ENDED.name]
        self._runs = made[NODE_RUNS.name]
        self._run_seconds = made[NODE_DURATION.name]
        self._waits = made[QUEUE_WAIT.name]
        self._leases_lost = made[LEASES_LOST.name]
        self._recycles = made[RECYCLES.name]
        self._sweeps = made[SWEEPS.name]
        self._last_loop_at = made[SWEEP_MOVED.name]
        self._store_calls = made[STORE_CALLS.name]
        self._store_unavailable = made[STORE_UNAVAILABLE.name]
        self._queue_calls = made[QUEUE_CALLS.name]

    def execution_started(self, workflow_id: str) -> None:
        """Count an execution that was created."""
        self._started.add(1, {WORKFLOW: workflow_id})

    def execution_ended(self, workflow_id: str, status: str) -> None:
        """Count an execution that this process ended."""
        self._ended.add(1, {WORKFLOW: workflow_id, STATUS: status})

    def node_ran(self, node_type: str, outcome: str, seconds: float, error: str | None) -> None:
        """Count and time a run; `error` is the class of its handler's exception, if any."""
        attributes = {NODE_TYPE: node_type, OUTCOME: outcome}
        self._run_seconds.record(seconds, attributes)
        self._runs.add(1, attributes if error is None else {**attributes, ERROR: error})

    def job_waited(self, list_name: str, seconds: float) -> None:
        """Record the time that a job was on its list; at least 0, as clocks may differ."""
        self._waits.record(max(0.0, seconds), {SYSTEM: "rq", LIST: list_name})

    def lease_lost(self) -> None:
        """Count a lease that lapsed."""
        self._leases_lost.add(1)

    def worker_recycled(self) -> None:
        """Count a process that requests its replacement."""
        self._recycles.add(1)

    def swept(self, moved: Mapping[str, int], error: BaseException | None = None) -> None:
        """Count a whole pass of the sweep with the rows it moved, or a failed pass."""
        self._sweeps.add(1, {} if error is None else {ERROR: type(error).__name__})
        for cause, count in moved.items():
            if count:
                self._last_loop_at.add(count, {CAUSE: cause})

    def store_called(self, database: str, operation: str, seconds: float, error: BaseException | None) -> None:
        """Time a call of the store."""
        attributes = {DATABASE: database, STORE_CALL: operation}
        self._store_calls.record(seconds, attributes if error is None else attributes | {ERROR: type(error).__name__})

    def store_unavailable(self, operation: str, reason: str) -> None:
        """Count something that the store could not do for a worker now."""
        self._store_unavailable.add(1, {STORE_CALL: operation, REASON: str(reason)})

    def queue_called(self, operation: str, seconds: float, error: BaseException | None) -> None:
        """Time an exchange with Redis."""
        attributes = {SYSTEM: "rq", QUEUE_CALL: operation}
        self._queue_calls.record(seconds, attributes if error is None else attributes | {ERROR: type(error).__name__})


_made: Instruments | None = None  # of the process, as OpenTelemetry's providers are
_making = threading.Lock()
_look_again_at = 0.0
_watched: dict[str, list[Callable[[], Iterable[Reading]]]] = {}


def instruments() -> Instruments | None:
    """Return the instruments of the current MeterProvider; None without one, for up to 0.1 s after one is set.

    Takes less than 1 µs.
    """
    global _made, _look_again_at
    if _made is None and time.monotonic() < _look_again_at:
        return None
    provider = metrics.get_meter_provider()
    if _made is not None and _made.provider is provider:
        return _made
    if type(provider).__module__.startswith("opentelemetry.metrics"):  # the API's own, which do nothing
        _look_again_at = time.monotonic() + LOOK_AGAIN_SECONDS
        return None
    with _making:
        if _made is None or _made.provider is not provider:
            _made = Instruments(provider)
        return _made


def watch(metric: Metric, read: Callable[[], Iterable[Reading]]) -> None:
    """Call `read` for an observed metric at each collection; it must neither block nor fail."""
    _watched.setdefault(metric.name, []).append(read)


def unwatch(metric: Metric, read: Callable[[], Iterable[Reading]]) -> None:
    """Unregister `read`; no error if it was never registered."""
    if read in (reads := _watched.get(metric.name, [])):
        reads.remove(read)


def count_started(requests: Sequence[StartRequest], answers: Sequence[StartAnswer]) -> None:
    """Count the executions that were created by these requests."""
    found = instruments()
    if found is None:
        return
    for request, answer in zip(requests, answers, strict=True):
        # By the requested id: the result of a start that was sent again shows it as existing.
        if isinstance(answer, StartResult) and answer.execution_id == request.execution_id:
            found.execution_started(request.workflow_id)


def count_ended(store: ExecutionStore, execution_ids: Sequence[str], status: str) -> None:
    """Count executions that ended without a node's record; their workflows are read from the store."""
    found = instruments()
    if found is None:
        return
    for number, execution_id in enumerate(execution_ids):
        try:
            execution = store.get_execution(execution_id, data_limit=0) if number < _LOOK_UPS else None
        except SpanloomError:  # counting must not fail the operation
            execution = None
        found.execution_ended(OTHER if execution is None else execution.workflow_id, status)


def _observer(metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
    adds = metric.kind is not Kind.GAUGE

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        found: dict[tuple[tuple[str, str], ...], float] = {}
        for read in dict.fromkeys(_watched.get(metric.name, ())):  # one definition cache, several workers
            for value, attributes in read():
                key = tuple(attributes.items())
                # Several workers of one process have claims each, but report the same lists.
                found[key] = value + (found.get(key, 0) if adds else 0)
        return [Observation(value, dict(key)) for key, value in found.items()]

    return observe
