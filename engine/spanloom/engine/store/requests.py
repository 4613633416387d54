"""Requests and results of the store port.

Payloads are passed as JSON text, which every store keeps to the letter. Times are aware datetimes in UTC, durations
seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from spanloom.engine.arguments import Count, Json, JsonList, JsonObject, Seconds, Uuid, Version
from spanloom.engine.errors import SpanloomError, UnknownWorkflow
from spanloom.engine.store.states import ExecutionStatus, WaitKind

END = "$end"  #: the virtual node whose inputs are the sinks; its row carries the deadline
START = "$start"  #: the virtual node whose successors are the entry nodes; its row carries a delayed start
PARENT = "$parent"  #: the virtual node of an ended child; its row is due until the end has reached the parent's run


class Priority(StrEnum):
    """The urgency of an execution's node jobs. Each priority of a queue has a list of its own in Redis."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Outcome(StrEnum):
    """The result of running a claim."""

    COMPLETED = "completed"
    FAILED = "failed"  # for good
    SKIPPED = "skipped"  # by the handler's choice
    RETRY = "retry"  # due again after delay_seconds
    WAITING = "waiting"  # for what `wait_kind` names
    RELEASED = "released"  # given back unrun, or cut short by a shutdown; costs no attempt


# ---- transitions: requests and answers. What is made for each node run is a tuple, three times quicker to make ----


class NodeKey(NamedTuple):
    """The key of one node run."""

    execution_id: str
    node_id: str
    item: int = 0


@dataclass(frozen=True, slots=True)
class NodeJob:
    """A push to be made to Redis: the node run, its list, and the time of the decision on the store's clock."""

    execution_id: str
    node_id: str
    item: int
    node_type: str
    queue: str
    priority: str
    push: int
    pushed_at: datetime
    recovery_attempts: int = 0  # how often its worker was lost with it


@dataclass(frozen=True, slots=True)
class Replay:
    """The part of a start that takes over the results of an earlier execution of the same workflow.

    `carried` and `skipped` together are closed towards the entry nodes, and contain neither all nodes nor `$end`.
    """

    source: str  # its execution id
    carried: Sequence[str] = ()  # nodes whose results are taken over, those of their items too
    skipped: Sequence[str] = ()  # nodes to which no taken edge leads, in a version that differs from the source's


@dataclass(frozen=True, slots=True)
class StartRequest:
    """An execution to create. `execution_id` is proposed by the caller (UUIDv7)."""

    execution_id: Uuid
    workflow_id: str
    input: Json
    version: Version | None = None  # None: the latest, resolved inside the statement
    priority: Priority = Priority.NORMAL
    delay_seconds: Seconds = 0.0
    deadline_seconds: Seconds | None = None
    idempotency_key: str | None = None
    input_hash: str = ""
    key_ttl_seconds: Seconds | None = None  # None: the key never expires
    metadata: Mapping[str, str] = field(default_factory=dict)
    trace_parent: str | None = None  # W3C; its span id is the execution's own, pre-allocated span
    trace_state: str | None = None
    caller_span_id: str | None = None  # the parent of the execution's own span, 16 hex digits
    parent: NodeKey | None = None  # the node run that this execution is a child of
    parent_fence: int | None = None
    depth: Count = 0
    replay: Replay | None = None


@dataclass(frozen=True, slots=True)
class StartResult:
    """The result of a start: the id (an earlier one where the idempotency key was used), and the jobs to push."""

    execution_id: str
    version: int
    created: bool
    jobs: Sequence[NodeJob] = ()
    created_at: datetime | None = None  # on the store's clock, if this call created it


class ExecutionHeader(NamedTuple):
    """The facts of an execution that its handlers can read."""

    execution_id: str
    workflow_id: str
    version: int
    input: str  # JSON text
    priority: str
    depth: int
    parent_execution_id: str | None
    metadata: Mapping[str, str]
    trace_parent: str | None
    trace_state: str | None
    caller_span_id: str | None
    created_at: datetime


#: In `NodeClaim.results` in place of each parent's data, if together it takes more than limits.MAX_CLAIM_BYTES.
LEFT_OUT = ""


