"""An engine and a worker played by hand at the store port: register, start, claim, record, drain."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from spanloom.engine.definitions import Workflow
from spanloom.engine.errors import SpanloomError
from spanloom.engine.graph import edges
from spanloom.engine.records import (
    END,
    Claim,
    ClaimAnswer,
    NodeClaim,
    NodeJob,
    NodeKey,
    Outcome,
    Record,
    Recorded,
    Started,
    StartRequest,
)
from spanloom.engine.store import ExecutionStore
from spanloom.testing.clock import ManualClock

__all__ = ["StoreDriver", "Work", "request"]

#: What stands in for a handler: what it returns is the node's data, what it raises fails the node for good.
Work = Callable[[NodeClaim], Any]


def request(workflow: Workflow | str, data: Any = None, **fields: Any) -> StartRequest:
    """Return a request to start `workflow` (or the workflow of that id) under a new id; `fields` are StartRequest's."""
    fields.setdefault("execution_id", str(uuid.uuid4()))
    fields.setdefault("input", json.dumps(data))
    return StartRequest(workflow_id=workflow if isinstance(workflow, str) else workflow.id, **fields)


class StoreDriver:
    """Play one worker, and the engine that starts executions, against a store.

    Making one registers a worker. With a clock every call tells the store the clock's time, without one the store's own
    clock counts. Jobs that the store asks to be pushed gather in `jobs`, which several drivers may share.
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
        """Return the clock's time; None without a clock."""
        return self._clock() if self._clock is not None else None

    def start(self, workflow: Workflow | str, data: Any = None, **fields: Any) -> str:
        """Register `workflow` if it is a definition, start it, return the id. Raises the error the store answers."""
        if isinstance(workflow, Workflow):
            self.store.save_workflow(workflow, now=self.now())
        answer = self.store.create_execution(request(workflow, data, **fields), now=self.now())
        if isinstance(answer, SpanloomError):
            raise answer
        assert isinstance(answer, Started)
        self.jobs.extend(answer.jobs)
        return answer.execution_id

    def try_claim(self, execution_id: str, node_id: str, item: int = 0) -> ClaimAnswer:
        """Ask for a claim and return the answer."""
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
    ) -> Record:
        """Return the record of an outcome, with `data` as JSON; a failure has an error unless `fields` have one."""
        fields.setdefault("worker_id", self.worker_id)
        if outcome is Outcome.COMPLETED or data is not None:
            fields.setdefault("data", json.dumps(data))
        if outcome is Outcome.FAILED:
            fields.setdefault("error", json.dumps({"type": "Boom", "message": f"{node.node_id} failed"}))
        return Record(execution_id, node.node_id, node.item, node.fence, outcome=outcome, **fields)

    def record(
        self,
        execution_id: str,
        node: NodeClaim,
        outcome: Outcome = Outcome.COMPLETED,
        *,
        data: Any = None,
        **fields: Any,
    ) -> Recorded:
        """Record an outcome of a claim and keep the jobs that follow."""
        return self.send(self.outcome(execution_id, node, outcome, data=data, **fields))

    def send(self, record: Record) -> Recorded:
        """Send one record and keep the jobs that follow."""
        answer = self.store.record([record], now=self.now())[0]
        self.jobs.extend(answer.jobs)
        return answer

    def run(
        self, execution_id: str, node_id: str, outcome: Outcome = Outcome.COMPLETED, *, data: Any = None, **fields: Any
    ) -> Recorded:
        """Claim a node run and record its outcome."""
        return self.record(execution_id, self.claim(execution_id, node_id), outcome, data=data, **fields)

    def drain(self, work: Work | None = None, *, work_first: bool = True) -> list[str]:
        """Run jobs until none is left, with `work` in place of handlers; return the ids of the nodes run, in order.

        A job whose claim is refused is dropped, as a worker does. With `work_first` a ready successor is run at once,
        else through `jobs`.
        """
        ran: list[str] = []
        while self.jobs:
            try:
                job = self.jobs.popleft()
            except IndexError:  # another driver took the last one
                break
            answer = self.try_claim(job.execution_id, job.node_id, job.item)
            if not isinstance(answer, Claim):
                continue
            node: NodeClaim | None = answer.node
            while node is not None:
                ran.append(node.node_id)
                successors = self._successors_of(answer, node) if work_first else ()
                recorded = self.send(self._worked(job.execution_id, node, work, successors))
                node = recorded.next
        return ran

    def _worked(self, execution_id: str, node: NodeClaim, work: Work | None, successors: Sequence[str]) -> Record:
        try:
            data = work(node) if work is not None else node.node_id
        except Exception as error:  # whatever stands in for a handler may raise anything, as a handler may
            reason = json.dumps({"type": type(error).__name__, "message": str(error)})
            return self.outcome(execution_id, node, Outcome.FAILED, error=reason)
        return self.outcome(execution_id, node, data=data, successors=tuple(successors))

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
