"""The store port: what an execution store must do. The docstrings are the contract; the conformance suite proves it.

A store is the truth; Redis only hints. Every method below is one transition and one transaction: a crash at any
instruction leaves all of it or none. Methods are synchronous, safe to call from many threads, and work on the
store's own clock; `now` overrides it in tests. A store that does not answer raises StoreUnavailable, one that
refuses a statement StoreRefused; nothing else about its driver shows. A method called inside `transaction()` joins
that transaction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from spanloom.engine.definitions import Workflow
from spanloom.engine.records import (
    ClaimAnswer,
    Controlled,
    EpochState,
    LogLine,
    NodeJob,
    NodeKey,
    Record,
    Recorded,
    SpanLine,
    StartAnswer,
    StartRequest,
    Swept,
    WorkerLease,
)
from spanloom.engine.views import (
    Attempt,
    Event,
    Execution,
    ExecutionFilter,
    LogRecord,
    NodeRun,
    Page,
    SpanRecord,
    StoreStats,
    WorkflowSummary,
    WorkflowVersion,
)

__all__ = [
    "Control",
    "ExecutionReads",
    "ExecutionStore",
    "Lifecycle",
    "NodeTransitions",
    "Recovery",
    "Telemetry",
    "WorkerLeases",
    "WorkflowVersions",
    "queue_key",
]


class WorkflowVersions(ABC):
    """Definitions: immutable versions, numbered 1, 2, 3 … per workflow without gaps."""

    @abstractmethod
    def save_workflow(
        self,
        workflow: Workflow,
        *,
        change_notes: str | None = None,
        created_by: str | None = None,
        expected_version: int | None = None,
        now: datetime | None = None,
    ) -> int:
        """Save `workflow` (already validated) as the next version, or return the newest one if its content is equal.

        Content is equal when `workflow.digest()` is. Race-free: concurrent saves of different content get
        different numbers, of equal content the same one. With `expected_version` (0: not registered yet) raises
        StaleVersion, `current` being the newest WorkflowVersion or None, unless that is the newest version.
        Also saves the edges that transitions follow. Saving does not activate a deactivated workflow.
        """

    @abstractmethod
    def get_workflow(self, workflow_id: str, version: int | None = None) -> Workflow | None:
        """Return the definition of `version`, or of the newest; None if there is none."""

    @abstractmethod
    def get_workflow_version(self, workflow_id: str, version: int | None = None) -> WorkflowVersion | None:
        """Return the version with its history fields (newest if None); None if there is none."""

    @abstractmethod
    def list_workflow_versions(
        self, workflow_id: str, *, limit: int = 100, cursor: str | None = None
    ) -> Page[WorkflowVersion]:
        """List versions, newest first. Unknown workflow: an empty page."""

    @abstractmethod
    def list_workflows(
        self, *, active: bool | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[WorkflowSummary]:
        """List workflows by id, ascending; `active` filters."""

    @abstractmethod
    def deactivate_workflow(self, workflow_id: str) -> None:
        """Refuse new executions of every version; running ones go on. Raises UnknownWorkflow; twice is no error."""

    @abstractmethod
    def activate_workflow(self, workflow_id: str) -> None:
        """Allow new executions again. Raises UnknownWorkflow; twice is no error."""


class NodeTransitions(ABC):
    """The hot path. Each takes a list and answers per item, in order: one bad item fails itself, not the batch."""

    @abstractmethod
    def create_executions(
        self,
        requests: Sequence[StartRequest],
        *,
        epoch: int = 0,
        connection: Any = None,
        now: datetime | None = None,
    ) -> list[StartAnswer]:
        """Create executions, each whole or not at all.

        Resolves the latest version in the same statement that creates; creates the `$end` row (pending, as many
        inputs as there are sinks, `due_at` = the deadline) and one queued node run per entry node, push 1,
        `pushed_epoch` = epoch. With `delay_seconds` > 0 the execution is pending and only a `$start` row (waiting,
        timer, due then) is made; the deadline counts from the delayed start. Answers UnknownWorkflow (also for
        an unknown version, or a deactivated one), or IdempotencyConflict when the key was used with another
        `input_hash`; a key that was used with the same one answers that execution, created False, no jobs.
        An expired key is free again. `connection` is a caller's own psycopg or SQLAlchemy connection to the same
        Postgres: all is written in its transaction and jobs are due at once for the sweep, none are answered;
        other stores raise ConfigurationError. Events: execution.created, execution.started, node.queued.
        """

    @abstractmethod
    def claim(
        self, keys: Sequence[NodeKey], *, worker_id: str, token: str | None = None, now: datetime | None = None
    ) -> list[ClaimAnswer]:
        """Claim queued node runs for a worker whose lease is live.

        Given only for a `queued` run of a `running` execution: it becomes running, its fence rises by one, it has
        no `due_at`, and the answer holds the data of all parents whose edge was taken, read after the last
        arrival was committed; for an item of a mapped node its own data instead. A run that waited for a timer, a
        child or its items is claimed with that as `woken`, and with its wait_key, until its next record, however
        often it is released, lost or held in between. A queued run whose execution is paused or failed becomes held
        and answers NOT_READY. Waits for a locked row instead of skipping it. The same key twice in one call is claimed
        once. A call sent again with the same `token` (unique for each first call), because its answer was lost,
        answers the same claims as long as they are live; without a token the worker finds its own runs TAKEN.
        Event: node.started.
        """

    @abstractmethod
    def record(self, records: Sequence[Record], *, epoch: int = 0, now: datetime | None = None) -> list[Recorded]:
        """Record outcomes of claims, and all that follows, atomically.

        Fenced: unless the run is running under that worker and fence, answers recorded=False and writes nothing;
        but a record sent again (same worker, fence and outcome, already recorded) writes nothing and answers with
        the same continuation. In the common case one round trip.

        COMPLETED, FAILED, SKIPPED end the run: it leaves the open rows, its result row keeps data, error, attempt,
        fence, worker and which edges were taken. It arrives at every successor, once per edge; arrivals at one
        row in one call are summed first. When all inputs of a successor have arrived: some taken → ready, none →
        skipped, and the skip travels on, to any depth. Ready means queued (push 1) in a running execution, held
        in any other that is not cancelled. The first of `successors` that became ready by this record and whose
        queue is the recorded node's is claimed for this worker at once (`next`) instead of pushed.
        FAILED is handled if an edge to a successor is taken, or if the record says so. If not it arrives nowhere, so
        that a retry finds what comes after it untouched, and it fails a running or paused execution, whose error is
        then this one with `node_id` and whose queued and retry-waiting runs become held. Arrivals count whatever the
        execution's status. When `$end` has all arrivals, a running or paused execution completes. Nothing changes an
        ended execution's status.

        RETRY makes the run waiting (kind retry, due after delay_seconds), its attempt rises if `spends_attempt`, and
        it forgets what woke it; in a failed execution it is held. RELEASED makes it queued again, push + 1 (held if
        the execution is not running), and answers the job to push.
        WAITING makes it waiting for `wait_kind`:
        - timer: due after delay_seconds, or at `due_at`.
        - child: the execution that `child` asks for is created in the same step, with its entry nodes' jobs to push;
          the run is its parent under this fence, and its deadline is no later than its parent's. If it can't be
          started, answers `refused` and writes nothing. In an execution that is not running nothing is created and
          the run is held, to ask again.
        - items: the node's items 1..n are kept with their data, and the first `at_once` of them are queued; one of
          them is `next` if `successors` names the node itself. In an execution that is not running the run is held, to
          ask again.
        An item's end arrives at its node's run (item 0) and nowhere else: the next item that was never started becomes
        ready, unless more than `tolerate` have failed, and when none is open any more the node's run becomes ready,
        woken by its items. Either is claimed as `next` if `successors` names the node.

        The end of an execution that has a parent leaves a row (`$parent`) that is due at once, until wake_parents or
        a sweep has told the parent's run. A run of a cancelled execution is recorded as cancelled: answered recorded,
        with nothing following.
        Events: node.completed, node.failed, node.skipped, node.retrying, node.waiting, node.released, node.queued,
        node.held, node.started, execution.completed, execution.failed; those of a child that is created.
        node.failed and node.retrying carry the whole error.
        """

    @abstractmethod
    def wake_parents(
        self, execution_ids: Sequence[str], *, epoch: int = 0, now: datetime | None = None
    ) -> list[NodeJob]:
        """Tell the parents' runs that these children have ended, and answer the jobs to push.

        A run that still waits for that child under the fence that the child was created with becomes queued (held in
        an execution that is not running), woken by its child. Then, or if it waits no more, the `$parent` row goes.
        One that has no such row, has not ended or is unknown is passed over. Event: node.queued, or node.held.
        """


class Control(ABC):
    """What operators do to an execution; it reaches all its descendants, root first, in one step.

    Each raises UnknownExecution, InvalidTransition where the table in states.py forbids it, and StaleVersion, with
    `current` being the Execution, if `expected_revision` is not its revision. Each that does something raises the
    revision of every execution that it changes; one that finds nothing to do answers done=False and writes nothing.
    """

    @abstractmethod
    def cancel_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> Controlled:
        """Cancel: its open runs end as cancelled, also running ones (their records will find that).

        Its pending, running and paused descendants are cancelled with it. Not done if it was cancelled before. If it
        has a parent, that is told as by any end. Events: node.cancelled, execution.cancelled.
        """

    @abstractmethod
    def pause_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> Controlled:
        """Pause a running execution and its running descendants: queued runs become held, running ones may end.

        Runs that wait for a retry, a timer, a child or items go on waiting, with the same due_at; what comes due is
        held. The deadline goes on counting. Not done if it is paused. Events: execution.paused, node.held.
        """

    @abstractmethod
    def resume_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> Controlled:
        """Set a paused execution and its paused descendants running: held runs become queued, with jobs to push.

        Nothing that still waits for its time is touched. Not done if it is running. Events: execution.resumed,
        node.queued.
        """

    @abstractmethod
    def retry_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> Controlled:
        """Set a failed execution running again from where it failed; what completed before is kept.

        - Held runs become queued.
        - Everything downstream of a failure that had been handled is reset: its results, open runs, items and
          counters go, its open children are cancelled, and what arrives at it is counted anew from the edges. A record
          of a claim on such a run finds its fence stale, whatever becomes of the run.
        - Every other failed run becomes queued, attempt 1, losses 0, under a higher fence and the next push. A mapped
          node that failed for its items waits for them again: the failed ones are started anew, `at_once` of them, then
          those that never were, and `tolerate` counts from the start. A run whose latest child failed waits for that
          child, which is retried in turn, under the new fence; one whose latest child is still open waits for it; one
          whose latest child completed goes on, woken by it.
        - `$end` counts anew, and a deadline counts from now.
        Raises InvalidTransition unless it is failed; not done never. A `$parent` row of its own end goes.
        Events: execution.retried, node.reset, node.queued, node.waiting, and those of a cancel.
        """


class ExecutionReads(ABC):
    """What callers and operators see.

    Lists have a stable order, page by cursor, and never miss or repeat a row that was there throughout.
    """

    @abstractmethod
    def get_execution(self, execution_id: str) -> Execution | None:
        """Return the execution, its output when completed; None if unknown (also for an id that is no UUID)."""

    @abstractmethod
    def get_node_results(self, execution_id: str, node_ids: Sequence[str] | None = None) -> list[NodeRun]:
        """Return its node runs, open and ended, without the virtual ones, by (node id, item); all, or those named."""

    @abstractmethod
    def list_executions(
        self, filter: ExecutionFilter | None = None, *, limit: int = 100, cursor: str | None = None
    ) -> Page[Execution]:
        """List executions, newest first by (created_at, id), without their outputs."""

    @abstractmethod
    def get_execution_count(self, filter: ExecutionFilter | None = None) -> int:
        """Count executions."""

    @abstractmethod
    def get_child_executions(self, execution_id: str) -> list[Execution]:
        """Return the direct children, oldest first."""

    @abstractmethod
    def get_parent_execution(self, execution_id: str) -> Execution | None:
        """Return the parent, or None."""

    @abstractmethod
    def get_attempts(self, execution_id: str, node_id: str, item: int = 0) -> list[Attempt]:
        """Return every claim of one node run in order, with how it ended: its worker, times, error; [] if unknown.

        Drawn from the events; earlier rounds, before a retry of the execution or a reset, are among them.
        """

    @abstractmethod
    def get_events(self, execution_id: str, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        """Return events in commit order, from the start or after a cursor; never skips one that commits late."""

    @abstractmethod
    def stats(self, *, now: datetime | None = None) -> StoreStats:
        """Count workflows, executions and open node runs."""


class Telemetry(ABC):
    """Logs and spans of an execution. Those of a node's end come with its record; these are for the rest."""

    @abstractmethod
    def add_log(self, execution_id: str, line: LogLine, *, node_id: str | None = None, item: int = 0) -> int:
        """Append one line and return its id. Raises UnknownExecution."""

    @abstractmethod
    def get_logs(
        self, execution_id: str, *, node_id: str | None = None, after: int = 0, limit: int = 1000
    ) -> list[LogRecord]:
        """Return lines with id > `after`, ascending by id."""

    @abstractmethod
    def add_span(self, execution_id: str, span: SpanLine) -> None:
        """Store one span; the same span_id again replaces it. Raises UnknownExecution."""

    @abstractmethod
    def update_span(self, execution_id: str, span_id: str, *, end_ns: int, status: str) -> bool:
        """End a stored span; False if it is not there."""

    @abstractmethod
    def get_trace(self, execution_id: str) -> list[SpanRecord]:
        """Return its spans by (start_ns, span_id)."""