class NodeClaim(NamedTuple):
    """An exclusive, leased, fenced right to run a node run, with the data of its taken parents as JSON text.

    An item of a mapped node (item > 0) has its own `data` and no `results`. If the run waited and goes on from there,
    `woken` is the kind of that wait, unless it was a retry, and `wait_key` its key. `span` is the latest that was
    recorded of this run, `parent_spans` those of the parents in `results`, by node id.
    """

    node_id: str
    item: int
    node_type: str
    queue: str
    fence: int
    attempt: int  # from 1
    recovery_attempts: int
    results: Mapping[str, str]
    data: str | None = None  # JSON text
    woken: WaitKind | None = None
    wait_key: str | None = None
    span: str | None = None
    parent_spans: Mapping[str, str] = MappingProxyType({})


class Claim(NamedTuple):
    """A granted claim, with the header of its execution."""

    header: ExecutionHeader
    node: NodeClaim


class Refusal(StrEnum):
    """The reason why a claim was not granted. None of them is an error."""

    GONE = "gone"  # ended, or never was: a duplicate, late or foreign job
    TAKEN = "taken"  # a worker runs it
    NOT_READY = "not ready"  # waiting or held: the sweep or a resume will push it
    RETIRED = "retired"  # this worker's own lease lapsed; register anew


class LogLine(NamedTuple):
    """One log line of a node run."""

    level: str
    message: str
    at: datetime
    fields: JsonObject = "{}"
    attempt: Count = 1
    trace_id: str | None = None
    span_id: str | None = None


@dataclass(frozen=True, slots=True)
class NodeLines:
    """Log lines of a claimed node run, to be stored while it runs. Its record will not contain them."""

    execution_id: str
    node_id: str
    item: int
    fence: int
    lines: Sequence[LogLine]  # of one attempt, at least one
    after: int = 0  # the id that was returned for its lines before these; 0: they are the first
    again: bool = False  # they were sent before, and no answer came


