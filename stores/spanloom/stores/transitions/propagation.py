"""Arrivals at successors, round by round: what is skipped in one arrives at its own successors in the next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from spanloom.engine.store.requests import END
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.stores.transitions.arrivals import SUSPECT_AFTER
from spanloom.stores.transitions.rows import Event, ExecutionRow, GraphEdge, ResultRow, RunRow, as_data
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["Arrival", "Propagation", "Wish"]


class Arrival(NamedTuple):
    """One ended run that arrives at a successor."""

    edge: GraphEdge
    taken: bool
    reference: str  # the claim whose record it follows from


class Wish(NamedTuple):
    """What the worker of a recorded claim would run next, in its order of preference."""

    reference: str
    worker_id: str
    queue: str
    successors: Sequence[str]


class Propagation:
    """The arrivals that follow from the records of one execution."""

    def __init__(self, tx: Transaction, execution: ExecutionRow, wishes: Sequence[Wish]) -> None:
        self.pushed: list[tuple[str, RunRow]] = []  #: runs that became queued, each with its claim reference
        self.claimed: list[tuple[str, RunRow]] = []  #: runs that a worker goes on with, by its claim's reference
        self.sinks = 0  #: arrivals at `$end` by skips
        self._tx = tx
        self._execution = execution
        self._graph = tx.graph(execution.workflow_id, execution.version)
        self._running = execution.status == ExecutionStatus.RUNNING
        self._wishes = [wish for wish in wishes if wish.successors] if self._running else []

    def settle(self, arrivals: Sequence[Arrival]) -> None:
        """Write the arrivals; what has all of its inputs becomes ready, or is skipped if none of them was taken."""
        while arrivals:
            arrivals = self._round(arrivals)

    def _round(self, arrivals: Sequence[Arrival]) -> list[Arrival]:
        whole: list[RunRow] = []  # all inputs arrive at once: there is no row yet
        partial: list[RunRow] = []
        counts: dict[str, int] = {}
        for row, count in self._summed(arrivals):
            counts[row.node_id] = count
            (partial if row.pending else whole).append(row)
        counted = self._tx.arrive(partial, counts) if partial else []
        met = sorted([*whole, *(row for row in counted if not row.pending)], key=lambda row: row.node_id)
        there = {row.node_id for row in counted}
        onward = self._skip([row for row in met if not row.taken], there)
        self._place([row for row in met if row.taken], there)
        return onward

    def _summed(self, arrivals: Sequence[Arrival]) -> list[tuple[RunRow, int]]:
        """Sum the arrivals at each row: the row as they make it, and how many they are, by node id."""
        by_target: dict[str, list[Arrival]] = {}
        for arrival in arrivals:
            by_target.setdefault(arrival.edge.target, []).append(arrival)
        rows: list[tuple[RunRow, int]] = []
        for target, those in sorted(by_target.items()):
            edge = those[0].edge
            row = RunRow(
                self._execution.id, target, 0, NodeStatus.PENDING.value, edge.target_type, edge.target_queue,
                self._execution.priority, pending=edge.target_inputs - len(those),
                taken=sum(arrival.taken for arrival in those), fence=self._execution.first_fence,
                claim_reference=those[-1].reference, pushed_epoch=self._tx.epoch,
            )  # fmt: skip
            rows.append((row, len(those)))
        return rows

    def _skip(self, rows: Sequence[RunRow], there: Collection[str]) -> list[Arrival]:
        """Skip nodes none of whose inputs was taken, and return the arrivals at their own successors."""
        execution_id = self._execution.id
        self._tx.delete_runs([row.key for row in rows if row.node_id in there])
        self._tx.insert_results(
            [
                ResultRow(
                    execution_id, row.node_id, 0, row.node_type, NodeStatus.SKIPPED.value,
                    fence=self._execution.first_fence, ended_at=self._tx.now,
                )
                for row in rows
            ]
        )  # fmt: skip
        self._tx.add_events([Event(execution_id, "node.skipped", row.node_id) for row in rows])
        onward: list[Arrival] = []
        for row in rows:
            for edge in self._graph.following(row.node_id):
                if edge.target == END:
                    self.sinks += 1
                else:
                    assert row.claim_reference is not None
                    onward.append(Arrival(edge, False, row.claim_reference))
        return onward

    def _place(self, ready: list[RunRow], there: Collection[str]) -> None:
        """Claim, queue or hold nodes that became ready."""
        placed: list[tuple[RunRow, RunRow]] = []
        for wish in list(self._wishes):
            if (row := self._wanted(wish, ready)) is not None and self._tx.is_live(wish.worker_id):
                ready.remove(row)
                self._wishes.remove(wish)
                run = row._replace(
                    status=NodeStatus.RUNNING.value, fence=self._execution.first_fence + 1, worker_id=wish.worker_id,
                    pushed_epoch=self._tx.epoch, started_at=self._tx.later(),
                )  # fmt: skip
                placed.append((row, run))
                self.claimed.append((wish.reference, run))
                self._note(run, "node.started", worker_id=wish.worker_id)
        for row in ready:
            assert row.claim_reference is not None
            if self._running:
                run = row._replace(
                    status=NodeStatus.QUEUED.value, fence=self._execution.first_fence, push=1,
                    pushed_epoch=self._tx.epoch, pushed_at=self._tx.now, due_at=self._tx.now + SUSPECT_AFTER,
                )  # fmt: skip
                self.pushed.append((row.claim_reference, run))
                self._note(run, "node.queued", data=as_data({"push": 1}))
            else:
                run = row._replace(
                    status=NodeStatus.HELD.value, fence=self._execution.first_fence, pushed_epoch=self._tx.epoch,
                    claim_reference=None,
                )  # fmt: skip
                self._note(run, "node.held")
            placed.append((row, run))
        self._tx.insert_runs([run for row, run in placed if row.node_id not in there])
        self._tx.update_runs([(row, run) for row, run in placed if row.node_id in there])

    def _wanted(self, wish: Wish, ready: Sequence[RunRow]) -> RunRow | None:
        for node_id in wish.successors:
            for row in ready:
                if row.node_id == node_id and row.queue == wish.queue and row.claim_reference == wish.reference:
                    return row
        return None

    def _note(self, run: RunRow, kind: str, *, worker_id: str | None = None, data: str | None = None) -> None:
        self._tx.add_events([Event(run.execution_id, kind, run.node_id, 0, 1, worker_id, data)])