class WorkerLeases(ABC):
    """One lease row per worker process; claims name the worker, so one heartbeat renews them all."""

    @abstractmethod
    def register_worker(
        self,
        worker_id: str,
        *,
        name: str,
        host: str,
        pid: int,
        queues: Sequence[str],
        lease_seconds: float,
        now: datetime | None = None,
    ) -> None:
        """Open a lease. `worker_id` is new for every registration."""

    @abstractmethod
    def renew_lease(self, worker_id: str, *, lease_seconds: float, now: datetime | None = None) -> bool:
        """Renew; False once the sweep has released this worker's claims, or it is unknown: register anew."""

    @abstractmethod
    def retire_worker(self, worker_id: str, *, epoch: int = 0, now: datetime | None = None) -> list[NodeJob]:
        """Close the lease; whatever it still held is queued again without a loss counted, and answered to push."""

    @abstractmethod
    def list_workers(self, *, now: datetime | None = None) -> list[WorkerLease]:
        """Return live leases by name."""


class Recovery(ABC):
    """The one mechanism behind lost jobs, dead workers, retries, delays and deadlines."""

    @abstractmethod
    def get_epoch(self) -> EpochState:
        """Return the store's identity and the epoch of Redis that it believes in (0: none yet)."""

    @abstractmethod
    def raise_epoch(self, expected: int, redis_run_id: str | None) -> EpochState:
        """Raise the epoch by one if it is still `expected`, noting Redis' run id; return the state either way."""

    @abstractmethod
    def sweep(
        self,
        *,
        heads: Mapping[str, datetime | None],
        epoch: int,
        limit: int = 500,
        suspect_seconds: float = 2.0,
        now: datetime | None = None,
    ) -> Swept:
        """Move on whatever is due, at most `limit` rows; any number of sweepers cooperate (SKIP LOCKED).

        - Workers whose lease lapsed: marked, and all their running runs are queued again (push + 1, losses + 1;
          held if the execution is not running). Whoever claims one learns how often it was lost.
        - Due rows: a waiting retry or timer becomes queued (held in a paused or failed execution); a `$start`
          starts its execution; a `$end` past its deadline fails its execution with DeadlineExceeded; a `$parent`
          wakes the parent's run, as wake_parents does.
        - Queued rows of an older epoch are pushed again.
        - A due queued row is suspect if the head of its list was pushed more than `suspect_seconds` after it, or
          the list is empty (None) and it was pushed that long ago: it is pushed again. `heads` maps
          `queue_key(queue, priority)` to the head's `pushed_at`; a list that is absent is not judged. Each row that
          is looked at moves its due_at, doubling from `suspect_seconds` with its age and pushes: none starves another.
        Every push raises the push number and takes `epoch`. Commits before it answers.
        """

    @abstractmethod
    def next_due(self) -> datetime | None:
        """Return the earliest due_at, on the store's clock; None if nothing waits for time."""


