"""The table of all metrics: the source of the instruments, with which the documentation is compared by a test."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["METRICS", "Kind", "Metric"]

WORKFLOW = "spanloom.workflow.id"
STATUS = "spanloom.execution.status"
NODE_TYPE = "spanloom.node.type"
OUTCOME = "spanloom.node.outcome"
CAUSE = "spanloom.sweep.cause"
CACHE_RESULT = "spanloom.cache.result"
STORE_CALL = "spanloom.store.operation"
REASON = "spanloom.store.reason"
DATABASE = "db.system.name"
SYSTEM = "messaging.system"
LIST = "messaging.destination.name"
QUEUE_CALL = "messaging.operation.name"
ERROR = "error.type"

OTHER = "_OTHER"  #: OpenTelemetry's word for a value that is not distinguished
LOST = "lost"  #: the outcome of a run that had lost its claim when it was to be recorded
_CALL_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_RUN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Kind(StrEnum):
    """The kind of an instrument. Observed kinds are read when metrics are collected."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"  # observed
    UP_DOWN_COUNTER = "up-down counter"  # observed
    OBSERVED_COUNTER = "counter, observed"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `attributes` are all that it may have; `error.type` is set on errors only."""

    name: str
    kind: Kind
    unit: str
    attributes: tuple[str, ...]
    description: str
    bounds: tuple[float, ...] | None = None  # of a histogram's buckets


EXECUTIONS_STARTED = Metric(
    "spanloom.executions.started",
    Kind.COUNTER,
    "{execution}",
    (WORKFLOW,),
    "Executions that were created, children too, by the process that created them.",
)
EXECUTIONS_ENDED = Metric(
    "spanloom.executions.ended",
    Kind.COUNTER,
    "{execution}",
    (WORKFLOW, STATUS),
    "Executions that ended, by the process that ended them; one that is retried ends again.",
)
NODE_RUNS = Metric(
    "spanloom.node.runs",
    Kind.COUNTER,
    "{run}",
    (NODE_TYPE, OUTCOME, ERROR),
    "Runs of nodes by what came of them: completed, failed, skipped, retry, waiting, released, or lost.",
)
NODE_DURATION = Metric(
    "spanloom.node.duration",
    Kind.HISTOGRAM,
    "s",
    (NODE_TYPE, OUTCOME),
    "How long a run took from its claim until its outcome was known, without the record.",
    _RUN_SECONDS,
)
QUEUE_WAIT = Metric(
    "spanloom.queue.wait_time",
    Kind.HISTOGRAM,
    "s",
    (SYSTEM, LIST),
    "How long a node job waited from its push to its claim; runs that a worker goes on with at once have no job.",
    _RUN_SECONDS,
)
QUEUE_DEPTH = Metric(
    "spanloom.queue.depth",
    Kind.GAUGE,
    "{job}",
    (SYSTEM, LIST),
    "Node jobs that wait on a list; each worker tells of every list of its namespace.",
)
QUEUE_AGE = Metric(
    "spanloom.queue.oldest_age",
    Kind.GAUGE,
    "s",
    (SYSTEM, LIST),
    "How long ago the first job of a list was pushed; 0 for an empty list.",
)
CLAIMS = Metric("spanloom.worker.claims", Kind.UP_DOWN_COUNTER, "{claim}", (), "Node runs that this worker runs now.")
SLOTS = Metric("spanloom.worker.slots", Kind.UP_DOWN_COUNTER, "{slot}", (), "Node runs that this worker has room for.")
LEASES_LOST = Metric(
    "spanloom.worker.leases.lost",
    Kind.COUNTER,
    "{lease}",
    (),
    "Leases of this worker that lapsed, with all their claims.",
)
RECYCLES = Metric(
    "spanloom.worker.recycles",
    Kind.COUNTER,
    "{process}",
    (),
    "Replacements that this worker's process has requested, after --max-nodes or beyond --max-memory.",
)
SWEEPS = Metric("spanloom.sweeps", Kind.COUNTER, "{sweep}", (ERROR,), "Passes of the sweep; error.type if one failed.")
SWEEP_MOVED = Metric(
    "spanloom.sweep.moved",
    Kind.COUNTER,
    "{row}",
    (CAUSE,),
    "What sweeps moved on, by cause: retry, timer, start, child, deadline, lost_job, lost_worker, lost_redis.",
)
DEFINITION_LOOKUPS = Metric(
    "spanloom.definitions.lookups",
    Kind.OBSERVED_COUNTER,
    "{lookup}",
    (CACHE_RESULT,),
    "Look-ups of workflow definitions in the worker's cache: hit, or miss.",
)
STORE_CALLS = Metric(
    "spanloom.store.call.duration",
    Kind.HISTOGRAM,
    "s",
    (DATABASE, STORE_CALL, ERROR),
    "How long the store took for one call, by its method.",
    _CALL_SECONDS,
)
STORE_UNAVAILABLE = Metric(
    "spanloom.store.unavailable",
    Kind.COUNTER,
    "{call}",
    (STORE_CALL, REASON),
    "What the store could not do for a worker at that moment (claim, record, sweep, lease), by reason: away, time "
    "limit, locked, read-only, rights, resources, storage, schema, other, refused.",
)
QUEUE_CALLS = Metric(
    "spanloom.queue.call.duration",
    Kind.HISTOGRAM,
    "s",
    (SYSTEM, QUEUE_CALL, ERROR),
    "How long Redis took for one exchange, by what it was for; waiting for the next job is none.",
    _CALL_SECONDS,
)

METRICS = (
    EXECUTIONS_STARTED,
    EXECUTIONS_ENDED,
    NODE_RUNS,
    NODE_DURATION,
    QUEUE_WAIT,
    QUEUE_DEPTH,
    QUEUE_AGE,
    CLAIMS,
    SLOTS,
    LEASES_LOST,
    RECYCLES,
    SWEEPS,
    SWEEP_MOVED,
    DEFINITION_LOOKUPS,
    STORE_CALLS,
    STORE_UNAVAILABLE,
    QUEUE_CALLS,
)
