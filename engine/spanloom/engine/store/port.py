"""The store port: the contract of an execution store, in docstrings, which the conformance suite proves.

The store is the truth; Redis only holds hints. For every method below:

- It is one transition and one transaction: a crash at any instruction leaves all of it or none.
- It is synchronous and safe to call from many threads.
- It uses the store's own clock, which `now` overrides in tests.
- It raises StoreUnavailable, with the reason, if the store can't serve the call now: it does not answer, may not be
  written, has no room, or is being restored. A later call may be served. It raises StoreRefused or PayloadRejected if
  the store will never keep the given data. No exception of a database driver leaves a store.
- It keeps identities (ids, names, idempotency keys, metadata) exactly. It raises PayloadRejected, with the text in it,
  for one with a NUL or half of a surrogate pair: see texts.py. Log lines and names of spans are repaired instead.
- It returns or raises in bounded time: a store that does not answer within its time limit is unavailable.
- Inside `transaction()` it joins that transaction.

The arguments of WorkflowVersions, ExecutionReads, Control, Telemetry (without add_logs), Retention and create_execution
are checked against the annotations here, in front of every store's own methods: a wrong one raises InvalidArgument, and
the store is not called. The other methods are called by engines and workers, with requests that they made; for the sake
of speed nothing checks those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from spanloom.engine.arguments import Bound, Count, Limit, Version, check_methods, checked
from spanloom.engine.store.models import (
    Attempt,
    Event,
    Execution,
    ExecutionFilter,
    NodeRun,
    Page,
    StoreStats,
    WorkflowSummary,
    WorkflowVersion,
)
from spanloom.engine.store.payloads import Payloads
from spanloom.engine.store.requests import (
    EpochState,
    NodeJob,
    NodeKey,
    PurgeResult,
    StartAnswer,
    StartRequest,
    SweepResult,
    WorkerLease,
)
from spanloom.engine.store.states import EndedStatus, ExecutionStatus
from spanloom.engine.store.telemetry import SpanExports, Telemetry
from spanloom.engine.store.transitions import Control, NodeTransitions
from spanloom.engine.workflow.definitions import Workflow

__all__ = [
    "Control",
    "ExecutionReads",
    "ExecutionStore",
    "Lifecycle",
    "NodeTransitions",
    "Payloads",
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
        expected_version: Count | None = None,
        now: datetime | None = None,
    ) -> int:
        """Save `workflow` (already validated) as the next version, or return the newest one if its content is equal.

        Content is equal when `workflow.digest()` is. Concurrent saves of different content get different numbers, those
        of equal content the same one. The edges that transitions follow are saved as well. A deactivated workflow stays
        deactivated. With `expected_version` (0: not registered yet), raises StaleVersion unless that is the newest
        version; its `current` is the newest WorkflowVersion, or None.
        """

    @abstractmethod
    def get_workflow(self, workflow_id: str, version: Version | None = None) -> Workflow | None:
        """Return the definition of `version`, or of the newest; None if there is none."""

    @abstractmethod
    def get_workflow_version(self, workflow_id: str, version: Version | None = None) -> WorkflowVersion | None:
        """Return the version with its history fields (newest if None); None if there is none."""

    @abstractmethod
    def list_workflow_versions(
        self, workflow_id: str, *, limit: Limit = 100, cursor: str | None = None
    ) -> Page[WorkflowVersion]:
        """List versions, newest first. Unknown workflow: an empty page."""

    @abstractmethod
    def list_workflows(
        self, *, active: bool | None = None, limit: Limit = 100, cursor: str | None = None
    ) -> Page[WorkflowSummary]:
        """List workflows by id, ascending; `active` filters."""

    @abstractmethod
    def deactivate_workflow(self, workflow_id: str) -> None:
        """Refuse new executions of every version. Running executions continue. Idempotent. Raises UnknownWorkflow."""

    @abstractmethod
    def activate_workflow(self, workflow_id: str) -> None:
        """Allow new executions again. Idempotent. Raises UnknownWorkflow."""


class ExecutionReads(ABC):
    """The reads of callers and operators.

    Lists have a stable order and are paged by cursor. Paging never misses or repeats a row that existed throughout.

    With a `data_limit` payloads of at most that many bytes of JSON together are read, the smallest first. The others
    are None and cost no memory; their sizes stand in `input_size`, `output_size` and `data_size`.
    """

    @abstractmethod
    def get_execution(self, execution_id: str, *, data_limit: int | None = None) -> Execution | None:
        """Return the execution, with its output once completed. None if unknown, also for an id that is no UUID.

        `data_limit` is a bound on its output.
        """

    @abstractmethod
    def get_status(self, execution_id: str) -> ExecutionStatus | None:
        """Return an execution's status. None if unknown, also for an id that is no UUID."""

    @abstractmethod
    def get_node_results(
        self, execution_id: str, node_ids: Sequence[str] | None = None, *, data_limit: int | None = None
    ) -> list[NodeRun]:
        """Return the node runs, open and ended, of all or the named nodes, without virtual ones, by (node id, item)."""

    @abstractmethod
    def list_executions(
        self,
        filter: ExecutionFilter | None = None,
        *,
        limit: Limit = 100,
        cursor: str | None = None,
        data_limit: int | None = None,
    ) -> Page[Execution]:
        """List executions, newest first by (created_at, id), without their outputs."""

    @abstractmethod
    def get_execution_count(self, filter: ExecutionFilter | None = None) -> int:
        """Count executions."""

    @abstractmethod
    def get_child_executions(self, execution_id: str, *, data_limit: int | None = None) -> list[Execution]:
        """Return the direct children, oldest first, without their outputs."""

    @abstractmethod
    def get_parent_execution(self, execution_id: str) -> Execution | None:
        """Return the parent, or None."""

    @abstractmethod
    def get_attempts(self, execution_id: str, node_id: str, item: Count = 0) -> list[Attempt]:
        """Return every claim of one node run in order, with its worker, times, end and error; [] if unknown.

        Derived from the events. Claims before a retry of the execution, or before a reset, are included.
        """

    @abstractmethod
    def get_events(self, execution_id: str, *, after: str | None = None, limit: Limit = 1000) -> list[Event]:
        """Return events in commit order, from the start or after a cursor. None that commits late is skipped."""

    @abstractmethod
    def stats(self, *, now: datetime | None = None) -> StoreStats:
        """Count workflows, executions and open node runs."""


