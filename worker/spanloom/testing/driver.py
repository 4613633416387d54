"""An engine and a worker played by hand at the store port: register, start, claim, record, drain."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from spanloom.engine.errors import SpanloomError
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import (
    END,
    Claim,
    ClaimAnswer,
    ControlResult,
    FanOut,
    NodeClaim,
    NodeJob,
    NodeKey,
    Outcome,
    RecordRequest,
    RecordResult,
    StartRequest,
    StartResult,
    SweepResult,
)
from spanloom.engine.store.states import WaitKind
from spanloom.engine.workflow.definitions import Workflow
from spanloom.engine.workflow.validation import edges
from spanloom.testing.clock import ManualClock

__all__ = ["StoreDriver", "Work", "request"]

#: A function in place of a handler. Its result is the node's data; an exception fails the node for good. A FanOut makes
#: the node wait for those items, and a StartRequest for that child; then it is called again, woken.
Work = Callable[[NodeClaim], Any]

_PASSES = 100  # the number of sweeps with more to do after which the store is at fault


def request(workflow: Workflow | str, data: Any = None, **fields: Any) -> StartRequest:
    """Return a request to start `workflow` (or the workflow of that id) under a new id; `fields` are StartRequest's."""
    fields.setdefault("execution_id", str(uuid.uuid4()))
    fields.setdefault("input", json.dumps(data))
    return StartRequest(workflow_id=workflow if isinstance(workflow, str) else workflow.id, **fields)


