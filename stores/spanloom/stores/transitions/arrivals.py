"""The consequences of ends: arrivals at successors, skips that propagate, ready runs, the end of the execution."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any, NamedTuple

from spanloom.engine.store.requests import END, PARENT, START, NodeKey
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.transitions.rows import (
    Event,
    ExecutionRow,
    Graph,
    GraphEdge,
    InputRow,
    ResultRow,
    RunFilter,
    RunRow,
    as_data,
    ended_by,
)
from spanloom.stores.transitions.transaction import Transaction

__all__ = [
    "FIRST_PUSH",
    "SUSPECT_AFTER",
    "Arrival",
    "Propagation",
    "Wish",
    "complete",
    "fail",
    "hold",
    "inputs",
    "notify_parent",
    "queue_held",
    "queued",
    "recount_arrivals",
    "requeue",
]

_PENDING, _QUEUED, _RUNNING = NodeStatus.PENDING.value, NodeStatus.QUEUED.value, NodeStatus.RUNNING.value
_NODE_ID = attrgetter("node_id")
FIRST_PUSH = as_data({"push": 1})  #: the data of the event of a run's first push
SUSPECT_AFTER = timedelta(seconds=2)  #: when a sweep first checks whether the job of a queued run was lost


def queued(tx: Transaction, run: RunRow, **columns: Any) -> RunRow:
    """Return the row of a run after its next push."""
    return run._replace(
        status=NodeStatus.QUEUED.value, push=run.push + 1, pushed_epoch=tx.epoch, pushed_at=tx.now,
        due_at=tx.after(SUSPECT_AFTER), **columns,
    )  # fmt: skip


def requeue(
    tx: Transaction, run: RunRow, execution_status: str, *, because: str, reference: str | None = None, losses: int = 0
) -> RunRow:
    """Queue a run again, or hold it unless its execution is running, and return the new row.

    `wait_kind` is kept until the next record of the run, unless it is a retry. `reference` names the record that made
    the run ready.
    """
    kept = _without_retry(run)._replace(
        worker_id=None, claim_reference=reference, recovery_attempts=run.recovery_attempts + losses
    )
    if execution_status == ExecutionStatus.RUNNING:
        new = queued(tx, kept)
        details: Mapping[str, Any] = {"push": new.push, "because": because}
    else:
        new = kept._replace(status=NodeStatus.HELD.value, due_at=None)
        details = {"because": because}
    tx.update_runs([(run, new)])
    tx.add_events([_event(new, f"node.{new.status}", details)])
    return new


def hold(tx: Transaction, run: RunRow, *, because: str | None = None, **columns: Any) -> RunRow:
    """Hold a ready run until its execution is resumed or retried."""
    new = run._replace(status=NodeStatus.HELD.value, worker_id=None, claim_reference=None, due_at=None, **columns)
    tx.update_runs([(run, new)])
    tx.add_events([_event(new, "node.held", None if because is None else {"because": because})])
    return new


def queue_held(tx: Transaction, execution_ids: Sequence[str], *, because: str) -> list[RunRow]:
    """Queue all held runs of executions that run again, each under its next push number."""
    runs = tx.move_runs(
        RunFilter(execution_ids, [NodeStatus.HELD]), NodeStatus.QUEUED, push=True, pushed_epoch=tx.epoch,
        pushed_at=tx.now, due_at=tx.after(SUSPECT_AFTER),
    )  # fmt: skip
    tx.add_events([_event(run, "node.queued", {"push": run.push, "because": because}) for run in runs])
    return runs


def fail(tx: Transaction, execution: ExecutionRow, error: Mapping[str, Any], by: str | None) -> ExecutionRow:
    """Fail a running or paused execution that is locked exclusively, hold its ready runs and clear its deadline.

    `by` names the claim whose record failed it.
    """
    (failed,) = tx.set_status(
        [execution], ExecutionStatus.FAILED, revise=False, error=json.dumps(error), ended_at=tx.now
    )
    brief = {name: error[name] for name in ("node_id", "type", "message") if name in error}
    # A queued run keeps its wait kind, by which it was woken; one that waited for a retry is ready and nothing more.
    held = [
        *tx.move_runs(
            RunFilter([execution.id], [NodeStatus.QUEUED]), NodeStatus.HELD, due_at=None, claim_reference=None
        ),
        *tx.move_runs(
            RunFilter([execution.id], [NodeStatus.WAITING], WaitKind.RETRY.value), NodeStatus.HELD,
            due_at=None, wait_kind=None, wait_key=None, claim_reference=None,
        ),
    ]  # fmt: skip
    end = NodeKey(execution.id, END)
    if (run := tx.runs([end]).get(end)) is not None:
        tx.update_runs([(run, run._replace(due_at=None))])
    tx.add_events(
        [
            Event(execution.id, "execution.failed", data=as_data({"error": brief, "by": by})),
            *(_event(run, "node.held", None) for run in sorted(held)),
        ]
    )
    notify_parent(tx, execution)
    return failed


def complete(tx: Transaction, execution: ExecutionRow, by: str | None) -> ExecutionRow:
    """Complete a running or paused execution that is locked exclusively and all of its sinks have ended."""
    (completed,) = tx.set_status([execution], ExecutionStatus.COMPLETED, revise=False, ended_at=tx.later())
    tx.delete_runs([NodeKey(execution.id, END)])
    tx.add_events([Event(execution.id, "execution.completed", data=ended_by(by))], at=tx.later())
    notify_parent(tx, execution)
    return completed


def notify_parent(tx: Transaction, execution: ExecutionRow) -> None:
    """Insert a `$parent` row, due immediately, that notifies the parent's run of a child's end, if it is a child.

    The parent's own rows are changed in a separate transaction.
    """
    if execution.parent_id is None:
        return
    row = RunRow(
        execution.id, PARENT, 0, NodeStatus.WAITING.value, PARENT, "", execution.priority, taken=0,
        wait_kind=WaitKind.CHILD.value, due_at=tx.now,
    )  # fmt: skip
    if (there := tx.lock_runs([row.key]).get(row.key)) is not None:
        tx.update_runs([(there, row)])
    else:
        tx.insert_runs([row])


def inputs(tx: Transaction, execution: ExecutionRow, node_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the data, as JSON text, and the spans of those parents whose edge to the node was taken.

    Called after the last arrival was written, so that it sees the arrivals of other transactions at a join.
    """
    edges = tx.graph(execution.workflow_id, execution.version).leading(node_id)
    leading = {edge.source: edge for edge in edges if edge.source != START}
    if not leading:
        return {}, {}
    data: dict[str, str] = {}
    spans: dict[str, str] = {}
    for row in tx.inputs(execution.id, leading):
        if leading[row.node_id].is_taken(row.status, _named(row)):
            data[row.node_id] = "null" if row.data is None else row.data
            if row.span is not None:
                spans[row.node_id] = row.span
    return data, spans


