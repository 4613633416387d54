"""The end of a node run on SQLite and all that follows: arrivals, skips that travel on, ready successors, `$end`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from spanloom.engine.store.requests import END, NodeClaim, NodeJob, NodeKey, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, check_node_transition
from spanloom.stores.schema import from_micros
from spanloom.stores.sqlite.executions import complete_execution, fail_execution
from spanloom.stores.sqlite.transaction import SUSPECT_MICROS, GraphEdge, Run, Transaction

__all__ = ["Ending", "end", "keep_result"]

_DELETE = "DELETE FROM node_runs WHERE execution_id = ? AND node_id = ? AND item = ?"

_ARRIVE = """
INSERT INTO node_runs (execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
                       recovery_attempts, push, pushed_epoch)
VALUES (?, ?, 0, 'pending', ?, ?, ?, ?, ?, ?, 1, 0, 0, 0)
ON CONFLICT (execution_id, node_id, item) DO UPDATE SET pending = pending - ?, taken = node_runs.taken + excluded.taken
RETURNING pending, taken
"""

_ARRIVE_AT_END = """
UPDATE node_runs SET pending = pending - ?, taken = taken + ?
WHERE execution_id = ? AND node_id = '$end' AND item = 0
RETURNING pending
"""

_PUT_READY = """
INSERT OR REPLACE INTO node_runs (execution_id, node_id, item, status, node_type, queue, priority, pending, taken,
                                  fence, attempt, recovery_attempts, worker_id, claim_reference, due_at, push,
                                  pushed_epoch, pushed_at, started_at)
VALUES (?, ?, 0, ?, ?, ?, ?, 0, ?, ?, 1, 0, ?, ?, ?, ?, ?, ?, ?)
"""

_FOLLOWED = {  # which edges a node that ended so takes, unless its record names them
    NodeStatus.COMPLETED: ("success", "always"),
    NodeStatus.FAILED: ("failure", "always"),
    NodeStatus.SKIPPED: (),
}


class Ending(NamedTuple):
    """How a node run ended."""

    status: NodeStatus  # completed, failed or skipped
    data: str | None = None
    error: str | None = None
    taken: tuple[str, ...] | None = None
    handled: bool = False
    successors: tuple[str, ...] = ()  # what its worker would run next, in order of preference
    span: str | None = None


class _Ready(NamedTuple):
    edge: GraphEdge
    taken: int


class _Placed(NamedTuple):
    """Where runs that became ready go."""

    status: NodeStatus
    push: int
    fence: int
    worker_id: str | None = None
    due_at: int | None = None
    pushed_at: int | None = None
    started_at: int | None = None


def end(tx: Transaction, run: Run, ending: Ending, *, claims: bool = False) -> RecordResult:
    """End a running node run and do all that follows; `claims`: its worker may be given a ready successor."""
    flow = _Flow(tx, run)
    arrived = flow.leave(ending)
    keep_result(tx, run, ending, arrived)
    execution_status = ExecutionStatus(run.execution_status)
    ended = None
    if not arrived and not execution_status.ended:
        error = {"node_id": run.node_id, **({} if ending.error is None else json.loads(ending.error))}
        fail_execution(tx, run, execution_status, error, run.by)
        execution_status = ended = ExecutionStatus.FAILED
    flow.settle()
    if flow.reaches_end() and not execution_status.ended:
        complete_execution(tx, run, execution_status)
        ended = ExecutionStatus.COMPLETED
    goes_on = execution_status is ExecutionStatus.RUNNING
    preferred = ending.successors if claims and goes_on else ()
    first = next((name for name in preferred if flow.ready_on(name, run.queue)), None)
    following = None if first is None else _claim(tx, run, flow.ready.pop(first), ending)
    jobs = (_queue if goes_on else _hold)(tx, run, sorted(flow.ready.values()))
    return RecordResult(True, jobs, following, ended, None if ended is None else from_micros(tx.now))


def keep_result(tx: Transaction, run: Run, ending: Ending, arrived: bool) -> None:
    """Put a running run's result in place of its row."""
    status = ending.status
    check_node_transition(run.node_id, NodeStatus(run.status), status)
    tx.execute(_DELETE, (run.execution_id, run.node_id, run.item))
    taken = None if ending.taken is None else json.dumps(ending.taken)
    tx.results.append(
        (run.execution_id, run.node_id, run.item, run.node_type, status.value, ending.data, ending.error, taken,
         arrived, run.attempt, run.recovery_attempts, run.fence, run.push, run.worker_id, ending.span,
         run.started_at, tx.now)
    )  # fmt: skip
    told = None if ending.error is None else {"error": json.loads(ending.error)}
    tx.event(run.execution_id, f"node.{status.value}", run, attempt=run.attempt, worker_id=run.worker_id, data=told)


