"""The record of claims' outcomes: all records of one execution together, with all that follows from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import attrgetter

from spanloom.engine.store.requests import (
    END,
    NodeClaim,
    NodeJob,
    NodeKey,
    Outcome,
    RecordRequest,
    RecordResult,
)
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.transitions.arrivals import Arrival, Propagation, Wish, complete, fail
from spanloom.stores.transitions.claim import node_claim
from spanloom.stores.transitions.repeated_records import answer_again
from spanloom.stores.transitions.rows import Event, ExecutionRow, ResultRow, RunRow, as_data, claim_reference
from spanloom.stores.transitions.transaction import Transaction
from spanloom.stores.transitions.waits.mapped import ItemEnd, end_items
from spanloom.stores.transitions.waits.rules import check_wait, wait

__all__ = ["Work", "prepare", "record", "record_taken"]

ENDS = {
    Outcome.COMPLETED: NodeStatus.COMPLETED,
    Outcome.FAILED: NodeStatus.FAILED,
    Outcome.SKIPPED: NodeStatus.SKIPPED,
}

_TEXTS = {status: status.value for status in ENDS.values()}
_ENDED = {status: f"node.{status.value}" for status in ENDS.values()}
_STALE = RecordResult(recorded=False)
_NO_SPAN = (None, None, None, None)
_KEY = attrgetter("key")


def prepare(requests: Sequence[RecordRequest]) -> list[Work]:
    """Check requests before the transaction that records them. Raises StoreRefused for a wait that nothing ends."""
    for request in requests:
        check_wait(request)
    return [Work(request) for request in requests]


def record(tx: Transaction, works: Sequence[Work]) -> list[RecordResult]:
    """Record outcomes, in the order of their keys, and return the answers in the order of the requests."""
    by_execution: dict[str, list[Work]] = {}
    for work in sorted(works, key=_KEY) if len(works) > 1 else works:
        if work.begun:
            work.reset()
        work.begun = True
        if work.has_id:
            by_execution.setdefault(work.request.execution_id, []).append(work)

    def may_end(execution: ExecutionRow) -> bool:
        return any(_may_end(tx, work.request, execution) for work in by_execution[execution.id])

    tx.prefetch([work.key for group in by_execution.values() for work in group])
    executions = tx.lock_executions(by_execution, alone=may_end)
    ends: list[NodeKey] = []
    for locked in executions.values():
        sinks = tx.graph(locked.workflow_id, locked.version).sinks
        if any([work.request.node_id in sinks for work in by_execution[locked.id]]):  # noqa: C419  # quicker so
            ends.append(NodeKey(locked.id, END))
    if ends:
        tx.prefetch(ends)
    for execution_id, group in by_execution.items():
        if (execution := executions.get(execution_id)) is None:
            continue
        # The runs of one execution and their successors before those of the next: the lock order of all transactions.
        runs = tx.lock_runs([work.key for work in group])
        _Group(tx, execution, runs).record(group)
    return [work.answer for work in works]


def record_taken(tx: Transaction, execution: ExecutionRow, run: RunRow, request: RecordRequest) -> RecordResult:
    """Record the manual result of a run that this step has claimed; its execution is locked exclusively."""
    work = Work(request)
    _Group(tx, execution, {work.key: run}).record([work])
    return work.answer


def _may_end(tx: Transaction, request: RecordRequest, execution: ExecutionRow) -> bool:
    """Return whether a record may change its execution's status: by a failure, a way to `$end`, or a skip.

    Such an execution is locked exclusively at once: two siblings that first share the lock and then fail would
    deadlock.
    """
    if request.item or request.outcome not in ENDS:
        return False
    if request.outcome is not Outcome.COMPLETED:
        return True
    edges = tx.graph(execution.workflow_id, execution.version).following(request.node_id)
    status = ENDS[request.outcome]
    return any(edge.target == END or not edge.is_taken(status, request.taken) for edge in edges)


class Work:
    """One record in progress: its request, its run and its answer."""

    __slots__ = ("answer", "begun", "following", "has_id", "jobs", "key", "reference", "request", "run")

    def __init__(self, request: RecordRequest) -> None:
        self.request = request
        self.key = request.key
        self.reference = claim_reference(request.node_id, request.item, request.fence)
        self.has_id = canonical_id(request.execution_id) is not None  # else no execution has it
        self.begun = False
        self.reset()

    def reset(self) -> None:
        """Clear the answer of an earlier transaction that was rolled back."""
        self.run: RunRow | None = None  # the run under its claim; None: the fence is stale
        self.answer = _STALE
        self.jobs: list[NodeJob] = []
        self.following: list[NodeClaim] = []


class _Group:
    """The records of one execution, in the order of their keys."""

    def __init__(self, tx: Transaction, execution: ExecutionRow, runs: dict[NodeKey, RunRow]) -> None:
        self._tx = tx
        self._execution = execution
        self._runs = runs
        self._graph = tx.graph(execution.workflow_id, execution.version)
        self._error: dict[str, object] | None = None
        self._ended_by: Work | None = None
        self._sinks = 0

    def record(self, works: Sequence[Work]) -> None:
        """Record all of them and set their answers."""
        ended = [work for work in works if self._record_run(work)]
        ending: ExecutionStatus | None = None
        if self._error is not None:
            assert self._ended_by is not None
            self._execution = fail(self._tx, self._execution, self._error, self._ended_by.reference)
            ending = ExecutionStatus.FAILED
        self._follow(ended)
        if self._sinks and self._reaches_end():
            assert self._ended_by is not None
            self._execution = complete(self._tx, self._execution, self._ended_by.reference)
            ending = ExecutionStatus.COMPLETED
        for work in ended:
            work.answer = self._answer(work, ending)

    # ---- 1. the run itself ----

    def _record_run(self, work: Work) -> bool:
        """Record the outcome of a claim and return whether its run has ended. The fence may be stale."""
        request, run = work.request, self._runs.get(work.key)
        if (
            run is None
            or run.status != NodeStatus.RUNNING
            or run.fence != request.fence
            or (run.worker_id or "") != request.worker_id
        ):
            work.answer = answer_again(self._tx, self._execution, request, run)
            return False
        work.run = run
        if request.outcome not in ENDS:
            status = self._execution.status if self._error is None else ExecutionStatus.FAILED.value
            waited, new = wait(self._tx, self._execution._replace(status=status), run, request, work.reference)
            self._runs[run.key] = new
            work.answer = waited
            if waited.refused is None:
                self._tx.add_telemetry(run.key, request.logs, request.spans)
            return False
        self._end_run(work, run)
        return True

    def _end_run(self, work: Work, run: RunRow) -> None:
        tx, request = self._tx, work.request
        status = ENDS[request.outcome]
        lost = status is NodeStatus.FAILED and not run.item and not self._is_handled(work)
        start_ns, end_ns, attributes, links = request.own_span or _NO_SPAN
        result = ResultRow(
            run.execution_id, run.node_id, run.item, run.node_type, _TEXTS[status], request.data, request.error,
            None if request.taken is None else json.dumps(request.taken), not lost, run.attempt, run.recovery_attempts,
            run.fence, run.push, run.worker_id, request.span, start_ns, end_ns,
            attributes, links, run.started_at, tx.now,
        )  # fmt: skip
        tx.end_runs([(run, result)])
        del self._runs[work.key]
        if request.logs or request.spans:
            tx.add_telemetry(work.key, request.logs, request.spans)
        details = as_data({"error": json.loads(request.error or "{}")}) if status is NodeStatus.FAILED else None
        tx.add_events(
            [Event(run.execution_id, _ENDED[status], run.node_id, run.item, run.attempt, run.worker_id, details)]
        )
        if run.item or self._error is not None:
            return
        self._ended_by = work
        if lost and self._execution.status in (ExecutionStatus.RUNNING, ExecutionStatus.PAUSED):
            self._error = {"node_id": run.node_id, **json.loads(request.error or "{}")}

    # ---- 2. successors ----

    def _follow(self, ended: Sequence[Work]) -> None:
        """Count the arrivals of the ended runs at their nodes' runs and successors, and assign the ready runs."""
        arrivals: list[Arrival] = []
        wishes: list[Wish] = []
        items: list[ItemEnd] = []
        by_reference: dict[str, Work] = {}
        for work in ended:
            request, run = work.request, work.run
            assert run is not None
            status = ENDS[request.outcome]
            by_reference[work.reference] = work
            if run.item:
                items.append(ItemEnd(run, work.reference, request.worker_id, self._goes_on(work), status))
            elif status is not NodeStatus.FAILED or self._is_handled(work):
                for edge in self._graph.following(run.node_id):
                    if edge.target == END:
                        self._sinks += 1
                    else:
                        arrivals.append(Arrival(edge, edge.is_taken(status, request.taken), work.reference))
                if request.successors:
                    wishes.append(
                        Wish(work.reference, request.worker_id, run.queue, request.successors, request.most_following)
                    )
        if items:
            for follows in end_items(self._tx, self._execution, items):
                work = by_reference[follows.reference]
                work.jobs.extend(follows.jobs)
                if follows.claim is not None:
                    work.following.append(follows.claim)
        if arrivals:
            propagation = Propagation(self._tx, self._execution, self._graph, wishes)
            propagation.settle(arrivals)
            self._sinks += propagation.sinks
            for reference, run in propagation.pushed:
                by_reference[reference].jobs.append(self._tx.job(run))
            for reference, run in propagation.claimed:
                work = by_reference[reference]
                target = self._graph.target(run.node_id)
                sole = work.request if target is not None and target.target_inputs == 1 else None
                work.following.append(node_claim(self._tx, self._execution, run, sole_parent=sole))

    def _is_handled(self, work: Work) -> bool:
        request = work.request
        return request.handled or any(
            edge.target != END and edge.is_taken(ENDS[request.outcome], request.taken)
            for edge in self._graph.following(request.node_id)
        )

    def _goes_on(self, work: Work) -> bool:
        return work.request.node_id in work.request.successors

    # ---- 3. the end of the execution ----

    def _reaches_end(self) -> bool:
        """Count the arrivals at `$end` and return whether they complete the execution."""
        key = NodeKey(self._execution.id, END)
        end = self._tx.lock_runs([key]).get(key)
        if end is None:
            return False
        left = end.pending - self._sinks
        if left <= 0 and self._execution.status in (ExecutionStatus.RUNNING, ExecutionStatus.PAUSED):
            return True
        self._tx.update_runs([(end, end._replace(pending=left))])
        return False

    def _answer(self, work: Work, ending: ExecutionStatus | None) -> RecordResult:
        if ending is None or work is not self._ended_by:
            return RecordResult(True, tuple(work.jobs), tuple(work.following))
        assert self._execution.ended_at is not None
        ended_at = self._tx.as_datetime(self._execution.ended_at)
        return RecordResult(True, tuple(work.jobs), tuple(work.following), ending, ended_at)