def recount_arrivals(
    tx: Transaction,
    execution: ExecutionRow,
    nodes: Collection[str],
    ended: Iterable[ResultRow],
    *,
    from_start: bool = False,
    outbox: bool = False,
) -> tuple[int, list[RunRow]]:
    """Create the missing rows of nodes from the arrivals at them, and count the arrivals at `$end` anew.

    The arrivals are derived from the results, `ended`. Returns the number of arrivals that `$end` waits for, and the
    runs that this queues: with `from_start` also entry nodes.
    """
    graph = tx.graph(execution.workflow_id, execution.version)
    results = {row.node_id: row for row in ended if row.arrived}
    rows: list[RunRow] = []
    for node_id in sorted(nodes):
        edges = graph.leading(node_id)
        arrived = [edge for edge in edges if edge.source in results or (from_start and edge.source == START)]
        if not arrived:
            continue
        taken = sum(edge.source == START or _took(edge, results[edge.source]) for edge in arrived)
        row = RunRow(
            execution.id, node_id, 0, NodeStatus.PENDING.value, edges[0].target_type, edges[0].target_queue,
            execution.priority, pending=edges[0].target_inputs - len(arrived), taken=taken, fence=execution.first_fence,
        )  # fmt: skip
        if not row.pending and taken:
            row = queued(tx, row)
            if outbox:
                row = row._replace(push=0, due_at=tx.now)
        rows.append(row)
    tx.insert_runs(rows)
    ready = [row for row in rows if row.status == NodeStatus.QUEUED]
    tx.add_events([_event(row, "node.queued", {"push": row.push}) for row in ready])
    sinks = graph.leading(END)
    left = sinks[0].target_inputs - sum(edge.source in results for edge in sinks)
    end = NodeKey(execution.id, END)
    seconds = execution.deadline_seconds
    due_at = None if seconds is None else tx.after(timedelta(seconds=seconds))
    run = tx.lock_runs([end])[end]
    tx.update_runs([(run, run._replace(pending=left, due_at=due_at))])
    return left, ready


