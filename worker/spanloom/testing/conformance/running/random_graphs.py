"""Conformance: random graphs and routes, against a model of the runs."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeClaim, Outcome, RecordRequest
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.engine.workflow.definitions import Workflow
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import graph

__all__ = ["RandomGraphs"]


class _Plan(NamedTuple):
    """A graph, the outcome of each node if it runs, and the expected result."""

    workflow: Workflow
    outcomes: dict[str, Outcome]
    taken: dict[str, tuple[str, ...]]
    statuses: dict[str, NodeStatus]
    results: dict[str, set[str]]  # the parents whose data each node that runs must see


def _plan(draw: random.Random) -> _Plan:
    names = [f"n{number:02}" for number in range(draw.randint(2, 25))]
    parents = {name: draw.sample(names[:at], min(at, draw.choice([0, 1, 1, 2, 3, 8]))) for at, name in enumerate(names)}
    successors = {name: [successor for successor in names if name in parents[successor]] for name in names}
    outcomes: dict[str, Outcome] = {}
    taken: dict[str, tuple[str, ...]] = {}
    statuses: dict[str, NodeStatus] = {}
    results: dict[str, set[str]] = {}
    for name in names:  # parents come before
        seen = {parent for parent in parents[name] if name in taken.get(parent, ())}
        if parents[name] and not seen:
            statuses[name] = NodeStatus.SKIPPED
            continue
        results[name] = seen
        some = draw.choice([successors[name], draw.sample(successors[name], draw.randint(0, len(successors[name])))])
        may_fail = [Outcome.FAILED] if some else []  # a failure is handled only by an edge that is taken
        outcome = draw.choice([Outcome.COMPLETED] * 4 + [Outcome.SKIPPED] + may_fail)
        outcomes[name] = outcome
        taken[name] = () if outcome is Outcome.SKIPPED else tuple(some)
        statuses[name] = NodeStatus(outcome.value)
    return _Plan(graph("random", parents), outcomes, taken, statuses, results)


class RandomGraphs:
    """A random graph, with any route and any order of records, runs each reached node once, and ends."""

    @pytest.mark.parametrize("seed", range(25))
    def test_a_graph_runs_what_its_taken_edges_reach(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, seed: int
    ) -> None:
        # given a graph and a route through it
        draw = random.Random(seed)
        plan = _plan(draw)
        execution = driver.start(plan.workflow)
        ran: dict[str, set[str]] = {}
        running: list[NodeClaim] = []
        # when its nodes are claimed and recorded in any order, several in one call, some run next at once
        while driver.jobs or running:
            while driver.jobs:
                running.append(driver.claim(execution, driver.jobs.popleft().node_id))
            draw.shuffle(running)
            some = running[: draw.randint(1, 4)]
            for node in some:
                assert node.node_id not in ran, f"{node.node_id} ran twice"
                ran[node.node_id] = set(node.results)
            answers = store.record([self._record(driver, execution, node, plan, draw) for node in some], now=clock())
            assert all(answer.recorded for answer in answers)
            running = running[len(some) :]
            running.extend(answer.next for answer in answers if answer.next is not None)
            driver.jobs.extend(job for answer in answers for job in answer.jobs)
        # then reached nodes ran with the data of their taken parents, others were skipped, and the execution ended
        assert ran == plan.results
        assert {run.node_id: run.status for run in store.get_node_results(execution)} == plan.statuses
        found = store.get_execution(execution)
        assert found is not None
        assert found.status is ExecutionStatus.COMPLETED
        assert sum(store.stats().open_node_runs.values()) == 0

    def _record(
        self, driver: StoreDriver, execution: str, node: NodeClaim, plan: _Plan, draw: random.Random
    ) -> RecordRequest:
        taken = plan.taken[node.node_id]
        outcome = plan.outcomes[node.node_id]
        return driver.outcome(
            execution, node, outcome, taken=taken, data=node.node_id, successors=draw.choice([(), taken])
        )
