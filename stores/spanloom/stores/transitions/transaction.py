"""The write transaction of transitions: typed, set-based operations on rows, and the clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from spanloom.engine.store.requests import ExecutionHeader, LogLine, NodeJob, NodeKey, SpanLine, StartRequest
from spanloom.engine.store.states import (
    EXECUTION_TRANSITIONS,
    NODE_TRANSITIONS,
    ExecutionStatus,
    NodeStatus,
    check_execution_transition,
    check_node_transition,
)
from spanloom.stores.transitions.rows import (
    Ended,
    Event,
    ExecutionRow,
    Graph,
    InputRow,
    MemberRow,
    NewExecution,
    ResultRow,
    RunFilter,
    RunRow,
    StoredEvent,
    Time,
    UsedKey,
    VersionRow,
)

__all__ = ["Transaction", "always", "never"]

# The tables of states.py as pairs of plain text, as they are read several times for each node run.
_EXECUTION_CHANGES = {(old.value, new.value) for old, some in EXECUTION_TRANSITIONS.items() for new in some}
_RUN_CHANGES = {(old.value, new.value) for old, some in NODE_TRANSITIONS.items() for new in some}


def _check_run(run: RunRow, wanted: str) -> None:
    if (run.status, wanted) not in _RUN_CHANGES:
        check_node_transition(run.node_id, NodeStatus(run.status), NodeStatus(wanted))


def never(_: ExecutionRow) -> bool:
    """Lock no execution alone."""
    return False


def always(_: ExecutionRow) -> bool:
    """Lock every execution alone."""
    return True


class Transaction(ABC):
    """A write transaction on one store. Every operation takes, and returns, many rows.

    All transactions lock rows in one order: executions by id (a family from root to leaf), then runs by key. A row that
    is locked exclusively can change its status, and its execution can get no child. A store with a single writer needs
    no locks. Events, results and telemetry may be buffered until `flush`.
    """

    epoch: int  #: the epoch of the Redis data set that pushes of this transaction go to

    # ---- the clock ----

    @property
    @abstractmethod
    def now(self) -> Time:
        """The time at which the transaction began, on the store's clock, or the time that the caller gave."""

    @abstractmethod
    def later(self) -> Time:
        """Return the current time, later than `now` after a wait for a lock. A time that the caller gave stays."""

    @abstractmethod
    def after(self, delay: timedelta) -> Time:
        """Return the time so long after `now`."""

    @abstractmethod
    def elapsed(self, since: Time, until: Time) -> timedelta:
        """Return the time between two times."""

    @abstractmethod
    def as_time(self, value: datetime) -> Time:
        """Return a datetime of a caller in the store's form."""

    @abstractmethod
    def as_datetime(self, time: Time) -> datetime:
        """Return a time of the store as a datetime in UTC."""

    # ---- definitions ----

    @abstractmethod
    def graph(self, workflow_id: str, version: int) -> Graph:
        """Return the edges of a version."""

    @abstractmethod
    def version(self, workflow_id: str, version: int | None) -> VersionRow | None:
        """Return a version, or the latest for None; None if the workflow is unknown."""

    # ---- executions ----

    def prefetch(self, keys: Sequence[NodeKey]) -> None:  # noqa: B027  # an option of stores
        """Prepare for locking these runs' executions, and then the runs, if a store can read all at once."""

    @abstractmethod
    def executions(self, ids: Collection[str]) -> dict[str, ExecutionRow]:
        """Return the executions that exist, by id, without a lock."""

    @abstractmethod
    def lock_executions(
        self, ids: Collection[str], *, alone: Callable[[ExecutionRow], bool] = never, wait: bool = True
    ) -> dict[str, ExecutionRow]:
        """Lock executions in the order of their ids and return them, exclusively where their status may change.

        `alone` decides that by the row as it is before the lock, of which the version never changes. Without `wait`,
        executions that other transactions have locked are left out.
        """

    @abstractmethod
    def lock_descendants(self, ids: Sequence[str]) -> list[ExecutionRow]:
        """Lock the descendants that may still change, from root to leaf, and return them by (depth, created_at, id).

        Their ancestors `ids` are locked exclusively, so that no child of them can be created meanwhile.
        """

    @abstractmethod
    def children(self, execution_id: str, node_ids: Collection[str]) -> list[ExecutionRow]:
        """Return the executions that these nodes and their items have started, the oldest first."""

    @abstractmethod
    def insert_executions(self, new: Sequence[NewExecution]) -> set[str]:
        """Insert executions with their metadata and return their ids, without those that existed already."""

    def set_status(
        self, rows: Sequence[ExecutionRow], to: ExecutionStatus, *, revise: bool = True, **columns: Any
    ) -> list[ExecutionRow]:
        """Move executions, whose rows are locked exclusively, to a status and return the new rows.

        `revise` raises their revision. Raises InvalidTransition where the table of states.py forbids it.
        """
        for row in rows:
            if (row.status, to) not in _EXECUTION_CHANGES:
                check_execution_transition(row.id, ExecutionStatus(row.status), to)
        return self.update_executions(rows, revise=revise, status=to.value, **columns)

    @abstractmethod
    def update_executions(
        self, rows: Sequence[ExecutionRow], *, revise: bool = False, **columns: Any
    ) -> list[ExecutionRow]:
        """Set columns of executions and return the new rows. Only `set_status` may set their status."""

    @abstractmethod
    def headers(self, executions: Sequence[ExecutionRow]) -> dict[str, ExecutionHeader]:
        """Return the facts of executions that their handlers can read: of the row, and of columns beside it."""

    # ---- open node runs ----

    @abstractmethod
    def runs(self, keys: Collection[NodeKey]) -> dict[NodeKey, RunRow]:
        """Return the open runs among these keys, without a lock."""

    @abstractmethod
    def lock_runs(
        self, keys: Collection[NodeKey], *, wait: bool = True, status: NodeStatus | None = None
    ) -> dict[NodeKey, RunRow]:
        """Lock open runs in the order of their keys and return them: only those of `status`, if it is given.

        Without `wait`, runs that other transactions have locked are left out.
        """

    @abstractmethod
    def runs_made_ready(self, execution_id: str, reference: str) -> list[RunRow]:
        """Return the open runs that carry a claim reference, by key."""

    @abstractmethod
    def runs_of_worker(self, worker_id: str) -> list[NodeKey]:
        """Return the keys of the runs that a worker runs, by key."""

    @abstractmethod
    def find_runs(self, where: RunFilter) -> list[RunRow]:
        """Return open runs by key, without a lock."""

    @abstractmethod
    def insert_runs(self, rows: Sequence[RunRow]) -> None:
        """Insert runs, none of which exists."""

    @abstractmethod
    def arrive(self, rows: Sequence[RunRow], arrivals: Mapping[str, int]) -> list[RunRow]:
        """Count arrivals at runs whose inputs are still open, in the order of their keys, and return the new rows.

        A row that does not exist is inserted as given. Of one that exists `pending` falls by the `arrivals` of its
        node, `taken` rises by that of the given row, and the claim reference becomes that of the given row.
        """

    def update_runs(self, changes: Sequence[tuple[RunRow, RunRow]]) -> None:
        """Write changes of locked runs, each given as the row that was read and the row to be written.

        Raises InvalidTransition where the table of states.py forbids a change of status.
        """
        for old, new in changes:
            if new.status != old.status:
                _check_run(old, new.status)
        self._write_runs(changes)

    @abstractmethod
    def _write_runs(self, changes: Sequence[tuple[RunRow, RunRow]]) -> None: ...

    def move_runs(self, where: RunFilter, to: NodeStatus, *, push: bool = False, **columns: Any) -> list[RunRow]:
        """Move all runs that match, set columns of them and return the new rows by key.

        With `push` their push number rises by one. Raises InvalidTransition where the table forbids it.
        """
        for status in where.statuses:
            check_node_transition("of the filter", status, to)
        return self._move_runs(where, push=push, status=to.value, **columns)

    @abstractmethod
    def _move_runs(self, where: RunFilter, *, push: bool, **columns: Any) -> list[RunRow]: ...

    @abstractmethod
    def delete_runs(self, keys: Sequence[NodeKey]) -> None:
        """Delete open runs."""

    @abstractmethod
    def delete_runs_of(self, execution_ids: Sequence[str], node_ids: Collection[str] | None = None) -> list[RunRow]:
        """Delete the open runs of executions, all or those of the given nodes, and return them by key."""

    def end_runs(self, ends: Sequence[tuple[RunRow, ResultRow]]) -> None:
        """Replace open runs by results.

        Raises InvalidTransition where the table of states.py forbids it.
        """
        keys, results = [], []
        for run, result in ends:
            _check_run(run, result.status)
            keys.append(run.key)
            results.append(result)
        self.delete_runs(keys)
        self.insert_results(results)

    def job(self, run: RunRow) -> NodeJob:
        """Return the job of a run's last push."""
        assert run.pushed_at is not None, f"{run.key} was never pushed"
        return NodeJob(
            run.execution_id, run.node_id, run.item, run.node_type, run.queue, run.priority, run.push,
            self.as_datetime(run.pushed_at), run.recovery_attempts,
        )  # fmt: skip

    # ---- ended node runs, and items ----

    @abstractmethod
    def insert_results(self, rows: Sequence[ResultRow]) -> None:
        """Insert results."""

    @abstractmethod
    def results(self, execution_id: str, node_ids: Collection[str] | None = None) -> list[ResultRow]:
        """Return the results of nodes (item 0; None: of all) by node id, without their data."""

    @abstractmethod
    def inputs(self, execution_id: str, node_ids: Collection[str]) -> list[InputRow]:
        """Return the columns that successors take of results, by node id; LEFT_OUT for data over MAX_CLAIM_BYTES."""

    @abstractmethod
    def result(self, key: NodeKey) -> ResultRow | None:
        """Return the result of one node run."""

    @abstractmethod
    def mark_cancelled(self, result: ResultRow) -> bool:
        """Mark a cancelled result as recorded, with the span in `result`. False if it is marked already."""

    @abstractmethod
    def delete_result(self, key: NodeKey) -> None:
        """Delete the result of one node run, but for its span."""

    @abstractmethod
    def delete_results(self, execution_id: str, node_ids: Collection[str]) -> list[ResultRow]:
        """Delete the results of nodes with those of their items and return them by key, without their data."""

    @abstractmethod
    def delete_item_results(self, execution_id: str, node_id: str, *, failed_only: bool) -> list[ResultRow]:
        """Delete the results of a mapped node's items and return them by item, without their data."""

    @abstractmethod
    def insert_items(self, execution_id: str, node_id: str, items: Mapping[int, str]) -> None:
        """Store the items of a mapped node, by number. Item 0 holds the bounds."""

    @abstractmethod
    def delete_items(self, execution_id: str, node_ids: Collection[str]) -> None:
        """Delete the items of mapped nodes."""

    @abstractmethod
    def item(self, key: NodeKey) -> str | None:
        """Return the data of an item."""

    @abstractmethod
    def bounds(self, execution_id: str, node_ids: Collection[str]) -> dict[str, str]:
        """Return the bounds, stored as item 0, of those of the nodes that have been mapped, by node id."""

    @abstractmethod
    def item_count(self, execution_id: str, node_id: str) -> int:
        """Return the number of items of a mapped node."""

    @abstractmethod
    def next_items(self, execution_id: str, node_id: str, first: int, limit: int) -> list[int]:
        """Return the first items from `first` on that have neither an open run nor a result."""

    @abstractmethod
    def copy_results(self, source: str, target: str, node_ids: Sequence[str]) -> None:
        """Copy results and items of nodes from one execution into another, under fence 0 and push 0, as arrived."""

    # ---- history and telemetry ----

    @abstractmethod
    def add_events(self, events: Iterable[Event], *, at: Time | None = None) -> None:
        """Append events, in this order; at `now` if no time is given."""

    @abstractmethod
    def events(self, key: NodeKey, kinds: Sequence[str]) -> list[StoredEvent]:
        """Return stored events of one node run, the latest first."""

    @abstractmethod
    def end_events(self, execution_id: str) -> list[StoredEvent]:
        """Return the stored events of an execution's ends by completion or failure, the latest first."""

    @abstractmethod
    def add_telemetry(self, key: NodeKey, logs: Sequence[LogLine], spans: Sequence[SpanLine]) -> None:
        """Store log lines and spans of a node run."""

    @abstractmethod
    def flush(self) -> None:
        """Write the buffered rows."""

    # ---- idempotency keys ----

    @abstractmethod
    def used_key(self, workflow_id: str, key: str) -> UsedKey | None:
        """Return the execution that a key has started, unless the key has expired."""

    @abstractmethod
    def take_key(self, request: StartRequest) -> UsedKey:
        """Take the request's key for its execution, if it is free or has expired, and return its holder."""

    # ---- workers ----

    @abstractmethod
    def is_live(self, worker_id: str) -> bool:
        """Return whether a worker holds a lease that has neither lapsed nor been released."""

    @abstractmethod
    def close_lease(self, worker_id: str) -> None:
        """End a worker's lease for good."""

    @abstractmethod
    def release_lapsed_leases(self) -> None:
        """Mark the leases that have lapsed, and delete old ones without claims."""

    # ---- due runs ----

    @abstractmethod
    def lost_runs(self, limit: int) -> list[NodeKey]:
        """Return running runs whose worker's lease was released."""

    @abstractmethod
    def due_runs(self, limit: int, nodes: Collection[str] | None = None) -> list[NodeKey]:
        """Return due runs, the earliest first: those of the given virtual nodes, or (None) of all other nodes."""

    @abstractmethod
    def outdated_runs(self, limit: int) -> list[NodeKey]:
        """Return queued runs that were pushed in an older epoch."""

    @abstractmethod
    def released_workers(self, worker_ids: Collection[str]) -> set[str]:
        """Return those of the workers whose lease was released or no longer exists."""

    # ---- retention ----

    @abstractmethod
    def ended_roots(self, status: str, until: Time, last: Ended | None, limit: int) -> list[Ended]:
        """Return executions of a status without a parent that ended before a time, as (ended_at, id), by these."""

    @abstractmethod
    def lock_families(self, roots: Sequence[str]) -> dict[str, list[MemberRow]]:
        """Lock executions with all their descendants, without waiting; return the families of which none was locked."""

    @abstractmethod
    def lock_keys(self, ids: Sequence[str]) -> set[str]:
        """Lock the keys of executions without waiting, and return the executions whose keys were locked by others."""

    @abstractmethod
    def delete_executions(self, ids: Sequence[str]) -> int:
        """Delete executions with all rows that refer to them, and return the number of their idempotency keys."""

    @abstractmethod
    def delete_expired_keys(self, limit: int) -> int:
        """Delete idempotency keys that have expired and that no other transaction has locked."""