class StoreDriver:
    """A worker, and the engine that starts executions, played by hand against a store.

    - Creating one registers a worker.
    - With a clock, every call passes its time to the store. Without one the store's own clock counts.
    - Jobs that the store returns are collected in `jobs`, which several drivers may share.

    >>> from spanloom.stores import InMemoryExecutionStore
    >>> from spanloom.testing.workflows import chain
    >>> driver = StoreDriver(InMemoryExecutionStore())
    >>> execution = driver.start(chain(3))
    >>> driver.drain()
    ['n1', 'n2', 'n3']
    >>> driver.store.get_execution(execution).status.value
    'completed'
    """

    def __init__(
        self,
        store: ExecutionStore,
        *,
        clock: ManualClock | None = None,
        jobs: deque[NodeJob] | None = None,
        lease_seconds: float = 60.0,
        name: str = "driver",
    ) -> None:
        self.store = store
        self.jobs: deque[NodeJob] = deque() if jobs is None else jobs
        self.worker_id = str(uuid.uuid4())
        self._clock = clock
        self._successors: dict[tuple[str, int], dict[str, tuple[str, ...]]] = {}
        store.register_worker(
            self.worker_id,
            name=name,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=["default"],
            lease_seconds=lease_seconds,
            now=self.now(),
        )

    def now(self) -> datetime | None:
        """Return the clock's time. None without a clock."""
        return self._clock() if self._clock is not None else None

    def start(self, workflow: Workflow | str, data: Any = None, **fields: Any) -> str:
        """Register `workflow` if it is a definition, start it, and return the id. Raises an error it gets."""
        if isinstance(workflow, Workflow):
            self.store.save_workflow(workflow, now=self.now())
        answer = self.store.create_execution(request(workflow, data, **fields), now=self.now())
        if isinstance(answer, SpanloomError):
            raise answer
        assert isinstance(answer, StartResult)
        self.jobs.extend(answer.jobs)
        return answer.execution_id

    def try_claim(self, execution_id: str, node_id: str, item: int = 0) -> ClaimAnswer:
        """Request a claim and return the answer."""
        return self.store.claim([NodeKey(execution_id, node_id, item)], worker_id=self.worker_id, now=self.now())[0]

    def claim(self, execution_id: str, node_id: str, item: int = 0) -> NodeClaim:
        """Claim a node run. Raises AssertionError if the store refuses."""
        answer = self.try_claim(execution_id, node_id, item)
        assert isinstance(answer, Claim), f"{node_id} was not claimed: {answer}"
        return answer.node

    def outcome(
        self,
        execution_id: str,
        node: NodeClaim,
        outcome: Outcome = Outcome.COMPLETED,
        *,
        data: Any = None,
        **fields: Any,
    ) -> RecordRequest:
        """Return the record of an outcome, with `data` as JSON; a failure has an error unless `fields` have one."""
        fields.setdefault("worker_id", self.worker_id)
        if outcome is Outcome.COMPLETED or data is not None:
            fields.setdefault("data", json.dumps(data))
        if outcome is Outcome.FAILED:
            fields.setdefault("error", json.dumps({"type": "Boom", "message": f"{node.node_id} failed"}))
        return RecordRequest(execution_id, node.node_id, node.item, node.fence, outcome=outcome, **fields)

    def record(
        self,
        execution_id: str,
        node: NodeClaim,
        outcome: Outcome = Outcome.COMPLETED,
        *,
        data: Any = None,
        **fields: Any,
    ) -> RecordResult:
        """Record an outcome of a claim and keep the jobs that follow."""
        return self.send(self.outcome(execution_id, node, outcome, data=data, **fields))

    def send(self, record: RecordRequest) -> RecordResult:
        """Send one record and keep the jobs that follow."""
        answer = self.store.record([record], now=self.now())[0]
        self.jobs.extend(answer.jobs)
        return answer

    def run(
        self,
        execution_id: str,
        node_id: str,
        outcome: Outcome = Outcome.COMPLETED,
        *,
        item: int = 0,
        data: Any = None,
        **fields: Any,
    ) -> RecordResult:
        """Claim a node run and record its outcome."""
        return self.record(execution_id, self.claim(execution_id, node_id, item), outcome, data=data, **fields)

    def wait(self, execution_id: str, node: NodeClaim, **fields: Any) -> RecordResult:
        """Record that a claimed run waits for a timer: `delay_seconds` or `due_at`, and a `wait_key` if it has one."""
        return self.record(execution_id, node, Outcome.WAITING, wait_kind=WaitKind.TIMER, **fields)

    def waiting_for_child(
        self, execution_id: str, node: NodeClaim, child: StartRequest, *, depth: int = 1, **fields: Any
    ) -> RecordRequest:
        """Return the record of a claimed run that waits for the execution of the request `child`."""
        child = replace(
            child,
            parent=NodeKey(execution_id, node.node_id, node.item),
            parent_fence=node.fence,
            depth=depth,
        )
        fields |= {"wait_kind": WaitKind.CHILD, "wait_key": child.execution_id, "child": child}
        return self.outcome(execution_id, node, Outcome.WAITING, **fields)

    def start_child(
        self,
        execution_id: str,
        node_id: str,
        workflow: Workflow | str,
        data: Any = None,
        *,
        item: int = 0,
        **fields: Any,
    ) -> str:
        """Claim a node run, make it wait for a child execution of `workflow`, and return the child's id.

        Registers `workflow` if it is a definition. `fields` are those of StartRequest. Raises AssertionError if the
        store refuses.
        """
        if isinstance(workflow, Workflow):
            self.store.save_workflow(workflow, now=self.now())
        depth = fields.pop("depth", 1)
        wanted = request(workflow, data, **fields)
        node = self.claim(execution_id, node_id, item)
        answer = self.send(self.waiting_for_child(execution_id, node, wanted, depth=depth))
        assert answer.recorded, f"{node_id} does not wait for a child: its claim is stale"
        assert answer.refused is None, f"{node_id} does not wait for a child: {answer.refused}"
        return wanted.execution_id

    def fan_out(
        self,
        execution_id: str,
        node_id: str,
        items: Sequence[Any],
        *,
        max_concurrency: int = 100,
        tolerated_failures: int = 0,
        **fields: Any,
    ) -> RecordResult:
        """Claim a node run and make it wait for an item for each of `items`, which are the items' data."""
        node = self.claim(execution_id, node_id)
        return self.send(
            self.fanning_out(
                execution_id,
                node,
                items,
                max_concurrency=max_concurrency,
                tolerated_failures=tolerated_failures,
                **fields,
            )
        )

    def fanning_out(
        self,
        execution_id: str,
        node: NodeClaim,
        items: Sequence[Any],
        *,
        max_concurrency: int = 100,
        tolerated_failures: int = 0,
        **fields: Any,
    ) -> RecordRequest:
        """Return the record of a claimed run that waits for its items."""
        wanted = FanOut(tuple(json.dumps(item) for item in items), max_concurrency, tolerated_failures)
        return self.outcome(execution_id, node, Outcome.WAITING, wait_kind=WaitKind.ITEMS, fan_out=wanted, **fields)

    def wake(self, *execution_ids: str) -> list[NodeJob]:
        """Wake the parents of these ended executions, as their worker does, and keep the jobs that follow."""
        jobs = self.store.wake_parents(execution_ids, now=self.now())
        self.jobs.extend(jobs)
        return jobs

    def cancel(self, execution_id: str, **options: Any) -> ControlResult:
        """Cancel an execution."""
        return self._controlled(self.store.cancel_execution(execution_id, now=self.now(), **options))

    def pause(self, execution_id: str, **options: Any) -> ControlResult:
        """Pause an execution."""
        return self._controlled(self.store.pause_execution(execution_id, now=self.now(), **options))

    def resume(self, execution_id: str, **options: Any) -> ControlResult:
        """Resume an execution and keep the jobs that follow."""
        return self._controlled(self.store.resume_execution(execution_id, now=self.now(), **options))

    def retry(self, execution_id: str, **options: Any) -> ControlResult:
        """Retry a failed execution and keep the jobs that follow."""
        return self._controlled(self.store.retry_execution(execution_id, now=self.now(), **options))

    def sweep(self, **options: Any) -> SweepResult:
        """Sweep once, without the heads of lists, and keep the jobs that follow."""
        given: dict[str, Any] = {"heads": {}, "epoch": 0, "now": self.now(), **options}
        swept = self.store.sweep(**given)
        self.jobs.extend(swept.jobs)
        return swept

    def sweep_all(self) -> list[SweepResult]:
        """Sweep until a pass moves no row, and return the passes before it."""
        passes: list[SweepResult] = []
        while any((swept := self.sweep()).moved.values()) or swept.more:
            passes.append(swept)
            assert len(passes) < _PASSES, f"the sweep comes to no end; its last pass moved {dict(swept.moved)}"
        return passes

    def drain(self, work: Work | None = None, *, work_first: bool = True) -> list[str]:
        """Run jobs until none is left, with `work` in place of handlers; return the ids of the nodes run, in order.

        As in a worker, a job whose claim is refused is dropped, and the parents of executions that end are woken. With
        `work_first` a ready successor, or item, is run at once, else through `jobs`.
        """
        ran: list[str] = []
        while self.jobs:
            try:
                job = self.jobs.popleft()
            except IndexError:  # another driver took the last job
                break
            answer = self.try_claim(job.execution_id, job.node_id, job.item)
            if not isinstance(answer, Claim):
                continue
            node: NodeClaim | None = answer.node
            while node is not None:
                ran.append(node.node_id)
                recorded = self.send(self._worked(answer, node, work, work_first=work_first))
                if recorded.ended is not None and answer.header.parent_execution_id is not None:
                    self.wake(job.execution_id)
                node = recorded.next
        return ran

    def _worked(self, claim: Claim, node: NodeClaim, work: Work | None, *, work_first: bool) -> RecordRequest:
        execution_id = claim.header.execution_id
        itself = (node.node_id,) if work_first else ()
        successors = itself if node.item else self._successors_of(claim, node) if work_first else ()
        try:
            data = work(node) if work is not None else node.node_id
        except Exception as error:  # any, as from a handler
            reason = json.dumps({"type": type(error).__name__, "message": str(error)})
            return self.outcome(execution_id, node, Outcome.FAILED, error=reason, successors=successors)
        if isinstance(data, StartRequest):
            return self.waiting_for_child(execution_id, node, data, depth=claim.header.depth + 1)
        if isinstance(data, FanOut):
            return self.outcome(
                execution_id, node, Outcome.WAITING, wait_kind=WaitKind.ITEMS, fan_out=data, successors=itself
            )
        return self.outcome(execution_id, node, data=data, successors=successors)

    def _controlled(self, answer: ControlResult) -> ControlResult:
        self.jobs.extend(answer.jobs)
        return answer

    def _successors_of(self, claim: Claim, node: NodeClaim) -> tuple[str, ...]:
        key = (claim.header.workflow_id, claim.header.version)
        if key not in self._successors:
            workflow = self.store.get_workflow(*key)
            assert workflow is not None
            found: dict[str, tuple[str, ...]] = {}
            for edge in edges(workflow):
                if edge.target != END:
                    found[edge.source] = (*found.get(edge.source, ()), edge.target)
            self._successors[key] = found
        return self._successors[key].get(node.node_id, ())