def _took(edge: GraphEdge, result: ResultRow) -> bool:
    return edge.is_taken(result.status, _named(result))


def _named(result: ResultRow | InputRow) -> Sequence[str] | None:
    return None if result.taken is None else json.loads(result.taken)


def _without_retry(run: RunRow) -> RunRow:
    return run._replace(wait_kind=None, wait_key=None) if run.wait_kind == WaitKind.RETRY else run


def _event(run: RunRow, kind: str, details: Mapping[str, Any] | None, worker_id: str | None = None) -> Event:
    data = None if details is None else as_data(details)
    return Event(run.execution_id, kind, run.node_id, run.item, run.attempt, worker_id, data)


# ---- arrivals at successors ----


class Arrival(NamedTuple):
    """The arrival of an ended run at a successor."""

    edge: GraphEdge
    taken: bool
    reference: str  # the claim whose record it follows from


class Wish(NamedTuple):
    """The nodes that the worker of a recorded claim would run next, in order of preference."""

    reference: str
    worker_id: str
    queue: str
    successors: Sequence[str]
    most: int


class Propagation:
    """The arrivals that follow from the records of one execution."""

    def __init__(self, tx: Transaction, execution: ExecutionRow, graph: Graph, wishes: Sequence[Wish]) -> None:
        self.pushed: list[tuple[str, RunRow]] = []  #: runs that became queued, each with its claim reference
        self.claimed: list[tuple[str, RunRow]] = []  #: runs that a worker goes on with, by its claim's reference
        self.sinks = 0  #: arrivals at `$end` by skips
        self._tx = tx
        self._execution = execution
        self._graph = graph
        self._fence = execution.first_fence
        self._running = execution.status == ExecutionStatus.RUNNING
        self._wishes = list(wishes) if self._running else []
        self._there: set[str] = set()  # the ready nodes that had a row before
        self._skipped: list[Event] = []

    def settle(self, arrivals: Sequence[Arrival]) -> None:
        """Write the arrivals. A node that has all of its inputs becomes ready, or is skipped if none was taken.

        The events are ordered across the rounds: skips, then claims, then queued and held runs.
        """
        if len(arrivals) == 1 and arrivals[0].taken and arrivals[0].edge.target_inputs == 1:
            self._place([self._row(arrivals)])  # the link of a chain
            return
        ready: list[RunRow] = []
        while arrivals:
            arrivals = self._round(arrivals, ready)
        if self._skipped:
            self._tx.add_events(sorted(self._skipped))
        if ready:
            self._place(sorted(ready))

    def _round(self, arrivals: Sequence[Arrival], ready: list[RunRow]) -> list[Arrival]:
        whole: list[RunRow] = []  # all inputs arrive at once: there is no row yet
        partial: list[RunRow] = []
        counts: dict[str, int] = {}
        for row, count in self._summed(arrivals):
            counts[row.node_id] = count
            (partial if row.pending else whole).append(row)
        counted = self._tx.arrive(partial, counts) if partial else []
        met = sorted([*whole, *(row for row in counted if not row.pending)], key=_NODE_ID)
        if not met:
            return []
        self._there.update(row.node_id for row in counted)
        ready += [row for row in met if row.taken]
        skipped = [row for row in met if not row.taken]
        return self._skip(skipped) if skipped else []

    def _summed(self, arrivals: Sequence[Arrival]) -> list[tuple[RunRow, int]]:
        """Sum the arrivals at each row: the resulting row, and their number, by node id."""
        by_target: dict[str, list[Arrival]] = {}
        for arrival in arrivals:
            by_target.setdefault(arrival.edge.target, []).append(arrival)
        return [(self._row(those), len(those)) for _, those in sorted(by_target.items())]

    def _row(self, arrivals: Sequence[Arrival]) -> RunRow:
        """Return the row of a node that results from arrivals, all of them at that node."""
        edge, execution = arrivals[0].edge, self._execution
        taken = int(arrivals[0].taken) if len(arrivals) == 1 else sum(arrival.taken for arrival in arrivals)
        return RunRow(
            execution.id, edge.target, 0, _PENDING, edge.target_type, edge.target_queue, execution.priority,
            edge.target_inputs - len(arrivals), taken, self._fence,
            claim_reference=arrivals[-1].reference, pushed_epoch=self._tx.epoch,
        )  # fmt: skip

    def _skip(self, rows: Sequence[RunRow]) -> list[Arrival]:
        """Skip nodes none of whose inputs was taken, and return the arrivals at their own successors."""
        execution_id = self._execution.id
        self._tx.delete_runs([row.key for row in rows if row.node_id in self._there])
        self._tx.insert_results(
            [
                ResultRow(
                    execution_id, row.node_id, 0, row.node_type, NodeStatus.SKIPPED.value,
                    fence=self._execution.first_fence, ended_at=self._tx.now,
                )
                for row in rows
            ]
        )  # fmt: skip
        self._skipped += [Event(execution_id, "node.skipped", row.node_id) for row in rows]
        onward: list[Arrival] = []
        for row in rows:
            for edge in self._graph.following(row.node_id):
                if edge.target == END:
                    self.sinks += 1
                else:
                    assert row.claim_reference is not None
                    onward.append(Arrival(edge, False, row.claim_reference))
        return onward

    def _place(self, ready: list[RunRow]) -> None:
        """Claim, queue or hold nodes that became ready."""
        placed: list[tuple[RunRow, RunRow]] = []
        started: list[Event] = []
        others: list[Event] = []
        for wish in self._wishes:
            wanted = _wanted(wish, ready)
            if not wanted or not self._tx.is_live(wish.worker_id):
                continue
            for row in wanted:
                ready.remove(row)
                run = row._replace(
                    status=_RUNNING, fence=self._fence + 1, worker_id=wish.worker_id,
                    pushed_epoch=self._tx.epoch, started_at=self._tx.later(),
                )  # fmt: skip
                placed.append((row, run))
                self.claimed.append((wish.reference, run))
                started.append(
                    Event(run.execution_id, "node.started", run.node_id, run.item, run.attempt, wish.worker_id)
                )
        for row in ready:
            assert row.claim_reference is not None
            if self._running:
                run = row._replace(
                    status=_QUEUED, fence=self._fence, push=1, pushed_epoch=self._tx.epoch, pushed_at=self._tx.now,
                    due_at=self._tx.after(SUSPECT_AFTER),
                )  # fmt: skip
                self.pushed.append((row.claim_reference, run))
                others.append(Event(run.execution_id, "node.queued", run.node_id, 0, 1, None, FIRST_PUSH))
            else:
                run = row._replace(
                    status=NodeStatus.HELD.value, fence=self._fence, pushed_epoch=self._tx.epoch, claim_reference=None
                )  # fmt: skip
                others.append(_event(run, "node.held", None))
            placed.append((row, run))
        new: list[RunRow] = []
        changed: list[tuple[RunRow, RunRow]] = []
        for row, run in placed:
            if row.node_id in self._there:
                changed.append((row, run))
            else:
                new.append(run)
        self._tx.insert_runs(new)
        if changed:
            self._tx.update_runs(changed)
        self._tx.add_events([*sorted(started), *others])


def _wanted(wish: Wish, ready: Sequence[RunRow]) -> list[RunRow]:
    """Return the ready runs that a worker goes on with, in its order."""
    rows = {row.node_id: row for row in ready if row.queue == wish.queue and row.claim_reference == wish.reference}
    return [rows[node_id] for node_id in wish.successors if node_id in rows][: wish.most]
