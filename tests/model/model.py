"""The model of a whole store: workers and their leases, families of executions, and what a sweep may move on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from model.execution import OPEN, Execution, Key, Run
from model.wait_kind import Wait
from spanloom.engine.store.requests import Outcome, RecordRequest
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.engine.workflow.definitions import Workflow

MOST_EXECUTIONS = 8


@dataclass
class Worker:
    """One lease. It is released by a sweep that finds it lapsed, and cannot be renewed then."""

    until: datetime
    released: bool = False


class Candidate(NamedTuple):
    """A row that a sweep may move on: a node run, or the execution itself if there is no key."""

    execution: Execution
    key: Key | None
    cause: str


class Sent(NamedTuple):
    """What names a record that was accepted: whoever sends it again must be answered the same."""

    execution_id: str
    key: Key
    fence: int
    worker_id: str
    outcome: Outcome


@dataclass
class Model:
    """What the store must hold. Times are given with each step; nothing happens by itself."""

    waits: Mapping[WaitKind, Wait]
    epoch: int = 0
    executions: dict[str, Execution] = field(default_factory=dict)
    workflows: dict[str, Workflow] = field(default_factory=dict)  # they outlive their executions
    workers: dict[str, Worker] = field(default_factory=dict)
    sent: set[Sent] = field(default_factory=set)
    doubtful: set[Sent] = field(default_factory=set)  # their results were taken back: either answer will do

    def start(
        self, execution_id: str, workflow: Workflow, now: datetime, delay: float | None, deadline: float | None
    ) -> None:
        """Start an execution, at once or after its delay."""
        self.workflows[workflow.id] = workflow
        execution = self.executions[execution_id] = Execution(execution_id, workflow, deadline)
        if delay:
            execution.starts_at = now + timedelta(seconds=delay)
        else:
            execution.begin(now, self.epoch)

    @property
    def full(self) -> bool:
        """Whether there are enough executions."""
        return len(self.executions) >= MOST_EXECUTIONS

    # ---- workers and claims ----

    def live(self, worker_id: str, now: datetime) -> bool:
        """Whether a worker may claim."""
        worker = self.workers.get(worker_id)
        return worker is not None and not worker.released and worker.until > now

    def held_by(self, worker_id: str) -> Iterator[tuple[Execution, Key]]:
        """The claims that count of one worker."""
        for execution in self.executions.values():
            for key, run in execution.runs.items():
                if run.status is NodeStatus.RUNNING and run.holder == worker_id:
                    yield execution, key

    def retire(self, worker_id: str) -> None:
        """Forget a worker; what it held is ready again."""
        self.workers.pop(worker_id, None)
        for execution, key in list(self.held_by(worker_id)):
            execution.queue(key, self.epoch)

    def give(self, execution: Execution, key: Key, worker_id: str, fence: int, token: str | None = None) -> None:
        """Let a worker hold a run under this fence."""
        run = execution.runs[key]
        assert fence > execution.fences.get(key, 0), f"fence {fence} of {key} was given before"
        if run.fence:
            assert fence == run.fence + 1, f"fence {fence} of {key} does not follow {run.fence}"
        run.status, run.holder, run.fence, run.due = NodeStatus.RUNNING, worker_id, fence, None
        run.token, run.unpushed = token, False
        execution.fences[key] = fence

    # ---- records ----

    def accepts(self, record: RecordRequest) -> bool | None:
        """Whether a record must be answered as recorded; None if the port leaves it open."""
        execution = self.executions.get(record.execution_id)
        if execution is None:
            return False
        run = execution.runs.get((record.node_id, record.item))
        held = execution.holds(record)
        if run is not None and held and run.status in (NodeStatus.RUNNING, NodeStatus.CANCELLED):
            return True
        sent = _sent(record)
        return None if sent in self.doubtful else sent in self.sent

    def counts(self, record: RecordRequest) -> bool:
        """Whether a record is of a claim that counts, so that something follows from it."""
        execution = self.executions.get(record.execution_id)
        run = execution and execution.runs.get((record.node_id, record.item))
        return bool(execution and run and execution.holds(record) and run.status is NodeStatus.RUNNING)

    def record(self, record: RecordRequest, now: datetime) -> None:
        """Apply a record that counts."""
        execution = self.executions[record.execution_id]
        self.sent.add(_sent(record))
        asked = record.child
        if record.fan_out is not None and execution.status is ExecutionStatus.RUNNING:
            self._doubt(execution, {key for key in execution.items if key[0] == record.node_id})
        run = execution.runs[record.node_id, record.item]
        if record.outcome is Outcome.WAITING:
            self.waits[record.wait_kind or WaitKind.TIMER].begin(execution, run, record, now, self.epoch)
        else:
            execution.record(record, now, self.epoch)
        if asked is not None and run.status is NodeStatus.WAITING:
            child = Execution(asked.execution_id, self.workflows[asked.workflow_id], asked.deadline_seconds)
            child.parent, child.parent_fence = (execution.id, (record.node_id, record.item)), record.fence
            if execution.deadline is not None:
                left = max((execution.deadline - now).total_seconds(), 0.001)
                child.deadline_seconds = min(left, asked.deadline_seconds or left)
            self.executions[child.id] = child
            child.begin(now, self.epoch)

    def _doubt(self, execution: Execution, keys: set[Key]) -> None:
        self.doubtful |= {one for one in self.sent if one.execution_id == execution.id and one.key in keys}

    # ---- families ----

    def children(self, execution: Execution) -> list[Execution]:
        """Its children, oldest first."""
        return [one for one in self.executions.values() if one.parent is not None and one.parent[0] == execution.id]

    def family(self, execution: Execution) -> list[Execution]:
        """An execution and all its descendants."""
        return [execution, *(two for one in self.children(execution) for two in self.family(one))]

    def wake(self, child: Execution) -> bool:
        """Tell the parent's run that a child has ended, if it waits for it still; whether it did."""
        if child.word_due is None or child.parent is None or not child.status.ended:
            return False
        child.word_due = None
        parent, key = self.executions[child.parent[0]], child.parent[1]
        run = parent.runs.get(key)
        waits = run is not None and run.status is NodeStatus.WAITING and run.wait == (WaitKind.CHILD, child.id)
        if run is None or not waits or run.fence != child.parent_fence:
            return False
        parent.queue(key, self.epoch)
        return True

    def cancel(self, execution: Execution, now: datetime) -> list[str]:
        """Cancel what is open of a family; only the parent of the first is told."""
        changed = [one for one in self.family(execution) if one.status in OPEN]
        for one in changed:
            one.cancel(now)
            if one is not execution:
                one.word_due = None
        return [one.id for one in changed]

    def pause(self, execution: Execution) -> list[str]:
        """Pause what runs of a family."""
        changed = [one for one in self.family(execution) if one.status is ExecutionStatus.RUNNING]
        for one in changed:
            one.pause()
        return [one.id for one in changed]

    def resume(self, execution: Execution) -> list[str]:
        """Let what is paused of a family go on."""
        changed = [one for one in self.family(execution) if one.status is ExecutionStatus.PAUSED]
        for one in changed:
            one.resume(self.epoch)
        return [one.id for one in changed]

    def retry(self, execution: Execution, now: datetime) -> list[str]:
        """Run a failed execution on, and the failed children that its failed runs had waited for."""
        undone = execution.reopen(now)
        changed = [execution.id]
        self._forget(execution, undone)
        for child in self.children(execution):
            if child.parent is not None and child.parent[1][0] in undone:
                cancelled = self.cancel(child, now)
                changed += cancelled
                child.parent_fence = 0
                if cancelled:
                    child.word_due = None
        for run in execution.runs.values():
            child = self.executions.get(run.wait[1] or "") if run.wait and run.wait[0] is WaitKind.CHILD else None
            if run.status is not NodeStatus.HELD or child is None or child.parent_fence != run.fence:
                continue
            if child.status is ExecutionStatus.FAILED:
                run.status = NodeStatus.WAITING
                changed += self.retry(child, now)
        execution.queue_held(self.epoch)
        for key in [key for key, run in execution.runs.items() if run.status is NodeStatus.FAILED and not key[1]]:
            changed += self._start_anew(execution, key, now)
        execution.settle(now, self.epoch)
        return changed

    def _forget(self, execution: Execution, nodes: set[str]) -> None:
        """Make the records of these nodes' claims stale, whatever they were."""
        gone = {one for one in self.sent if one.execution_id == execution.id and one.key[0] in nodes}
        self.sent -= gone
        self.doubtful -= gone

    def _start_anew(self, execution: Execution, key: Key, now: datetime) -> list[str]:
        old = execution.runs[key]
        self._doubt(execution, {key})
        run = execution.runs[key] = Run(NodeStatus.FAILED, fan_out=old.fan_out)
        if old.fan_out is not None:
            self._map_again(execution, key[0], old)
            return []
        children = [one for one in self.children(execution) if one.parent == (execution.id, key) and one.parent_fence]
        child = children[-1] if children else None
        if child is None or child.status is ExecutionStatus.CANCELLED:
            execution.queue(key, self.epoch)
            return []
        run.fence = child.parent_fence = execution.fences[key] = old.fence + 1
        run.wait = (WaitKind.CHILD, child.id)
        if child.status is ExecutionStatus.COMPLETED:
            execution.queue(key, self.epoch)
            return []
        run.status = NodeStatus.WAITING
        return self.retry(child, now) if child.status is ExecutionStatus.FAILED else []

    def _map_again(self, execution: Execution, node: str, old: Run) -> None:
        """Wait for the items again: the failed ones first of all, then those that never were."""
        run, items = execution.runs[node, 0], execution.items_of(node)
        assert old.fan_out is not None
        count, max_concurrency, _, key = old.fan_out
        failed = {(node, number) for number, one in items.items() if one.status is NodeStatus.FAILED}
        self._doubt(execution, failed)
        for one in failed:
            del execution.runs[one]
        run.wait = (WaitKind.ITEMS, key)
        fresh = [number for number in range(1, count + 1) if (node, number) not in execution.runs]
        for number in fresh[:max_concurrency]:
            execution.start_item((node, number), self.epoch)
        if fresh:
            run.status = NodeStatus.WAITING
        else:
            execution.queue((node, 0), self.epoch)

    def forget(self, execution_ids: set[str]) -> None:
        """Know nothing any more of the records of executions that were purged: they are refused."""
        self.sent = {one for one in self.sent if one.execution_id not in execution_ids}
        self.doubtful = {one for one in self.doubtful if one.execution_id not in execution_ids}

    # ---- the sweep ----

    def release(self, now: datetime) -> None:
        """Mark the workers whose lease has lapsed."""
        for worker in self.workers.values():
            worker.released = worker.released or worker.until <= now

    def candidates(
        self, heads: Mapping[str, datetime | None], pushed_at: Mapping[tuple[str, Key], datetime], now: datetime
    ) -> list[Candidate]:
        """All that a sweep finds lost or due."""
        found: list[Candidate] = []
        for execution in self.executions.values():
            if execution.starts_at is not None and execution.starts_at <= now:
                found.append(Candidate(execution, None, "start"))
            if execution.word_due is not None and execution.word_due <= now:
                found.append(Candidate(execution, None, "child"))
            for key, run in execution.runs.items():
                cause = self._cause(run, now)
                if cause is None and run.status is NodeStatus.QUEUED and run.due is not None and run.due <= now:
                    cause = "lost_job" if _suspect(execution, key, heads, pushed_at, now) else None
                if cause is not None:
                    found.append(Candidate(execution, key, cause))
            if execution.deadline is not None and execution.deadline <= now:
                found.append(Candidate(execution, None, "deadline"))
        return found

    def _cause(self, run: Run, now: datetime) -> str | None:
        if run.status is NodeStatus.RUNNING and self._released(run.holder):
            return "lost_worker"
        if run.status is NodeStatus.WAITING and run.due is not None and run.due <= now:
            return run.wait[0].value if run.wait else None
        if run.status is NodeStatus.QUEUED and run.epoch < self.epoch:
            return "lost_redis"
        return None

    def _released(self, worker_id: str | None) -> bool:
        worker = self.workers.get(worker_id or "")
        return worker is not None and worker.released

    def move(self, one: Candidate, now: datetime) -> None:
        """Do what a sweep does to a row that it found."""
        execution = one.execution
        if one.cause == "start":
            execution.begin(now, self.epoch)
        elif one.cause == "child":
            self.wake(execution)
        elif one.cause == "deadline":
            execution.fail(None, "DeadlineExceeded", now)
        elif one.key is not None:
            execution.runs[one.key].recovery_attempts += one.cause == "lost_worker"
            execution.queue(one.key, self.epoch)


def _sent(record: RecordRequest) -> Sent:
    return Sent(record.execution_id, (record.node_id, record.item), record.fence, record.worker_id, record.outcome)


def _suspect(
    execution: Execution,
    key: Key,
    heads: Mapping[str, datetime | None],
    pushed_at: Mapping[tuple[str, Key], datetime],
    now: datetime,
    slack: timedelta = timedelta(seconds=2),
) -> bool:
    """Whether the list of a queued run is past it, or empty, for long enough."""
    name = execution.queues[key[0]]
    if name not in heads:
        return False
    head, pushed = heads[name], pushed_at[execution.id, key]
    return now - pushed >= slack if head is None else head - pushed > slack