class WorkerLeases(ABC):
    """The leases of worker processes, one row each. Claims name their worker, so one heartbeat renews them all."""

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
        """Renew a lease. False if the sweep has released the worker's claims, or it is unknown: register anew."""

    @abstractmethod
    def unregister_worker(self, worker_id: str, *, epoch: int = 0, now: datetime | None = None) -> list[NodeJob]:
        """Close the lease, queue the worker's running node runs again, and return their jobs to push.

        Their `recovery_attempts` do not rise. In an execution that is not running a node run becomes held, and its push
        number stays. The worker's row stays until a sweep an hour later, or a day while SpanExports are pending.
        Events: node.released, and node.queued or node.held, each `because` retired.
        """

    @abstractmethod
    def list_workers(self, *, now: datetime | None = None) -> list[WorkerLease]:
        """Return live leases by name."""

    @abstractmethod
    def list_claims(self, worker_id: str) -> dict[NodeKey, int]:
        """Return the node runs that this worker runs, each with the fence of its claim.

        A claim that is missing here was revoked: its execution was cancelled, or the run was reset by a retry, got a
        manual result, or was lost with the lease.
        """


class Recovery(ABC):
    """The recovery of lost jobs and dead workers, and the timer of retries, delays and deadlines."""

    @abstractmethod
    def get_epoch(self) -> EpochState:
        """Return the store's identity and the epoch of Redis that it holds (0: none yet)."""

    @abstractmethod
    def raise_epoch(self, expected: int, redis_run_id: str | None) -> EpochState:
        """Raise the epoch by one if it is still `expected`, and store Redis' run id.

        Returns the state either way. Its `raised` is True if this call raised the epoch.
        """

    @abstractmethod
    def forget_pushes(self, jobs: Sequence[NodeJob], *, now: datetime | None = None) -> None:
        """Let the runs of jobs that were not pushed belong to no epoch, so that any later epoch pushes them again.

        A run that was claimed, pushed again or ended since then is left as it is.
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
        """Move at most `limit` rows that are due. Any number of sweepers cooperate (SKIP LOCKED).

        - Workers whose lease lapsed are marked, and all their running runs are queued again (push + 1,
          recovery_attempts + 1), or held if the execution is not running. A claim carries `recovery_attempts`.
        - A due retry or timer becomes queued, or held in a paused or failed execution.
        - A due `$start` starts its execution.
        - A `$end` past its deadline fails its execution with DeadlineExceeded.
        - A `$parent` wakes the parent's run, as wake_parents does.
        - Queued rows of an older epoch are pushed again.
        - A due queued row whose job seems lost is pushed again. It seems lost if the head of its list was pushed more
          than `lost_job_after_seconds` after it, or if the list is empty (None) and it was pushed that long ago.
          `heads` maps `queue_key(queue, priority)` to the head's `pushed_at`. Rows of a list that is absent from it
          are not checked. If it maps `{queue_key}@{node type}` as well, that is the head for rows of this type.
        - Each row that is checked gets a later due_at, so that none starves another. The distance starts at
          `lost_job_after_seconds` and doubles with each suspicion, whatever else pushed the row.

        Every push raises the push number and takes `epoch`. Commits before returning. `more` is True if the limit was
        reached and the pass moved at least one row, or deferred its next check: more rows may be due then. Calling
        again while `more` is True terminates. Rows that other sweepers have locked do not set `more`. If a row can't be
        moved, the rows of all other executions are, and `errors` holds the reason. If none can, it is raised.
        """

    @abstractmethod
    def next_due(self) -> datetime | None:
        """Return the earliest due_at, on the store's clock. None if no row has one."""


