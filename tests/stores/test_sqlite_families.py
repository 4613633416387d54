"""Random families of executions on SQLite, run, lost, paused and retried at random: every count stays right."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress

import pytest

from spanloom.engine.definitions import Input, Node, Workflow
from spanloom.engine.errors import InvalidTransition
from spanloom.engine.graph import edges
from spanloom.engine.records import END, START, Claim, ExecutionHeader, NodeClaim, NodeKey, Outcome, Record
from spanloom.engine.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request

BELOW = {"top": "middle", "middle": "bottom"}
ROUGH = 400  # steps, of which each may fail, pause or retry something; after them all goes well
STEPS = 4000

_RUNS = """
SELECT node_id, item, status, pending, wait_kind, due_at, items, at_once, taken FROM node_runs WHERE execution_id = ?
"""
_RESULTS = "SELECT node_id, item, arrived FROM node_results WHERE execution_id = ?"
_QUEUED = "SELECT execution_id, node_id, item FROM node_runs WHERE status = 'queued' ORDER BY 1, 2, 3"


class Family:
    """One random family, with one worker that may hold any number of claims."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = InMemoryExecutionStore()
        self.clock = ManualClock()
        self.driver = StoreDriver(self.store, clock=self.clock, lease_seconds=1e7)
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
        """Hold every count in the store to the rows that it counts."""
        for execution in self.store.list_executions(limit=1000).items:
            raw = self.store._live().raw_writer
            runs = {(row[0], row[1]): row[2:] for row in raw.execute(_RUNS, (execution.id,))}
            results = {(row[0], row[1]): bool(row[2]) for row in raw.execute(_RESULTS, (execution.id,))}
            assert not runs.keys() & results.keys()
            if execution.status in (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED):
                assert runs.keys() <= {("$parent", 0)}
                continue
            self._check_arrivals(self.workflows[execution.workflow_id], runs, results)
            for (node_id, _), (status, *_, due_at, _items, _at_once, _taken) in runs.items():
                if node_id.startswith("$"):
                    continue
                assert status != NodeStatus.QUEUED or (execution.status == ExecutionStatus.RUNNING and due_at)
                assert status != NodeStatus.HELD or (execution.status != ExecutionStatus.RUNNING and due_at is None)
            self._check_items(runs, results)
            moving = [key for key, run in runs.items() if key[0][0] != "$" and run[0] != NodeStatus.PENDING]
            assert moving or execution.status == ExecutionStatus.FAILED, f"{execution.id} hangs"

    def status(self, execution_id: str) -> ExecutionStatus:
        """Return an execution's status."""
        found = self.store.get_execution(execution_id)
        assert found is not None
        return found.status

    def _check_arrivals(self, workflow: Workflow, runs: dict, results: dict) -> None:  # type: ignore[type-arg]
        inputs = Counter(edge.target for edge in edges(workflow) if edge.source != START)
        arrived = Counter(edge.target for edge in edges(workflow) if results.get((edge.source, 0)))
        for target, count in inputs.items():
            run = runs.get((target, 0))
            if run is None and (target, 0) not in results:
                assert arrived[target] == 0
            elif run is not None and run[0] == NodeStatus.PENDING:
                assert run[1] == count - arrived[target], target
                assert run[1] > 0 or target == END
            else:
                assert arrived[target] == count

    def _check_items(self, runs: dict, results: dict) -> None:  # type: ignore[type-arg]
        open_items = Counter(node_id for node_id, item in runs if item)
        for (node_id, item), (status, pending, wait_kind, _, items, at_once, may_fail) in runs.items():
            if status == NodeStatus.WAITING and wait_kind == WaitKind.ITEMS:
                assert 0 < pending == open_items[node_id] <= at_once
                begun = sum(key[0] == node_id and key[1] > 0 for key in (*runs, *results))
                assert pending == at_once or begun == items or may_fail < 0
            elif not item:
                assert not open_items[node_id]

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
        known = [execution.id for execution in self.store.list_executions(limit=1000).items]
        act = self.random.choice([self.driver.pause, self.driver.resume, self.driver.retry, self.driver.retry])
        with suppress(InvalidTransition):
            act(self.random.choice([self.root, *known]))

    def _restore(self) -> None:
        for execution in self.store.list_executions(limit=1000).items:
            if execution.status == ExecutionStatus.PAUSED:
                self.driver.resume(execution.id)
        if self.status(self.root) is ExecutionStatus.FAILED:
            self.driver.retry(self.root)

    def _claim(self, *, lose: bool) -> None:
        queued = [NodeKey(*row) for row in self.store._live().raw_writer.execute(_QUEUED)]
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

    def _outcome(self, header: ExecutionHeader, node: NodeClaim, failing: float) -> Record:
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
            items, at_once = range(self.random.randint(1, 5)), self.random.randint(1, 4)
            return driver.fanning_out(execution, node, items, at_once=at_once, tolerate=1, successors=successors)
        if node.woken is WaitKind.CHILD:
            assert node.wait_key is not None
            good = self.status(node.wait_key) is ExecutionStatus.COMPLETED
        else:
            runs = self.store.get_node_results(execution, [node.node_id])
            good = sum(run.status is NodeStatus.FAILED for run in runs) <= 1 or node.item > 0
        outcome = Outcome.COMPLETED if good else Outcome.FAILED
        return driver.outcome(execution, node, outcome, successors=successors)


@pytest.mark.parametrize(
    "seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(10, 200))]
)
def test_a_random_family_ends_and_is_counted_right_at_every_step(seed: int) -> None:
    family = Family(seed)
    assert family.run() is ExecutionStatus.COMPLETED
    assert not [run for run in family.store.get_node_results(family.root) if not run.status.ended]
