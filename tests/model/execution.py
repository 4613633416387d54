"""The model: what the store port promises of executions and node runs, computed anew from the graph at every step.

Nothing is counted up or down here. Which inputs of a node have arrived, what is ready, what is skipped and whether an
execution has completed is read off the ends of its parents each time it is asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from spanloom.engine.store.requests import Outcome, RecordRequest
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.engine.workflow.definitions import Workflow

Key = tuple[str, int]  # node and item
OPEN = (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED)
ENDS = {
    Outcome.COMPLETED: NodeStatus.COMPLETED,
    Outcome.FAILED: NodeStatus.FAILED,
    Outcome.SKIPPED: NodeStatus.SKIPPED,
}
_FOLLOWED = {NodeStatus.COMPLETED: ("success", "always"), NodeStatus.FAILED: ("failure", "always")}


@dataclass
class Run:
    """One node run from when it was ready. `wait` is what it waits for, or what woke it."""

    status: NodeStatus
    epoch: int = 0  # of its last push
    fence: int = 0  # of its last claim in this round
    attempt: int = 1
    recovery_attempts: int = 0
    holder: str | None = None  # whose claim it is, or was when it ended
    wait: tuple[WaitKind, str | None] | None = None
    due: datetime | None = None  # of one that is queued: as the store chose it
    data: str | None = None
    error: str | None = None
    taken: tuple[str, ...] | None = None
    arrived: bool = False
    ended_at: datetime | None = None
    token: str | None = None  # of the call that claimed it
    unpushed: bool = False  # queued, and its job is still to be answered
    fan_out: tuple[int, int, int, str | None] | None = (
        None  # of one that was mapped: items, max_concurrency, tolerated_failures, key
    )

    def close(self, status: NodeStatus, now: datetime) -> None:
        """End it."""
        self.status, self.ended_at, self.due = status, now, None

    def wait_for(self, kind: WaitKind, key: str | None, due: datetime | None) -> None:
        """Make it wait; nobody holds it then."""
        self.status, self.wait, self.due, self.holder = NodeStatus.WAITING, (kind, key), due, None


@dataclass
class Execution:
    """One execution, by what has been done to it."""

    id: str
    workflow: Workflow
    deadline_seconds: float | None = None
    starts_at: datetime | None = None  # of one that has not started
    parent: tuple[str, Key] | None = None
    parent_fence: int = 0
    word_due: datetime | None = None  # since when its end is to be told to its parent
    status: ExecutionStatus = ExecutionStatus.PENDING
    revision: int = 0
    error: tuple[str | None, str] | None = None  # node and type
    ended_at: datetime | None = None
    deadline: datetime | None = None
    runs: dict[Key, Run] = field(default_factory=dict)
    fences: dict[Key, int] = field(default_factory=dict)  # the highest ever given
    pushes: dict[Key, int] = field(default_factory=dict)  # the last, since a reset
    items: dict[Key, str] = field(default_factory=dict)  # the data of mapped items
    history: list[str] = field(default_factory=lambda: ["created"])

    # ---- what the graph says ----

    @cached_property
    def inputs(self) -> dict[str, dict[str, str]]:
        """Per node its parents, each with what its edge is taken on. Parents stand before their successors."""
        return {node.id: {one.node: one.on for one in node.inputs} for node in self.workflow.nodes}

    @cached_property
    def sinks(self) -> list[str]:
        """The nodes that lead nowhere."""
        return [node for node in self.inputs if not self.successors(node)]

    @cached_property
    def queues(self) -> dict[str, str]:
        """Per node the queue that its jobs go to."""
        return {node.id: node.queue for node in self.workflow.nodes}

    def successors(self, node: str) -> list[str]:
        """The nodes that have this one among their inputs."""
        return [target for target, parents in self.inputs.items() if node in parents]

    def downstream(self, node: str) -> set[str]:
        """All that can be reached from it."""
        return {two for one in self.successors(node) for two in {one} | self.downstream(one)}

    def arrived(self, node: str) -> bool:
        """Whether its end has arrived at its successors."""
        run = self.runs.get((node, 0))
        return run is not None and run.arrived

    def takes(self, node: str, target: str) -> bool:
        """Whether a node that ended took this edge."""
        run = self.runs[node, 0]
        if run.status is NodeStatus.SKIPPED:
            return False
        if run.taken is not None:
            return target in run.taken
        return self.inputs[target][node] in _FOLLOWED[run.status]

    def counts(self, node: str) -> tuple[int, int]:
        """How many inputs of a node are open, and how many edges to it were taken."""
        parents = self.inputs[node]
        here = [parent for parent in parents if self.arrived(parent)]
        return len(parents) - len(here), sum(self.takes(parent, node) for parent in here)

    def results(self, node: str) -> dict[str, str]:
        """The data of those parents whose edge to the node was taken."""
        return {
            parent: self.runs[parent, 0].data or "null"
            for parent in self.inputs[node]
            if self.arrived(parent) and self.takes(parent, node)
        }

    @property
    def output(self) -> Any:
        """What the sinks of a completed execution left."""
        if self.status is not ExecutionStatus.COMPLETED:
            return None
        left: dict[str, Any] = {}
        for node in self.sinks:
            run = self.runs[node, 0]
            if run.status is NodeStatus.COMPLETED or (run.status is NodeStatus.FAILED and run.data is not None):
                left[node] = None if run.data is None else json.loads(run.data)
        return left if len(self.sinks) > 1 else next(iter(left.values()), None)

    # ---- what moves it ----

    def begin(self, now: datetime, epoch: int) -> None:
        """Start it: its entry nodes are ready."""
        self.status, self.starts_at = ExecutionStatus.RUNNING, None
        self.deadline = None if self.deadline_seconds is None else now + timedelta(seconds=self.deadline_seconds)
        self.history.append("started")
        self.settle(now, epoch)

    def settle(self, now: datetime, epoch: int) -> set[Key]:
        """Make ready or skip what has all of its inputs, complete what has all of its sinks; name what became ready."""
        ready: set[Key] = set()
        for node, parents in self.inputs.items():
            pending, taken = self.counts(node)
            if pending or (node, 0) in self.runs:
                continue
            if taken or not parents:
                self.runs[node, 0] = Run(NodeStatus.PENDING)
                self.queue((node, 0), epoch)
                ready.add((node, 0))
            else:
                self.runs[node, 0] = Run(NodeStatus.SKIPPED, arrived=True, ended_at=now)
        if self.status in (ExecutionStatus.RUNNING, ExecutionStatus.PAUSED) and all(map(self.arrived, self.sinks)):
            self._end(ExecutionStatus.COMPLETED, now)
        return ready

    def queue(self, key: Key, epoch: int) -> None:
        """Let a run be pushed, or hold it unless the execution is running."""
        run = self.runs[key]
        run.holder = run.due = None
        if run.wait is not None and run.wait[0] is WaitKind.RETRY:
            run.wait = None
        if self.status is ExecutionStatus.RUNNING:
            run.status, run.epoch, run.unpushed = NodeStatus.QUEUED, epoch, True
        else:
            run.status = NodeStatus.HELD

    def fail(self, node: str | None, kind: str, now: datetime) -> None:
        """Fail it: what is ready or waits for a retry is held, the rest may end."""
        self._end(ExecutionStatus.FAILED, now)
        self.error = (node, kind)
        for key, run in self.runs.items():
            retrying = run.status is NodeStatus.WAITING and run.wait is not None and run.wait[0] is WaitKind.RETRY
            if retrying or run.status is NodeStatus.QUEUED:
                self.queue(key, 0)

    def _end(self, status: ExecutionStatus, now: datetime) -> None:
        self.status, self.ended_at, self.deadline = status, now, None
        self.history.append(status.value)
        if self.parent is not None:
            self.word_due = now

    def holds(self, record: RecordRequest) -> bool:
        """Whether a record's claim is the one that counts."""
        run = self.runs.get((record.node_id, record.item))
        return run is not None and (run.fence, run.holder) == (record.fence, record.worker_id)

    def record(self, record: RecordRequest, now: datetime, epoch: int) -> None:
        """Do what the record of a running claim says that is no wait; what follows from it is for `settle`."""
        key = (record.node_id, record.item)
        run = self.runs[key]
        if record.outcome is Outcome.RELEASED:
            self.queue(key, epoch)
        elif record.outcome is Outcome.RETRY:
            run.attempt += record.spends_attempt
            run.wait_for(WaitKind.RETRY, None, now + timedelta(seconds=record.delay_seconds))
            if self.status is ExecutionStatus.FAILED:
                self.queue(key, epoch)
        else:
            run.close(ENDS[record.outcome], now)
            run.data, run.error, run.taken = record.data, record.error, record.taken
            if record.item:
                self._item_ended(record.node_id, epoch)
                return
            handled = record.handled or any(self.takes(record.node_id, one) for one in self.successors(record.node_id))
            run.arrived = run.status is not NodeStatus.FAILED or handled
            if not run.arrived and not self.status.ended:
                self.fail(record.node_id, json.loads(record.error or "{}").get("type", ""), now)

    # ---- mapped nodes ----

    def items_of(self, node: str) -> dict[int, Run]:
        """The runs of its items, open and ended."""
        return {number: run for (name, number), run in sorted(self.runs.items()) if name == node and number}

    def forget_items(self, node: str) -> None:
        """Drop all that is known of its items."""
        for known in (self.runs, self.items, self.pushes):
            for key in [key for key in known if key[0] == node and key[1]]:
                known.pop(key)

    def start_item(self, key: Key, epoch: int) -> None:
        """Let one item run."""
        self.runs[key] = Run(NodeStatus.PENDING)
        self.queue(key, epoch)

    def _item_ended(self, node: str, epoch: int) -> None:
        """Start the next item, unless too many have failed; wake the node's run when none is open any more."""
        run, items = self.runs[node, 0], self.items_of(node)
        assert run.fan_out is not None
        count, _, tolerated_failures, _ = run.fan_out
        fresh = [number for number in range(1, count + 1) if number not in items]
        if fresh and sum(one.status is NodeStatus.FAILED for one in items.values()) <= tolerated_failures:
            self.start_item((node, fresh[0]), epoch)
        elif all(one.status.ended for one in items.values()):
            self.queue((node, 0), epoch)

    # ---- control, of this execution alone ----

    def cancel(self, now: datetime) -> None:
        """End it and all that is open of it."""
        self.revision += 1
        self.starts_at = None
        self._end(ExecutionStatus.CANCELLED, now)
        for node in self.inputs.keys() - {key[0] for key in self.runs}:
            if self.counts(node)[0] < len(self.inputs[node]):  # a join that some inputs had reached is open as well
                self.runs[node, 0] = Run(NodeStatus.PENDING)
        for run in self.runs.values():
            if not run.status.ended:
                run.close(NodeStatus.CANCELLED, now)

    def pause(self) -> None:
        """Hold what is queued."""
        self._set(ExecutionStatus.PAUSED, "paused")
        for key, run in self.runs.items():
            if run.status is NodeStatus.QUEUED:
                self.queue(key, 0)

    def resume(self, epoch: int) -> None:
        """Queue what is held."""
        self._set(ExecutionStatus.RUNNING, "resumed")
        self.queue_held(epoch)

    def queue_held(self, epoch: int) -> None:
        """Queue what is held, now that it may start."""
        for key, run in self.runs.items():
            if run.status is NodeStatus.HELD:
                self.queue(key, epoch)

    def undone_by_retry(self) -> set[str]:
        """All that came of failures that had been handled."""
        failed = [key[0] for key, run in self.runs.items() if run.status is NodeStatus.FAILED and not key[1]]
        return {two for one in failed if self.arrived(one) for two in self.downstream(one)}

    def reopen(self, now: datetime) -> set[str]:
        """Set it running again after its failure, without what came of failures that had been handled."""
        undone = self.undone_by_retry()
        self._set(ExecutionStatus.RUNNING, "retried")
        self.error = self.ended_at = self.word_due = None
        self.deadline = None if self.deadline_seconds is None else now + timedelta(seconds=self.deadline_seconds)
        for known in (self.runs, self.pushes, self.items):
            for key in [key for key in known if key[0] in undone]:
                known.pop(key)
        return undone

    def _set(self, status: ExecutionStatus, event: str) -> None:
        self.status, self.revision = status, self.revision + 1
        self.history.append(event)
