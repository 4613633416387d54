"""Holds what the store answers to what the model expects, and keeps the claims and jobs that were given."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from model.asks import Held
from model.execution import Execution, Key, Run
from model.model import Candidate, Model
from spanloom.engine.store.requests import (
    Claim,
    NodeClaim,
    NodeJob,
    NodeKey,
    Outcome,
    RecordRequest,
    RecordResult,
    Refusal,
    SweepResult,
)
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.clock import ManualClock

_READY = (NodeStatus.QUEUED, NodeStatus.HELD)


class Answers:
    """What was answered so far, and whether it was right."""

    def __init__(self, model: Model, clock: ManualClock) -> None:
        self.claims: list[Held] = []
        self.pushed_at: dict[tuple[str, Key], datetime] = {}
        self._model = model
        self._clock = clock

    def later(self, seconds: float) -> datetime:
        """The time in so many seconds."""
        return self._clock() + timedelta(seconds=seconds)

    def earlier(self, seconds: float) -> datetime:
        """The time so many seconds ago."""
        return self._clock() - timedelta(seconds=seconds)

    def holds(self, held: Held) -> bool:
        """Whether a claim counts."""
        run = self._model.executions[held.execution_id].runs.get(held.key)
        return run is not None and (run.status, run.fence, run.holder) == (
            NodeStatus.RUNNING,
            held.fence,
            held.worker_id,
        )

    # ---- jobs ----

    def take(self, jobs: Sequence[NodeJob], *, held_too: bool = False) -> None:
        """Keep jobs; each must be the next push of a run that is queued, or, if said so, held since."""
        for job in jobs:
            key = (job.node_id, job.item)
            execution = self._model.executions[job.execution_id]
            run = execution.runs.get(key)
            assert run is not None, f"a job is answered for {key}, which is not ready"
            allowed = _READY if held_too else (NodeStatus.QUEUED,)
            assert run.status in allowed, f"a job is answered for {key}, which is {run.status}"
            assert job.queue == execution.queues[key[0]], f"the job of {key} goes to {job.queue}"
            assert job.push > execution.pushes.get(key, 0), f"push {job.push} of {key} was made before"
            assert job.pushed_at == self._clock(), f"{key} was pushed at {job.pushed_at}"
            execution.pushes[key], self.pushed_at[job.execution_id, key] = job.push, job.pushed_at
            run.unpushed = False

    def owed(self) -> Iterator[str]:
        """Yield which runs were queued by the last step without a job to push."""
        for execution in self._model.executions.values():
            for key, run in execution.runs.items():
                if run.status is NodeStatus.QUEUED and run.unpushed:
                    yield f"{execution.workflow.id}: {key} was queued, and no job was answered"

    def look(self, rows: Mapping[str, Mapping[Key, Any]]) -> None:
        """Note when the store means to look at each queued run."""
        for execution in self._model.executions.values():
            for key, run in execution.runs.items():
                if run.status is NodeStatus.QUEUED:
                    run.due = rows[execution.id][key].due_at

    # ---- claims ----

    def claimed(self, keys: Sequence[NodeKey], worker_id: str, token: str | None, answers: Sequence[Any]) -> None:
        """Check the answers to a claim, and apply it."""
        assert len(answers) == len(keys)
        live = self._model.live(worker_id, self._clock())
        for position, (key, answer) in enumerate(zip(keys, answers, strict=True)):
            execution, at = self._model.executions.get(key.execution_id), (key.node_id, key.item)
            run = execution and execution.runs.get(at)
            if not live:
                assert answer is Refusal.RETIRED, f"a worker without a lease is answered {answer} for {at}"
            elif execution is None:
                assert answer is Refusal.GONE, f"the execution of {at} was purged: {answer}"
            elif run is None or run.status.ended:
                here = run is None and at[1] == 0 and execution.counts(at[0])[0] < len(execution.inputs[at[0]])
                assert answer is (Refusal.NOT_READY if here else Refusal.GONE), (
                    f"{at} has ended or is not there: {answer}"
                )
            elif run.status is NodeStatus.RUNNING:
                again = (
                    token is not None and (run.token, run.holder) == (token, worker_id) and key not in keys[:position]
                )
                if again:
                    assert isinstance(answer, Claim), f"{at} was claimed with this token: {answer}"
                    assert answer.node.fence == run.fence
                    self._fits(execution, at, answer.node)
                else:
                    assert answer is Refusal.TAKEN, f"{at} is running: {answer}"
            elif run.status is not NodeStatus.QUEUED:
                assert answer is Refusal.NOT_READY, f"{at} is {run.status}: {answer}"
            else:
                assert isinstance(answer, Claim), f"{at} is queued: {answer}"
                assert answer.header.execution_id == execution.id
                self._give(execution, at, worker_id, answer.node, token)

    def _give(self, execution: Execution, key: Key, worker_id: str, node: NodeClaim, token: str | None = None) -> None:
        self._fits(execution, key, node)
        self._model.give(execution, key, worker_id, node.fence, token)
        self.claims.append(Held(execution.id, key, node.fence, worker_id))

    def _fits(self, execution: Execution, key: Key, node: NodeClaim) -> None:
        run = execution.runs[key]
        told = (node.attempt, node.recovery_attempts, node.queue, (node.woken, node.wait_key))
        assert told == (run.attempt, run.recovery_attempts, execution.queues[key[0]], run.wait or (None, None)), (
            f"{key}: {node}"
        )
        if key[1]:
            assert (node.data, dict(node.results)) == (execution.items[key], {}), f"{key}: {node}"
        else:
            assert dict(node.results) == execution.results(key[0]), f"{key}: {node}"

    # ---- records ----

    def recorded(self, records: Sequence[RecordRequest], answers: Sequence[RecordResult]) -> None:
        """Check the answers to records, and apply them."""
        model, now = self._model, self._clock()
        assert len(answers) == len(records)
        counted: dict[str, list[tuple[RecordRequest, RecordResult]]] = defaultdict(list)
        before = {one.id: one.status for one in model.executions.values()}
        for record, answer in sorted(zip(records, answers, strict=True), key=lambda one: one[0].key):
            should = model.accepts(record)
            assert should is None or answer.recorded is should, f"{record} is answered {answer}"
            if not model.counts(record):
                continue
            unknown = record.child is not None and record.child.workflow_id == "unknown"
            running = model.executions[record.execution_id].status is ExecutionStatus.RUNNING
            assert (answer.refused is not None) is (unknown and running), f"{record} is answered {answer}"
            if answer.refused is None:
                model.record(record, now)
                counted[record.execution_id].append((record, answer))
        for execution_id, some in counted.items():
            failures = sum(one.execution_id == execution_id and one.outcome is Outcome.FAILED for one in records)
            alone = len(some) == 1 and failures == (some[0][0].outcome is Outcome.FAILED)
            self._followed(model.executions[execution_id], some, before[execution_id], alone=alone)

    def _followed(
        self,
        execution: Execution,
        some: Sequence[tuple[RecordRequest, RecordResult]],
        before: ExecutionStatus,
        *,
        alone: bool,
    ) -> None:
        """Check what follows from the records of one execution; one that came beside others is not `alone`."""
        execution.settle(self._clock(), self._model.epoch)
        ended = [answer.ended for _, answer in some if answer.ended is not None]
        now_ended = [execution.status] if execution.status.ended and not before.ended else []
        assert ended == now_ended, f"it was {before}, is {execution.status}, and is answered as ended: {ended}"
        ready = {key for key, run in execution.runs.items() if run.status in _READY and run.unpushed}
        for record, answer in some:
            wanted = [] if record.outcome in (Outcome.RETRY, Outcome.RELEASED) else _wanted(execution, record, ready)
            may = self._model.live(record.worker_id, self._clock())
            most = 1 if record.item or record.fan_out is not None else record.most_following
            given = [(node.node_id, node.item) for node in answer.following]
            if alone:
                must = wanted[:most] if may and execution.status is ExecutionStatus.RUNNING else []
                assert given == must, f"{wanted} is ready, {record} is answered {answer}"
            assert may or not given, f"{record.worker_id} has no lease"
            assert len(given) <= most, f"{record} is answered {answer}"
            for key, node in zip(given, answer.following, strict=True):
                assert key in wanted, f"{key} is none of {wanted}"
                self._give(execution, key, record.worker_id, node)
                ready.discard(key)
        for _, answer in some:
            self.take(answer.jobs, held_too=not alone)

    def same_again(self, record: RecordRequest, first: RecordResult, again: RecordResult) -> None:
        """Check the answer to a record that was sent twice in a row."""
        if first.refused is not None:
            assert again.refused is not None
            return
        assert again.recorded is first.recorded, f"{record} is answered {again}, after {first}"
        if record.child is None:  # of its entry nodes' jobs those that are left out are lost jobs to the sweep
            assert sorted(again.jobs, key=_of_job) == sorted(first.jobs, key=_of_job), f"{first}, and then {again}"
        assert set(again.jobs) <= set(first.jobs), f"{first}, and then {again}"
        assert again.ended == first.ended, f"{first}, and then {again}"
        assert sorted(again.following, key=_of_node) == sorted(first.following, key=_of_node), (
            f"{first}, and then {again}"
        )

    # ---- sweeps ----

    def swept(self, found: Sequence[Candidate], swept: SweepResult, limit: int, store: Any) -> None:
        """Check what a sweep answers, and apply what it moved: all that was found, or less at its limit."""
        jobs = {(job.execution_id, (job.node_id, job.item)) for job in swept.jobs}
        moved = [one for one in found if not swept.more or _was_moved(one, jobs, store)]
        deadlines = [one.execution.id for one in moved if one.cause == "deadline"]
        told = Counter({cause: count for cause, count in swept.moved.items() if count})
        assert sum(told.values()) <= limit
        before = [one for one in moved if one.cause != "child" or self._waits(one.execution)]
        if not deadlines and not swept.more:
            assert told == Counter(one.cause for one in before), f"{told} is told, {before} was found"
        assert sorted(swept.ended) == sorted(deadlines)
        for one in moved:
            self._model.move(one, self._clock())
        for (
            execution_id
        ) in deadlines:  # whether a child's end reached its parent in the same pass is the store's choice
            execution = self._model.executions[execution_id]
            if execution.word_due is not None and not _has_word(execution, store):
                self._model.wake(execution)
        self.take(swept.jobs, held_too=bool(deadlines))
        if not swept.more:
            due = store.next_due()
            words = any(one.word_due is not None for one in self._model.executions.values())
            assert due is None or due > self._clock() or words, f"after a sweep something is due since {due}"

    def _waits(self, child: Execution) -> bool:
        parent = self._model.executions[child.parent[0]] if child.parent else None
        run = parent.runs.get(child.parent[1]) if parent and child.parent else None
        return (
            run is not None
            and run.status is NodeStatus.WAITING
            and run.fence == child.parent_fence
            and bool(run.wait and run.wait[1] == child.id)
        )


def _wanted(execution: Execution, record: RecordRequest, ready: Collection[Key]) -> list[Key]:
    """Which of the runs that became ready a worker may go on with, in its order of preference."""
    own = (record.node_id, record.item)
    if record.item or record.fan_out is not None:
        mine = sorted(key for key in ready if key[0] == record.node_id and key != own)
        return mine if record.node_id in record.successors else []
    queue = execution.queues[record.node_id]
    return [(name, 0) for name in record.successors if (name, 0) in ready and execution.queues[name] == queue]


def _of_job(job: NodeJob) -> tuple[str, str, int]:
    return job.execution_id, job.node_id, job.item


def _of_node(node: NodeClaim) -> tuple[str, int]:
    return node.node_id, node.item


def _has_word(execution: Execution, store: Any) -> bool:
    from model.world import open_rows

    return ("$parent", 0) in open_rows(store).get(execution.id, {})


def _was_moved(one: Candidate, jobs: Collection[tuple[str, Key]], store: Any) -> bool:
    """Whether a sweep that came to its limit moved this row, by what the store holds now."""
    execution, run = one.execution, _run_of(one)
    if run is None:
        if one.cause == "child":
            return not _has_word(execution, store)
        seen = store.get_execution(execution.id)
        return bool(seen.status == ("running" if one.cause == "start" else "failed"))
    if run.status is NodeStatus.QUEUED:
        return (execution.id, one.key) in jobs
    (seen,) = [row for row in store.get_node_results(execution.id, [one.key[0]]) if row.item == one.key[1]]  # type: ignore[index]
    return bool(seen.status is not run.status)


def _run_of(one: Candidate) -> Run | None:
    return None if one.key is None else one.execution.runs[one.key]