class _Flow:
    """The arrivals that follow from one ended run, settled by a worklist: each skip adds those of its own edges."""

    def __init__(self, tx: Transaction, run: Run) -> None:
        self.ready: dict[str, _Ready] = {}
        self._turn = tx
        self._run = run
        self._graph = tx.graph(run.workflow_id, run.version)
        self._waiting: deque[str] = deque()
        self._skipped: list[str] = []
        self._arriving: dict[str, tuple[GraphEdge, int, int]] = {}  # target: its edge, arrivals, how many were taken
        self._at_end = 0
        self._taken_at_end = 0

    def leave(self, ending: Ending) -> bool:
        """Arrive at the ended run's successors and return True; a failure that nobody handles arrives nowhere."""
        followed = _FOLLOWED[ending.status]
        skipped = ending.status is NodeStatus.SKIPPED
        named = None if ending.taken is None or skipped else frozenset(ending.taken)
        edges = [
            (edge, edge.target != END and (edge.kind in followed if named is None else edge.target in named))
            for edge in self._graph.get(self._run.node_id, ())
        ]
        if ending.status is NodeStatus.FAILED and not ending.handled and not any(taken for _, taken in edges):
            return False
        for edge, taken in edges:
            if edge.target == END:
                self._at_end += 1
                self._taken_at_end += not skipped
            else:
                self._arrive(edge, taken)
        return True

    def settle(self) -> None:
        """Write the arrivals; what has all of its inputs is ready, or skipped when none of them was taken."""
        execution_id, priority = self._run.execution_id, self._run.priority
        while self._waiting:
            edge, arrivals, taken = self._arriving.pop(self._waiting.popleft())
            if arrivals < edge.target_inputs:
                pending, taken = self._turn.execute(
                    _ARRIVE,
                    (execution_id, edge.target, edge.target_type, edge.target_queue, priority,
                     edge.target_inputs - arrivals, taken, self._run.first_fence, arrivals),
                ).fetchone()  # fmt: skip
                if pending:
                    continue
            if taken:
                self.ready[edge.target] = _Ready(edge, taken)
            else:
                self._skip(edge)
        for target in sorted(self._skipped):
            self._turn.event(execution_id, "node.skipped", NodeKey(execution_id, target))

    def ready_on(self, name: str, queue: str) -> bool:
        """Tell whether the node became ready and belongs to this queue."""
        return name in self.ready and self.ready[name].edge.target_queue == queue

    def reaches_end(self) -> bool:
        """Arrive at `$end`; tell whether all of its inputs have."""
        if not self._at_end:
            return False
        arrivals = (self._at_end, self._taken_at_end, self._run.execution_id)
        (pending,) = self._turn.execute(_ARRIVE_AT_END, arrivals).fetchone()
        return bool(pending == 0)

    def _arrive(self, edge: GraphEdge, taken: bool) -> None:
        earlier = self._arriving.get(edge.target)
        if earlier is None:
            self._waiting.append(edge.target)
            self._arriving[edge.target] = (edge, 1, int(taken))
        else:
            self._arriving[edge.target] = (edge, earlier[1] + 1, earlier[2] + taken)

    def _skip(self, edge: GraphEdge) -> None:
        tx, execution_id = self._turn, self._run.execution_id
        if edge.target_inputs > 1:
            tx.execute(_DELETE, (execution_id, edge.target, 0))
        tx.results.append(
            (execution_id, edge.target, 0, edge.target_type, NodeStatus.SKIPPED.value, None, None, None,
             True, 1, 0, self._run.first_fence, 0, None, None, None, tx.now)
        )  # fmt: skip
        self._skipped.append(edge.target)
        for onward in self._graph.get(edge.target, ()):
            if onward.target == END:
                self._at_end += 1
            else:
                self._arrive(onward, taken=False)


def _claim(tx: Transaction, run: Run, ready: _Ready, ending: Ending) -> NodeClaim:
    """Give a ready successor to the worker that has just ended `run`."""
    edge = ready.edge
    key = NodeKey(run.execution_id, edge.target)
    check_node_transition(edge.target, NodeStatus.PENDING, NodeStatus.RUNNING)
    fence = run.first_fence + 1
    claimed = _Placed(NodeStatus.RUNNING, fence=fence, worker_id=run.worker_id, started_at=tx.now, push=0)
    _put(tx, run, [ready], claimed)
    tx.event(run.execution_id, "node.started", key, attempt=1, worker_id=run.worker_id)
    # The only parent's data is in hand; a join's are read now, after the last arrival was written.
    if edge.target_inputs == 1:
        results = {run.node_id: "null" if ending.data is None else ending.data}
        spans = {} if ending.span is None else {run.node_id: ending.span}
    else:
        results, spans = tx.parents(run.execution_id, run.workflow_id, run.version, edge.target)
    return NodeClaim(edge.target, 0, edge.target_type, edge.target_queue, fence, 1, 0, results, parent_spans=spans)


def _queue(tx: Transaction, run: Run, ready: Collection[_Ready]) -> list[NodeJob]:
    queued = _Placed(NodeStatus.QUEUED, fence=run.first_fence, due_at=tx.now + SUSPECT_MICROS, push=1, pushed_at=tx.now)
    _put(tx, run, ready, queued)
    pushed_at = from_micros(tx.now)
    jobs: list[NodeJob] = []
    for edge, _ in ready:
        key = NodeKey(run.execution_id, edge.target)
        tx.event(run.execution_id, "node.queued", key, attempt=1, data={"push": 1})
        jobs.append(NodeJob(*key, edge.target_type, edge.target_queue, run.priority, push=1, pushed_at=pushed_at))
    return jobs


def _hold(tx: Transaction, run: Run, ready: Collection[_Ready]) -> list[NodeJob]:
    _put(tx, run, ready, _Placed(NodeStatus.HELD, fence=run.first_fence, push=0))
    for edge, _ in ready:
        tx.event(run.execution_id, "node.held", NodeKey(run.execution_id, edge.target), attempt=1)
    return []


def _put(tx: Transaction, run: Run, ready: Collection[_Ready], placed: _Placed) -> None:
    """Write runs that became ready, in place of the rows that counted their inputs."""
    if ready:
        by = None if placed.status is NodeStatus.HELD else run.by
        tx.executemany(
            _PUT_READY,
            [
                (run.execution_id, edge.target, placed.status.value, edge.target_type, edge.target_queue, run.priority,
                 taken, placed.fence, placed.worker_id, by, placed.due_at, placed.push, tx.epoch, placed.pushed_at,
                 placed.started_at)
                for edge, taken in ready
            ],
        )  # fmt: skip
