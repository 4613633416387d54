"""Conformance: random families of executions, run, lost, paused and retried at random: all of them end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import pytest

from spanloom.engine.errors import InvalidTransition
from spanloom.engine.store.models import Execution, NodeRun
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, ExecutionHeader, NodeClaim, NodeKey, Outcome, RecordRequest
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.engine.workflow.definitions import Input, Node, Workflow
from spanloom.engine.workflow.validation import edges
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request

__all__ = ["RandomFamilies"]

BELOW = {"top": "middle", "middle": "bottom"}
ROUGH = 200  # steps, of which each may fail, pause or retry something; after them all goes well
STEPS = 4000
CHECKED_EVERY = 5

WAITING = NodeStatus.WAITING


class _Family:
    """One random family, with one worker that may hold any number of claims."""

    def __init__(self, store: ExecutionStore, clock: ManualClock, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = store
        self.clock = clock
        self.driver = StoreDriver(store, clock=clock, lease_seconds=1e7)
        self.workflows = {name: self._workflow(name) for name in ("top", "middle", "bottom")}
        for workflow in self.workflows.values():
            self.store.save_workflow(workflow)
        self.root = self.driver.start("top", deadline_seconds=self.random.choice([None, 300]))
        self.claims: list[tuple[ExecutionHeader, NodeClaim]] = []
        self.failing = self.random.choice([0.05, 0.15, 0.4])

    def run(self) -> ExecutionStatus:
        """Take random steps until the root has completed, or for too long; return its status."""
        for step in range(STEPS):
            rough = step < ROUGH
            if step % CHECKED_EVERY == 0:
                self.check()
            if self.status(self.root) is ExecutionStatus.COMPLETED:
                break
            if rough and self.random.random() < 0.04:
                self._control()
            elif not rough and self.random.random() < 0.2:
                self._restore()
            elif self.random.random() < 0.1:
                self.clock.advance(self.random.choice([1, 2, 10]))
                self.driver.sweep(heads={"default": None})
            elif not self.claims or self.random.random() < 0.3:
                self._claim(lose=rough and self.random.random() < 0.1)
            else:
                self._record(self.failing if rough else 0.0)
        return self.status(self.root)

    def check(self) -> None:
        """Check each open run against the status of its execution, and each item against its node; none hangs."""
        for execution in self.executions():
            runs = self.store.get_node_results(execution.id)
            still = [run for run in runs if not run.status.ended]
            if execution.status in (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED):
                assert still == []
                continue
            for run in still:
                going_on = execution.status is ExecutionStatus.RUNNING
                assert run.status is not NodeStatus.QUEUED or (going_on and run.due_at)
                assert run.status is not NodeStatus.HELD or not (going_on or run.due_at)
            self._check_items(still)
            moving = [run for run in still if run.status is not NodeStatus.PENDING]
            assert moving or execution.status is ExecutionStatus.FAILED, f"{execution.id} hangs"

    def executions(self) -> Sequence[Execution]:
        """Return all executions of the family."""
        return self.store.list_executions(limit=1000).items

    def status(self, execution_id: str) -> ExecutionStatus:
        """Return an execution's status."""
        found = self.store.get_execution(execution_id)
        assert found is not None
        return found.status

    def _check_items(self, still: Sequence[NodeRun]) -> None:
        open_items = Counter(run.node_id for run in still if run.item)
        for run in still:
            if not run.item:
                assert bool(open_items[run.node_id]) is (run.wait_kind is WaitKind.ITEMS and run.status is WAITING)

    def _workflow(self, name: str) -> Workflow:
        kinds = ["plain", "map", *(["call"] if name in BELOW else [])]
        nodes: list[Node] = []
        for number in range(self.random.randint(1, 7)):
            parents = [parent for parent in nodes if self.random.random() < 0.4]
            on = ("success", "success", "failure", "always")
            inputs = tuple(Input(node=parent.id, on=self.random.choice(on)) for parent in parents)
            nodes.append(Node(id=f"n{number}", type=self.random.choice(kinds), inputs=inputs))
        return Workflow(id=name, name=name, nodes=tuple(nodes))

    def _control(self) -> None:
        known = [execution.id for execution in self.executions()]
        act = self.random.choice([self.driver.pause, self.driver.resume, self.driver.retry, self.driver.retry])
        with suppress(InvalidTransition):
            act(self.random.choice([self.root, *known]))

    def _restore(self) -> None:
        for execution in self.executions():
            if execution.status == ExecutionStatus.PAUSED:
                self.driver.resume(execution.id)
        if self.status(self.root) is ExecutionStatus.FAILED:
            self.driver.retry(self.root)

    def _claim(self, *, lose: bool) -> None:
        queued = [
            NodeKey(execution.id, run.node_id, run.item)
            for execution in self.executions()
            if execution.status is ExecutionStatus.RUNNING
            for run in self.store.get_node_results(execution.id)
            if run.status is NodeStatus.QUEUED
        ]
        if not queued:
            self.clock.advance(1)
            self.driver.sweep()
            return
        worker = StoreDriver(self.store, clock=self.clock, lease_seconds=1) if lose else self.driver
        answer = worker.try_claim(*self.random.choice(queued))
        assert isinstance(answer, Claim)
        if lose:
            self.clock.advance(2)
            self.driver.sweep()
        else:
            self.claims.append((answer.header, answer.node))

    def _record(self, failing: float) -> None:
        header, node = self.claims.pop(self.random.randrange(len(self.claims)))
        record = self._outcome(header, node, failing)
        answer = self.driver.send(record)
        again = self.driver.send(record)
        assert (again.recorded, again.next, again.ended) == (answer.recorded, answer.next, answer.ended)
        assert sorted(again.jobs, key=str) == sorted(answer.jobs, key=str)
        if answer.next is not None:
            self.claims.append((header, answer.next))
        if answer.ended is not None and self.random.random() < 0.5:
            self.driver.wake(header.execution_id)

    def _outcome(self, header: ExecutionHeader, node: NodeClaim, failing: float) -> RecordRequest:
        driver, execution = self.driver, header.execution_id
        follow = [edge.target for edge in edges(self.workflows[header.workflow_id]) if edge.source == node.node_id]
        successors = (*follow, node.node_id) if self.random.random() < 0.6 else ()
        chance = self.random.random()
        if chance < failing * 0.1:
            return driver.outcome(execution, node, Outcome.RELEASED)
        if chance < failing * 0.4:
            return driver.outcome(execution, node, Outcome.RETRY, delay_seconds=3)
        if chance < failing:
            handled = {"handled": True, "data": "handled"} if self.random.random() < 0.3 else {}
            return driver.outcome(execution, node, Outcome.FAILED, successors=successors, **handled)
        if node.woken is None and node.node_type == "call":
            return driver.waiting_for_child(execution, node, request(BELOW[header.workflow_id]))
        if node.woken is None and node.node_type == "map" and not node.item:
            items, max_concurrency = range(self.random.randint(1, 5)), self.random.randint(1, 4)
            return driver.fanning_out(
                execution, node, items, max_concurrency=max_concurrency, tolerated_failures=1, successors=successors
            )
        if node.woken is WaitKind.CHILD:
            assert node.wait_key is not None
            good = self.status(node.wait_key) is ExecutionStatus.COMPLETED
        else:
            runs = self.store.get_node_results(execution, [node.node_id])
            good = sum(run.status is NodeStatus.FAILED for run in runs) <= 1 or node.item > 0
        outcome = Outcome.COMPLETED if good else Outcome.FAILED
        return driver.outcome(execution, node, outcome, successors=successors)


class RandomFamilies:
    """A random family continues when it may, and ends, after any sequence of operations."""

    @pytest.mark.parametrize("seed", range(6))
    def test_a_family_ends_whatever_is_done_to_it(self, store: ExecutionStore, clock: ManualClock, seed: int) -> None:
        family = _Family(store, clock, seed)
        assert family.run() is ExecutionStatus.COMPLETED
        assert not [run for run in store.get_node_results(family.root) if not run.status.ended]