class Lifecycle(ABC):
    """Opening, closing, migrating."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where this store is, without a password; what error messages and `spanloom migrate` show."""

    @property
    @abstractmethod
    def shared(self) -> bool:
        """Whether other processes can open the same store."""

    @abstractmethod
    def open(self) -> None:
        """Connect and check the schema; twice is no error. Raises StoreUnavailable, StoreNotMigrated."""

    @abstractmethod
    def close(self) -> None:
        """Give up connections; twice is no error. The store opens again at its next use."""

    @abstractmethod
    def migrate(self) -> None:
        """Bring the schema to this release's version; idempotent, safe when several processes call it at once."""

    @abstractmethod
    def health(self) -> None:
        """Return if the store answers, else raise StoreUnavailable or StoreNotMigrated."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Make the calls of this thread inside the block one transaction: all commit at its end, or none."""


class ExecutionStore(
    WorkflowVersions, NodeTransitions, Control, ExecutionReads, Telemetry, WorkerLeases, Recovery, Lifecycle
):
    """An execution store: all parts together. Stores are found by URL scheme: the entry points `spanloom.stores`."""

    def create_execution(
        self, request: StartRequest, *, epoch: int = 0, connection: Any = None, now: datetime | None = None
    ) -> StartAnswer:
        """Create one execution; see create_executions."""
        return self.create_executions([request], epoch=epoch, connection=connection, now=now)[0]


def queue_key(queue: str, priority: str) -> str:
    """Name the list of one queue and priority: `queue` for normal, `queue.high`, `queue.low`."""
    return queue if priority == "normal" else f"{queue}.{priority}"
