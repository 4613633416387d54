"""Where a node leads: by its edges' `on` and `when`, by what it named, and by what handles its failure."""

from __future__ import annotations

from typing import Any

import pytest

from spanloom.engine.errors import RoutingFailed
from spanloom.engine.workflow.compiled import CompiledWorkflow, plan
from spanloom.engine.workflow.definitions import Input, Node, Workflow
from spanloom.engine.workflow.routing import RoutingDecision, route_failure, route_success


def leading_from(edges: dict[str, Input], **source: Any) -> CompiledWorkflow:
    """A node `s` with one edge to each of the nodes that are named."""
    nodes = [Node(id="s", type="t", **source), *(Node(id=name, type="t", inputs=[one]) for name, one in edges.items())]
    return plan(Workflow(id="w", nodes=nodes))


ALL_KINDS = leading_from(
    {
        "plain": Input(node="s"),
        "big": Input(node="s", when="total > `10`"),
        "broken": Input(node="s", on="failure"),
        "last": Input(node="s", on="always"),
        "odd": Input(node="s", on="always", when="odd"),
    }
)


@pytest.mark.parametrize(
    ("data", "next_nodes", "taken"),
    [
        ({"total": 11}, None, ("plain", "big", "last")),
        ({"total": 1, "odd": True}, None, ("plain", "last", "odd")),
        ({"total": 11}, ["big"], ("big", "last")),
        ({"total": 1}, ["big"], ("last",)),  # named, but its `when` does not hold
        ({"total": 11}, [], ("last",)),
        ({"total": 11}, ["last"], ("last",)),
        (None, None, ("plain", "last")),
    ],
)
def test_a_completed_node_takes_its_success_and_always_edges(data: Any, next_nodes: Any, taken: Any) -> None:
    assert route_success(ALL_KINDS, "s", data, next_nodes) == RoutingDecision(taken)


@pytest.mark.parametrize("named", ["nowhere", "broken", "s", ""])
def test_naming_what_it_does_not_lead_to_is_refused_with_those_it_does(named: str) -> None:
    with pytest.raises(RoutingFailed) as caught:
        route_success(ALL_KINDS, "s", {}, [named])
    assert repr(named) in str(caught.value)
    assert "'plain', 'big', 'last', 'odd'" in str(caught.value)


def test_a_condition_that_can_not_be_evaluated_is_refused() -> None:
    with pytest.raises(RoutingFailed, match="length"):
        route_success(leading_from({"a": Input(node="s", when="length(@) > `1`")}), "s", 5, None)


def test_a_failure_takes_its_failure_and_always_edges_and_is_handled_by_them() -> None:
    told = {"error": {"type": "ValueError", "message": "no"}}
    assert route_failure(ALL_KINDS, "s", told) == RoutingDecision(("broken", "last"), handled=True)
    by_type = leading_from({"a": Input(node="s", on="failure", when="error.type == 'KeyError'"), "b": Input(node="s")})
    assert route_failure(by_type, "s", told) == RoutingDecision(())
    assert route_failure(by_type, "s", {"error": {"type": "KeyError"}}) == RoutingDecision(("a",), handled=True)


def test_continue_on_fail_takes_the_success_edges_unless_a_failure_edge_is_taken() -> None:
    edges = {"a": Input(node="s"), "b": Input(node="s", on="failure", when="error.type == 'KeyError'")}
    going_on = leading_from(edges, continue_on_fail=True)
    assert route_failure(going_on, "s", {"error": {"type": "ValueError"}}) == RoutingDecision(("a",), handled=True)
    assert route_failure(going_on, "s", {"error": {"type": "KeyError"}}) == RoutingDecision(("b",), handled=True)
    assert route_failure(leading_from({}, continue_on_fail=True), "s", {}) == RoutingDecision((), handled=True)


def test_a_condition_that_breaks_after_a_failure_does_not_hide_the_failure() -> None:
    broken = leading_from({"a": Input(node="s", on="failure", when="length(error.number)")})
    assert route_failure(broken, "s", {"error": {"number": 1}}) == RoutingDecision(())
