"""The differential check finds what is broken: five mutants of the engine are told from a healthy one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from differential.runner import Differs, Runner, runner
from differential.workflows import cases
from spanloom.engine.workflow.routing import RoutingDecision, route_failure
from spanloom.stores.sqlite.memory import InMemoryExecutionStore
from spanloom.stores.transitions import retry_execution
from spanloom.stores.transitions.arrivals import Arrival, Propagation
from spanloom.stores.transitions.rows import Graph, GraphEdge
from spanloom.worker.node import outcomes

MOST_EXAMPLES = 150
HEALTHY_EXAMPLES = 60  # of the same; test_differential.py has others
MOST_NODES = 12
HANGS_AFTER_SECONDS = 5.0

# The workers' sweepers vary their pauses, in threads of their own, while a case is drawn.
pytestmark = [
    pytest.mark.torture,  # it tests the tests
    pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies"),
]


def lost_increment(patch: pytest.MonkeyPatch) -> None:
    """One arrival in twenty at a join is dropped."""
    settle: Callable[..., None] = Propagation.settle
    numbers = itertools.count(1)

    def dropping(self: Propagation, arrivals: Sequence[Arrival]) -> None:
        settle(self, [one for one in arrivals if one.edge.target_inputs == 1 or next(numbers) % 20])

    patch.setattr(Propagation, "settle", dropping)


def skip_that_stops_after_one(patch: pytest.MonkeyPatch) -> None:
    """A skipped node arrives at none of its successors, if it has any; at an end that it leads to it does."""
    skip: Callable[..., list[Arrival]] = Propagation._skip

    def stopping(self: Propagation, *given: Any) -> list[Arrival]:
        skip(self, *given)
        return []

    patch.setattr(Propagation, "_skip", stopping)


def failure_edge_ignored(patch: pytest.MonkeyPatch) -> None:
    """After a failure no edge for failures is taken."""

    def ignoring(plan: Any, node_id: str, data: Any, _: Any) -> RoutingDecision:
        routes = {name: tuple(one for one in found if one.on != "failure") for name, found in plan.routes.items()}
        return route_failure(dataclasses.replace(plan, routes=routes), node_id, data)

    patch.setattr(outcomes, "route_failure", ignoring)


def double_count_on_retry(patch: pytest.MonkeyPatch) -> None:
    """What arrives again after a retry is counted twice."""
    recount: Callable[..., Any] = retry_execution.recount_arrivals

    def counting(tx: Any, *given: Any, **options: Any) -> Any:
        graph_of = tx.graph
        tx.graph = lambda *version: _Doubled(graph_of(*version))
        try:
            return recount(tx, *given, **options)
        finally:
            del tx.graph

    patch.setattr(retry_execution, "recount_arrivals", counting)


class _Doubled:
    """A graph in which each edge leads to its target twice."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def leading(self, target: str) -> Sequence[GraphEdge]:
        return [*self._graph.leading(target)] * 2


def map_order(patch: pytest.MonkeyPatch) -> None:
    """The results of a mapped node are gathered in the order in which its items ended."""
    get_node_results = InMemoryExecutionStore.get_node_results

    def by_end(self: Any, execution_id: str, node_ids: Any = None) -> Any:
        found = get_node_results(self, execution_id, node_ids)
        return found if node_ids is None else sorted(found, key=lambda run: (run.ended_at is None, run.ended_at))

    patch.setattr(InMemoryExecutionStore, "get_node_results", by_end)


MUTANTS = [lost_increment, skip_that_stops_after_one, failure_edge_ignored, double_count_on_retry, map_order]


def _first_difference(running: Runner, examples: int) -> str | None:
    """Run as many cases, or fewer if one differs; say how that one does. A mutant need not fail twice alike."""
    found: list[str] = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(cases(max_nodes=MOST_NODES))
    def look(case: dict[str, Any]) -> None:
        if not found:
            try:
                running.check({**case, "retry": True})
            except Differs as error:
                found.append(str(error))

    look()
    return found[0] if found else None


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_a_mutant_is_told_from_the_reference(
    mutate: Callable[[pytest.MonkeyPatch], None], own_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with runner("memory://", own_redis_url, timeout=HANGS_AFTER_SECONDS) as running:
        assert _first_difference(running, MOST_EXAMPLES) is not None


def test_the_healthy_engine_passes_the_same_examples(own_redis_url: str) -> None:
    with runner("memory://", own_redis_url, timeout=4 * HANGS_AFTER_SECONDS) as running:
        assert _first_difference(running, HEALTHY_EXAMPLES) is None
