"""The reference's rules for expressions, for retries, and for the edges that a node which has ended takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError

from spanloom.engine.definitions import Input, Node, RetryPolicy

Edges = Sequence[tuple[str, Input]]  #: that leave a node: where each leads, and how it is written there


class Fails(Exception):
    """What a node fails with."""

    def __init__(self, kind: str, message: str | None = None, *, permanent: bool = True) -> None:
        self.kind, self.message, self.permanent = kind, message, permanent


def failure(kind: str | None, message: str | None, node: Node) -> dict[str, Any]:
    """Return what stands for the data of a node that failed."""
    return {"error": {"type": kind, "message": message, "node_id": node.id}}


def retries(policy: RetryPolicy, kind: str) -> bool:
    """Tell whether a policy retries this type of error at all."""
    return kind not in policy.no_retry_on and (not policy.retry_on or kind in policy.retry_on)


def search(expression: str, scope: Any, kind: str = "PermanentError") -> Any:
    """Evaluate an expression. Raises Fails."""
    try:
        return jmespath.search(expression, scope)
    except (JMESPathError, ArithmeticError, TypeError, ValueError) as error:
        raise Fails(kind) from error


def shaped(mapping: str | dict[str, str], scope: Any) -> Any:
    """Evaluate a mapping. Raises Fails."""
    if isinstance(mapping, str):
        return search(mapping, scope)
    return {name: search(text, scope) for name, text in mapping.items()}


def after_success(edges: Edges, data: Any, route: Sequence[str] | None) -> frozenset[str]:
    """Return where a completed node leads. Raises Fails."""
    leading = [(target, edge) for target, edge in edges if edge.on != "failure"]
    if route is not None and not set(route) <= {target for target, _ in leading}:
        raise Fails("RoutingFailed")
    named = [(target, edge) for target, edge in leading if route is None or target in route or edge.on == "always"]
    return frozenset([target for target, edge in named if _holds(edge, data)])


def after_failure(edges: Edges, data: Any, kinds: tuple[str, ...]) -> frozenset[str]:
    """Return where a failed node leads by edges of these kinds; a `when` that can't be evaluated does not hold."""
    taken = set()
    for target, edge in edges:
        try:
            if edge.on in kinds and _holds(edge, data):
                taken.add(target)
        except Fails:
            continue
    return frozenset(taken)


def _holds(edge: Input, data: Any) -> bool:
    value = None if edge.when is None else search(edge.when, data, "RoutingFailed")
    return edge.when is None or not (value is None or value is False or value == "" or value == [] or value == {})
