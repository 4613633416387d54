"""The write transaction that transitions are written over: typed, set-based operations on rows, and the clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from spanloom.engine.store.requests import ExecutionHeader, LogLine, NodeKey, SpanLine, StartRequest
from spanloom.engine.store.states import (
    EXECUTION_TRANSITIONS,
    NODE_TRANSITIONS,
    ExecutionStatus,
    NodeStatus,
    check_execution_transition,
    check_node_transition,
)
from spanloom.stores.transitions.rows import Event, ExecutionRow, Graph, ResultRow, RunRow

__all__ = ["RunFilter", "StoredEvent", "Transaction", "UsedKey", "VersionRow", "always", "never"]


# The tables of states.py as pairs of plain text: they are looked up several times a node.
_EXECUTION_CHANGES = {(old.value, new.value) for old, some in EXECUTION_TRANSITIONS.items() for new in some}
_RUN_CHANGES = {(old.value, new.value) for old, some in NODE_TRANSITIONS.items() for new in some}


def _check_run(run: RunRow, wanted: str) -> None:
    if (run.status, wanted) not in _RUN_CHANGES:
        check_node_transition(run.node_id, NodeStatus(run.status), NodeStatus(wanted))


class RunFilter(NamedTuple):
    """Open runs of some executions, by their status and what they wait for; None does not filter."""

    executions: Sequence[str]
    statuses: Sequence[NodeStatus]
    wait_kind: str | None = None


class StoredEvent(NamedTuple):
    """One event that was stored before, with its place in the history."""

    kind: str
    worker_id: str | None
    data: str | None
    at: datetime


class UsedKey(NamedTuple):
    """The execution that an idempotency key has started."""

    execution_id: str
    input_hash: str


class VersionRow(NamedTuple):
    """What a start resolves a workflow to; `version` is None if there is no such version."""

    active: bool
    version: int | None


def never(_: ExecutionRow) -> bool:
    """Lock no execution alone."""
    return False


def always(_: ExecutionRow) -> bool:
    """Lock every execution alone."""
    return True


class Transaction(ABC):
    """A write transaction on one store. Every operation takes, and returns, many rows.

    Rows are locked by everybody in one order: executions by id (a family from root to leaf), then runs by key. A store
    whose writers take turns locks nothing. Events, results and telemetry may be kept back until `flush`.
    """

    epoch: int  #: the epoch of the Redis data set that pushes of this transaction go to

    # ---- the clock ----

    @property
    @abstractmethod
    def now(self) -> datetime:
        """When the transaction began, on the store's clock, or as its caller gave it."""

    @abstractmethod
    def later(self) -> datetime:
        """Return the time by now, later than `now` after a wait for a lock. A time that was given stands still."""

    # ---- definitions ----

    @abstractmethod
    def graph(self, workflow_id: str, version: int) -> Graph:
        """Return the edges of a version."""

    @abstractmethod
    def version(self, workflow_id: str, version: int | None) -> VersionRow | None:
        """Return a version, or the latest for None; None if the workflow is unknown."""

    # ---- executions ----

    @abstractmethod
    def executions(self, ids: Collection[str]) -> dict[str, ExecutionRow]:
        """Return the executions that exist, by id, without a lock."""

    @abstractmethod
    def lock_executions(
        self, ids: Collection[str], *, alone: Callable[[ExecutionRow], bool] = never, wait: bool = True
    ) -> dict[str, ExecutionRow]:
        """Lock executions in the order of their ids and return them, alone where their status may change.

        `alone` is asked with what is known before the lock: which version an execution has never changes.

        Without `wait` those that others hold are left out.
        """

    @abstractmethod
    def lock_descendants(self, ids: Sequence[str]) -> list[ExecutionRow]:
        """Lock the descendants that may still change, from root to leaf; their ancestors `ids` are held alone.

        While a row is held alone, no child of it can come into being. Returns them by (depth, created_at, id).
        """

    @abstractmethod
    def children(self, execution_id: str, node_ids: Collection[str]) -> list[ExecutionRow]:
        """Return the executions that these nodes, items too, have started, the oldest first."""

    @abstractmethod
    def insert_execution(self, request: StartRequest, version: int, status: ExecutionStatus) -> bool:
        """Insert an execution that is created now, with its metadata; False if its id is there already."""

    def set_status(
        self, rows: Sequence[ExecutionRow], to: ExecutionStatus, *, revise: bool = True, **columns: Any
    ) -> list[ExecutionRow]:
        """Move executions, whose rows are held alone, to a status and return them as they are now.

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
        """Set columns of executions, other than by `set_status` never their status; return them as they are now."""

    @abstractmethod
    def header(self, execution_id: str) -> ExecutionHeader:
        """Return what a handler may know of its execution."""

    # ---- open node runs ----

    @abstractmethod
    def runs(self, keys: Collection[NodeKey]) -> dict[NodeKey, RunRow]:
        """Return the open runs among these keys, without a lock."""

    @abstractmethod
    def lock_runs(
        self, keys: Collection[NodeKey], *, wait: bool = True, status: NodeStatus | None = None
    ) -> dict[NodeKey, RunRow]:
        """Lock open runs in the order of their keys and return them: only those of a status, if one is given.

        Without `wait` only those that nobody holds.
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
        """Insert runs; none of them is there."""

    @abstractmethod
    def arrive(self, rows: Sequence[RunRow], arrivals: Mapping[str, int]) -> list[RunRow]:
        """Count arrivals at runs whose inputs are still open, in the order of their keys.

        Each row is inserted as it is if it is not there; else its `pending` falls by `arrivals` of its node, its
        `taken` rises by the row's, and it takes the row's claim reference. Returns the rows as they are now.
        """

    def update_runs(self, changes: Sequence[tuple[RunRow, RunRow]]) -> None:
        """Write changes of runs that are locked: each as it was read and as it is to be.

        Raises InvalidTransition where the table of states.py forbids a change of status.
        """
        for old, new in changes:
            if new.status != old.status:
                _check_run(old, new.status)
        self._write_runs(changes)

    @abstractmethod
    def _write_runs(self, changes: Sequence[tuple[RunRow, RunRow]]) -> None: ...

    def move_runs(self, where: RunFilter, to: NodeStatus, *, push: bool = False, **columns: Any) -> list[RunRow]:
        """Move all runs that match, set columns of them and return them by key as they are now.

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
        """Delete the open runs of executions, of some nodes only if given, and return them by key."""

    def end_runs(self, ends: Sequence[tuple[RunRow, ResultRow]]) -> None:
        """Put results in place of open runs.

        Raises InvalidTransition where the table of states.py forbids it.
        """
        for run, result in ends:
            _check_run(run, result.status)
        self.delete_runs([run.key for run, _ in ends])
        self.insert_results([result for _, result in ends])

    # ---- ended node runs, and items ----

    @abstractmethod
    def insert_results(self, rows: Sequence[ResultRow]) -> None:
        """Insert results."""

    @abstractmethod
    def results(
        self, execution_id: str, node_ids: Collection[str] | None = None, *, data: bool = True
    ) -> list[ResultRow]:
        """Return the results of nodes (item 0), of all if None, by node id; without `data` that is None in them."""

    @abstractmethod
    def result(self, key: NodeKey) -> ResultRow | None:
        """Return the result of one node run."""

    @abstractmethod
    def mark_cancelled(self, key: NodeKey) -> bool:
        """Mark a cancelled result as recorded; False if it was marked before."""

    @abstractmethod
    def delete_result(self, key: NodeKey) -> None:
        """Delete the result of one node run."""

    @abstractmethod
    def delete_results(self, execution_id: str, node_ids: Collection[str]) -> list[ResultRow]:
        """Delete the results of nodes with those of their items and return them by key."""

    @abstractmethod
    def delete_item_results(self, execution_id: str, node_id: str, *, failed_only: bool) -> list[ResultRow]:
        """Delete the results of a mapped node's items and return them by item."""

    @abstractmethod
    def insert_items(self, execution_id: str, node_id: str, items: Mapping[int, str]) -> None:
        """Keep what a node is mapped over, by item; item 0 holds the bounds."""

    @abstractmethod
    def delete_items(self, execution_id: str, node_ids: Collection[str]) -> None:
        """Forget what nodes were mapped over."""

    @abstractmethod
    def item(self, key: NodeKey) -> str | None:
        """Return what an item was mapped over."""

    @abstractmethod
    def bounds(self, execution_id: str, node_ids: Collection[str]) -> dict[str, str]:
        """Return what is kept under item 0 of those of these nodes that are mapped, by node id."""

    @abstractmethod
    def item_count(self, execution_id: str, node_id: str) -> int:
        """Return how many items a mapped node has."""

    @abstractmethod
    def next_items(self, execution_id: str, node_id: str, first: int, limit: int) -> list[int]:
        """Return the first items from `first` on that have neither an open run nor a result."""

    @abstractmethod
    def copy_results(self, source: str, target: str, node_ids: Sequence[str]) -> None:
        """Copy results and items of nodes from one execution into another, under fence 0 and push 0, as arrived."""

    # ---- history and telemetry ----

    @abstractmethod
    def add_events(self, events: Iterable[Event], *, at: datetime | None = None) -> None:
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
    def register_pending_exports(self, exports: Mapping[tuple[str, str], int]) -> None:
        """Note which spans workers hold in memory: by (worker, execution) until when, in Unix nanoseconds."""

    @abstractmethod
    def flush(self) -> None:
        """Write what was kept back."""

    # ---- idempotency keys ----

    @abstractmethod
    def used_key(self, workflow_id: str, key: str) -> UsedKey | None:
        """Return what a key that has not expired has started."""

    @abstractmethod
    def take_key(self, request: StartRequest) -> UsedKey:
        """Take the request's key for its execution, if it is free or has expired; return who has it."""

    # ---- workers ----

    @abstractmethod
    def is_live(self, worker_id: str) -> bool:
        """Return whether a worker holds a lease that has neither lapsed nor been released."""

    @abstractmethod
    def close_lease(self, worker_id: str) -> None:
        """End a worker's lease for good."""

    @abstractmethod
    def release_lapsed_leases(self) -> None:
        """Mark the leases that have lapsed, and forget old ones that hold nothing."""

    # ---- what is due ----

    @abstractmethod
    def lost_runs(self, limit: int) -> list[NodeKey]:
        """Return running runs whose worker's lease was released."""

    @abstractmethod
    def due_runs(self, limit: int, nodes: Collection[str] | None = None) -> list[NodeKey]:
        """Return due runs, the earliest first: of these virtual nodes, or of all but virtual nodes for None."""

    @abstractmethod
    def outdated_runs(self, limit: int) -> list[NodeKey]:
        """Return queued runs that were pushed in an older epoch."""

    @abstractmethod
    def released_workers(self, worker_ids: Collection[str]) -> set[str]:
        """Return those of these workers whose lease was released, or who are gone."""

    # ---- retention ----

    @abstractmethod
    def ended_roots(
        self, ended_before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> list[tuple[datetime, str, str]]:
        """Return executions without a parent that ended before a time, as (ended_at, id, status), in this order."""

    @abstractmethod
    def lock_family(self, root: str) -> list[ExecutionRow] | None:
        """Lock an execution and all its descendants without waiting, root first; None if someone else holds one."""

    @abstractmethod
    def delete_executions(self, ids: Sequence[str]) -> int | None:
        """Delete executions, leaves last, with all that names them; return how many idempotency keys went.

        None, and nothing is deleted, if someone else holds one of those keys.
        """

    @abstractmethod
    def delete_expired_keys(self, limit: int) -> int:
        """Delete idempotency keys that have expired and that nobody holds."""