class SpanLine(NamedTuple):
    """One finished or running span; ids are lower-case hex (32 and 16 digits), times Unix nanoseconds."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str  # OTel's: internal, consumer, …
    status: str  # unset | ok | error
    start_ns: int
    end_ns: int | None
    node_id: str | None = None
    item: Count = 0
    attempt: Count = 1
    attributes: JsonObject = "{}"
    links: JsonList = "[]"  # [{trace_id, span_id}]


class AttemptSpan(NamedTuple):
    """The span of the attempt that a record ends, in short form: it is kept with the run's result.

    Its id is the `span` of the record, its trace and its parent are those of the execution. Reads add the attributes
    that the result and the execution have.
    """

    start_ns: int
    end_ns: int
    attributes: JsonObject = "{}"
    links: JsonList = "[]"  # [[kind, span_id]], in the same trace


@dataclass(frozen=True, slots=True)
class FanOut:
    """The items for each of which a node is to be run. `items` is not empty; each item is JSON text."""

    items: Sequence[str]
    max_concurrency: int  # how many may be open at the same time
    tolerated_failures: int  # how many may fail before no further one is started


class RecordRequest(NamedTuple):
    """The outcome of one node run, to be recorded in one atomic step with all that follows from it."""

    execution_id: str
    node_id: str
    item: Count
    fence: int
    worker_id: str
    outcome: Outcome
    data: Json | None = None
    error: JsonObject | None = None  # {type, message, traceback, permanent}
    taken: tuple[str, ...] | None = None  # successors whose edge is taken; None: by each edge's `on`
    handled: bool = False  # of FAILED: the execution goes on even if no edge is taken
    delay_seconds: Seconds = 0.0  # of RETRY, and of WAITING for a timer
    due_at: datetime | None = None  # of WAITING for a timer: until then, in place of delay_seconds
    wait_kind: WaitKind | None = None  # of WAITING: any but a retry, which is an outcome of its own
    wait_key: str | None = None  # which one of that kind: of a child its execution id
    child: StartRequest | None = None  # of WAITING for a child
    fan_out: FanOut | None = None  # of WAITING for items
    spends_attempt: bool = True
    span: str | None = None  # of its attempt, stored with the run for the claims of the next attempt and the successors
    logs: Sequence[LogLine] = ()
    spans: Sequence[SpanLine] = ()
    own_span: AttemptSpan | None = None  # the span of that id, of COMPLETED, FAILED and SKIPPED; else it is in `spans`
    workflow: tuple[str, int] | None = None  # of the execution, with its version: spares the store a look
    successors: tuple[str, ...] = ()  # those this worker would run next, in order of preference
    most_following: Count = 1  # at most so many of them

    @property
    def key(self) -> NodeKey:
        """The key of the node run. Records of one call count in the order of their keys."""
        return NodeKey(self.execution_id, self.node_id, self.item)


class RecordResult(NamedTuple):
    """The result of a record: all that follows from it. `recorded` False: the fence is stale, nothing was written.

    With `refused` (and `recorded` True) the fence holds, but its child can't be started: nothing was written either.
    With `error` (and `recorded` False) the record could not be served, and nothing was written.
    """

    recorded: bool
    jobs: Sequence[NodeJob] = ()  # ready successors to push, without those that are claimed
    following: Sequence[NodeClaim] = ()  # claimed for this worker, to run at once
    ended: ExecutionStatus | None = None  # the execution's status, if this record ended it
    ended_at: datetime | None = None  # and when, on the store's clock
    refused: UnknownWorkflow | None = None
    error: SpanloomError | None = None  # StoreUnavailable: not now; any other: never

    @property
    def next(self) -> NodeClaim | None:
        """The first of `following`, if there is any."""
        return self.following[0] if self.following else None


@dataclass(frozen=True, slots=True)
class ControlResult:
    """The result of a control transition. `done` False: it was so before, nothing was written."""

    done: bool
    revision: int
    executions: Sequence[str] = ()  # of the family, whose status it changed: the requested one first
    jobs: Sequence[NodeJob] = ()


class ControlAction(StrEnum):
    """The control transitions that can be done to many executions in one step."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    ACKNOWLEDGE = "acknowledge"


@dataclass(frozen=True, slots=True)
class PurgeResult:
    """The result of a purge: the numbers of deleted rows. `more`: the limit was reached, call again."""

    executions: int
    keys: int  # idempotency keys, those that had expired too
    more: bool = False


@dataclass(frozen=True, slots=True)
class WorkerLease:
    """The lease of one worker process."""

    worker_id: str
    name: str
    host: str
    pid: int
    queues: Sequence[str]
    started_at: datetime
    lease_until: datetime
    running: int = 0  # claims held


@dataclass(frozen=True, slots=True)
class PendingExports:
    """Some of the executions in which a worker, now gone, recorded spans that it may not have exported."""

    worker_id: str
    execution_ids: Sequence[str]
    cursor: str | None = None  # for release_exports; None: these are the last


@dataclass(frozen=True, slots=True)
class EpochState:
    """The epoch of Redis, as the store holds it."""

    store_id: str
    epoch: int
    redis_run_id: str | None
    raised: bool = field(default=False, compare=False)  # by the very call that returns it


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The result of one pass of the sweep: the jobs to push, and the numbers of moved rows by cause.

    Causes: lost_job, lost_redis, lost_worker, retry, timer, child, start, deadline. `errors` holds, by their ids, the
    executions of which a row could not be moved; the rows of the others were.
    """

    jobs: Sequence[NodeJob]
    moved: Mapping[str, int]
    more: bool = False  # the limit was reached and rows were moved or deferred: call again
    ended: Sequence[str] = ()  # executions that ended in this pass (deadline)
    errors: Mapping[str, SpanloomError] = field(default_factory=dict)
    #: No row that is there becomes due, and no lease lapses, before so many seconds; inf: none ever does. 0: a store
    #: need not find out, and then its sweepers look as often as ever.
    due_in_seconds: float = field(default=0.0, compare=False)


ClaimAnswer = Claim | Refusal | SpanloomError
StartAnswer = StartResult | SpanloomError
