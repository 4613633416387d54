"""Routing: the edges that are taken after a node has ended, and whether its failure is handled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from spanloom.engine.errors import ExpressionFailed, RoutingFailed
from spanloom.engine.wording import quoted_list
from spanloom.engine.workflow.compiled import CompiledEdge, CompiledWorkflow
from spanloom.engine.workflow.evaluation import EvaluationBudget

__all__ = ["RoutingDecision", "route_failure", "route_success"]


class RoutingDecision(NamedTuple):
    """The targets of the edges that are taken, and whether a failure is handled by them."""

    taken: tuple[str, ...]
    handled: bool = False


def route_success(
    plan: CompiledWorkflow,
    node_id: str,
    data: Any,
    next_nodes: Sequence[str] | None,
    check: Callable[[], object] | None = None,
) -> RoutingDecision:
    """Route a completed node: its `on: success` and `on: always` edges are taken if their `when` holds on its data.

    With `next_nodes`, of the success edges only those to the named nodes are taken. Raises RoutingFailed for a name
    that is not the target of a success or always edge, and for a `when` that can't be evaluated. All `when` share one
    budget, which calls `check`.
    """
    routes = plan.routes[node_id]
    leading = [route for route in routes if route.on != "failure"]
    wanted = None if next_nodes is None else frozenset(next_nodes)
    if wanted is not None and (unknown := wanted.difference(route.target for route in leading)):
        raise RoutingFailed(
            f"node {node_id!r} routed to {quoted_list(sorted(unknown))}, which it does not lead to when it completes "
            f"(it leads to: {quoted_list([route.target for route in leading]) or 'none'})"
        )
    named = [route for route in leading if wanted is None or route.on == "always" or route.target in wanted]
    try:
        return RoutingDecision(tuple(_holding(named, data, EvaluationBudget(check))))
    except ExpressionFailed as error:
        raise RoutingFailed(f"node {node_id!r} completed, but can't be left: {error}") from error


def route_failure(
    plan: CompiledWorkflow, node_id: str, data: Any, check: Callable[[], object] | None = None
) -> RoutingDecision:
    """Route a node that failed for good: its failure is handled by an edge that is taken, or by continue_on_fail.

    `data` is its `{"error": {…}}`. A `when` that can't be evaluated does not hold: the node has failed already.
    """
    routes, budget = plan.routes[node_id], EvaluationBudget(check)
    if taken := tuple(_holding((route for route in routes if route.on != "success"), data, budget, lenient=True)):
        return RoutingDecision(taken, handled=True)
    if plan.nodes[node_id].continue_on_fail:
        return RoutingDecision(
            tuple(_holding((route for route in routes if route.on == "success"), data, budget, lenient=True)),
            handled=True,
        )
    return RoutingDecision(())


def _holding(
    routes: Iterable[CompiledEdge], data: Any, budget: EvaluationBudget, *, lenient: bool = False
) -> Iterable[str]:
    for route in routes:
        try:
            if route.when is None or route.when.holds(data, budget):
                yield route.target
        except ExpressionFailed:
            if not lenient:
                raise