class Retention(ABC):
    """The deletion of ended executions after their retention."""

    @abstractmethod
    def purge_executions(
        self,
        *,
        ended_before: datetime,
        statuses: Sequence[EndedStatus],
        limit: Bound = 500,
        now: datetime | None = None,
    ) -> PurgeResult:
        """Delete families of executions whose root has one of `statuses`.

        - A family is deleted whole, in one step, and only if every member of it ended before `ended_before`.
        - A family that another transaction has locked is left for a later call.
        - Its node runs, results, items, logs, spans, events, metadata and idempotency keys are deleted with it.
        - Families are taken, the oldest end first, until `limit` executions are reached, and at least one family.
        - At most `limit` idempotency keys that have expired are deleted as well.
        """


class Lifecycle(ABC):
    """Opening, closing, migrating."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The address of this store without a password, for error messages and `spanloom migrate`."""

    @property
    @abstractmethod
    def shared(self) -> bool:
        """Whether other processes can open the same store."""

    @abstractmethod
    def open(self) -> None:
        """Connect and check the schema. Idempotent. Raises StoreUnavailable, StoreNotMigrated."""

    def open_existing(self) -> None:
        """Open as `open` does, but create nothing. Raises StoreNotMigrated if there is no store at this address."""
        self.open()

    @abstractmethod
    def close(self) -> None:
        """Close the connections. Idempotent. The store opens again at its next use."""

    @abstractmethod
    def migrate(self) -> None:
        """Bring the schema to this release's version. Idempotent, and safe when several processes call it at once."""

    @abstractmethod
    def health(self) -> None:
        """Return if the store answers, else raise StoreUnavailable or StoreNotMigrated."""

    def write_problem(self) -> str | None:
        """Return the reason why a store that answers takes no writes now; None if it does, or can't know.

        Nothing is written. A disk that is full shows at a write only.
        """
        return None

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Make the calls of this thread inside the block one transaction: all commit at its end, or none."""


class ExecutionStore(
    WorkflowVersions,
    NodeTransitions,
    Control,
    ExecutionReads,
    Payloads,
    Telemetry,
    SpanExports,
    WorkerLeases,
    Recovery,
    Retention,
    Lifecycle,
):
    """An execution store: all parts of the port in one class.

    Entry points `spanloom.stores` map URL schemes to store classes; `open_store` opens one by its URL.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Put the check of arguments in front of the methods that a store implements."""
        super().__init_subclass__(**options)
        check_methods(cls, _CHECKED)

    @checked
    def create_execution(
        self, request: StartRequest, *, epoch: int = 0, connection: Any = None, now: datetime | None = None
    ) -> StartAnswer:
        """Create one execution, as create_executions does."""
        return self.create_executions([request], epoch=epoch, connection=connection, now=now)[0]


#: The methods whose arguments are checked, by the annotations that stand here.
_CHECKED: Mapping[str, Callable[..., Any]] = {
    name: function
    for part in (WorkflowVersions, ExecutionReads, Control, Telemetry, Retention)
    for name, function in vars(part).items()
    if not name.startswith("_") and name != "add_logs"
}


def queue_key(queue: str, priority: str) -> str:
    """Return the name of the list of one queue and priority: `queue` for normal, `queue.high`, `queue.low`."""
    return queue if priority == "normal" else f"{queue}.{priority}"
