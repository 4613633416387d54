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

from spanloom.engine.store.models import (
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
from spanloom.engine.store.requests import (
    EpochState,
    LogLine,
    NodeJob,
    NodeKey,
    NodeLines,
    PurgeResult,
    SpanExport,
    SpanLine,
    StartAnswer,
    StartRequest,
    SweepResult,
    WorkerLease,
)
from spanloom.engine.store.states import ExecutionStatus
from spanloom.engine.store.transitions import Control, NodeTransitions
from spanloom.engine.workflow.definitions import Workflow

__all__ = [
    "Control",
    "ExecutionReads",
    "ExecutionStore",
    "Lifecycle",
    "NodeTransitions",
    "Recovery",
    "Retention",
    "SpanExports",
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
    """Logs and spans of an execution. What a node has not yet told comes with its record; these are for the rest."""

    @abstractmethod
    def add_log(self, execution_id: str, line: LogLine, *, node_id: str | None = None, item: int = 0) -> int:
        """Append one line and return its id. Raises UnknownExecution."""

    @abstractmethod
    def add_logs(self, requests: Sequence[NodeLines]) -> list[int | None]:
        """Append lines of node runs that are running, each in their order; return the id of the last of each.

        None: the fence is stale, and nothing of it is kept. Lines that are sent `again`, after an answer that was lost,
        are kept once and answered alike, whatever has become of the fence since.
        """

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


class SpanExports(ABC):
    """Spans that were recorded and are still in the memory of the worker that is to export them to a tracing backend.

    A record with `exported_ns` notes that its worker holds spans of that execution; only workers that export say so.
    """

    @abstractmethod
    def ack_exports(self, worker_id: str, until_ns: int) -> int:
        """Forget what this worker had noted with an `exported_ns` of at most `until_ns`, and return of how many."""

    @abstractmethod
    def claim_exports(self, worker_id: str, *, limit: int = 100, now: datetime | None = None) -> list[SpanExport]:
        """Make a worker the exporter of what was left by workers without a live lease, each given to one taker.

        Returns it by (worker_id, execution_id), at most `limit`. It is the taker's until release_exports, or until the
        taker's own lease has ended.
        """

    @abstractmethod
    def release_exports(self, worker_id: str, exports: Sequence[SpanExport]) -> None:
        """Forget what this worker has taken and exported."""


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
    def unregister_worker(self, worker_id: str, *, epoch: int = 0, now: datetime | None = None) -> list[NodeJob]:
        """Close the lease; whatever it still held is queued again without a loss counted, and answered to push.

        In an execution that is not running it is held, with its push number as it was. Events: node.released, and
        node.queued or node.held, each `because` retired. The worker is known until a sweep an hour later.
        """

    @abstractmethod
    def list_workers(self, *, now: datetime | None = None) -> list[WorkerLease]:
        """Return live leases by name."""

    @abstractmethod
    def list_claims(self, worker_id: str) -> dict[NodeKey, int]:
        """Return the node runs that this worker runs, each with the fence of its claim.

        What it claimed and does not find here is no longer its own: its execution was cancelled, or the run was reset
        by a retry, ended by hand, or lost with the lease.
        """


class Recovery(ABC):
    """The one mechanism behind lost jobs, dead workers, retries, delays and deadlines."""

    @abstractmethod
    def get_epoch(self) -> EpochState:
        """Return the store's identity and the epoch of Redis that it believes in (0: none yet)."""

    @abstractmethod
    def raise_epoch(self, expected: int, redis_run_id: str | None) -> EpochState:
        """Raise the epoch by one if it is still `expected`, noting Redis' run id.

        Returns the state either way; its `raised` says whether it was this call that raised it.
        """

    @abstractmethod
    def sweep(
        self,
        *,
        heads: Mapping[str, datetime | None],
        epoch: int,
        limit: int = 500,
        lost_job_after_seconds: float = 2.0,
        now: datetime | None = None,
    ) -> SweepResult:
        """Move on whatever is due, at most `limit` rows; any number of sweepers cooperate (SKIP LOCKED).

        - Workers whose lease lapsed: marked, and all their running runs are queued again (push + 1,
          recovery_attempts + 1; held if the execution is not running). A claim carries the number.
        - Due rows: a waiting retry or timer becomes queued (held in a paused or failed execution); a `$start`
          starts its execution; a `$end` past its deadline fails its execution with DeadlineExceeded; a `$parent`
          wakes the parent's run, as wake_parents does.
        - Queued rows of an older epoch are pushed again.
        - A due queued row is suspect if the head of its list was pushed more than `lost_job_after_seconds` after it, or
          the list is empty (None) and it was pushed that long ago: it is pushed again. `heads` maps
          `queue_key(queue, priority)` to the head's `pushed_at`; a list that is absent is not judged. Each row that
          is looked at moves its due_at, doubling from `lost_job_after_seconds` with each suspicion, whatever else
          pushed it: none starves another.
        Every push raises the push number and takes `epoch`. Commits before it answers, with `more` if the limit was
        reached and the pass got somewhere (moved a row, or put off its next look): then more may be due, and whoever
        goes on while there is more comes to an end. Rows that others hold are no reason to come back at once.
        """

    @abstractmethod
    def next_due(self) -> datetime | None:
        """Return the earliest due_at, on the store's clock; None if nothing waits for time."""


class Retention(ABC):
    """What is kept, and for how long."""

    @abstractmethod
    def purge_executions(
        self,
        *,
        ended_before: datetime,
        statuses: Sequence[ExecutionStatus],
        limit: int = 500,
        now: datetime | None = None,
    ) -> PurgeResult:
        """Delete families of executions: those whose root has one of `statuses` (which have ended; ValueError else).

        A family goes whole, in one step, and only if every member of it ended before `ended_before`; one that someone
        else holds is left for another time. With it go its node runs, results, items, logs, spans, events, metadata and
        the idempotency keys that name it. Takes families, the oldest end first, until `limit` executions are reached,
        and at least one. Also deletes idempotency keys that have expired, at most `limit`.
        """


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
    WorkflowVersions,
    NodeTransitions,
    Control,
    ExecutionReads,
    Telemetry,
    SpanExports,
    WorkerLeases,
    Recovery,
    Retention,
    Lifecycle,
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
