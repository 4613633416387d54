"""Compiled workflows: a definition's edges by node, with its expressions compiled."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from spanloom.engine.errors import ExpressionFailed
from spanloom.engine.workflow.definitions import Node, On, Workflow
from spanloom.engine.workflow.evaluation import EvaluationBudget
from spanloom.engine.workflow.expressions import Expression, evaluate_each

__all__ = ["CompiledEdge", "CompiledWorkflow", "DataMapping", "expression_problems", "plan"]


class CompiledEdge(NamedTuple):
    """One edge as routing uses it."""

    target: str
    on: On
    when: Expression | None


class DataMapping:
    """The mapping that makes a node's data: one expression, or an object of expressions."""

    def __init__(self, written: str | Mapping[str, str]) -> None:
        """Compile the expressions. Raises ExpressionFailed."""
        self._whole = Expression(written) if isinstance(written, str) else None
        self._parts = {} if isinstance(written, str) else {name: Expression(text) for name, text in written.items()}

    def evaluate(self, scope: Mapping[str, Any], budget: EvaluationBudget | None = None) -> Any:
        """Return the data. Raises ExpressionFailed."""
        if self._whole is not None:
            return self._whole.evaluate(scope, budget)
        return evaluate_each(self._parts, scope, budget)


@dataclass(frozen=True)
class CompiledWorkflow:
    """A valid definition, indexed, as workers cache it. Treat it as read-only."""

    workflow: Workflow
    nodes: dict[str, Node]
    routes: dict[str, tuple[CompiledEdge, ...]]  # of every node, in the order of the definition
    conditional: frozenset[str]  # nodes with a `when` on an edge that leaves them

    def successors(self, node_id: str) -> tuple[str, ...]:
        """Return the ids of the nodes that wait for this one, in the order of the definition."""
        return self._successors[node_id]

    @functools.cached_property
    def _successors(self) -> dict[str, tuple[str, ...]]:
        return {node_id: tuple(route.target for route in found) for node_id, found in self.routes.items()}

    @functools.cached_property
    def mappings(self) -> dict[str, DataMapping]:
        """The mappings of the nodes that have one, by node id."""
        return {node.id: DataMapping(node.mapping) for node in self.workflow.nodes if node.mapping is not None}

    @functools.cached_property
    def maps(self) -> dict[str, Expression]:
        """The expressions for the lists of mapped nodes, by node id."""
        return {node.id: Expression(node.map.over) for node in self.workflow.nodes if node.map is not None}


def plan(workflow: Workflow) -> CompiledWorkflow:
    """Compile a valid workflow."""
    routes: dict[str, list[CompiledEdge]] = {node.id: [] for node in workflow.nodes}
    for node in workflow.nodes:
        for edge in {edge.node: edge for edge in node.inputs if edge.node in routes}.values():
            when = None if edge.when is None else Expression(edge.when)
            routes[edge.node].append(CompiledEdge(node.id, edge.on, when))
    return CompiledWorkflow(
        workflow=workflow,
        nodes={node.id: node for node in workflow.nodes},
        routes={node_id: tuple(found) for node_id, found in routes.items()},
        conditional=frozenset(node_id for node_id, found in routes.items() if any(route.when for route in found)),
    )


def expression_problems(node: Node) -> Iterator[str]:
    """Yield the problems of a node's expressions, also names in them that can't be resolved."""
    for edge in node.inputs:
        if edge.when is not None:
            yield from _faults(f"the `when` of its input {edge.node!r}", edge.when)
    mapping = node.mapping
    if mapping is not None:
        parts = (
            {"its mapping": mapping}
            if isinstance(mapping, str)
            else {f"its mapping of {name!r}": text for name, text in mapping.items()}
        )
        names = ("input", "nodes", "item", "index") if node.map is not None else ("input", "nodes")
        for what, text in parts.items():
            yield from _faults(what, text, names, node.parents)
    if node.map is not None:
        yield from _faults("its map", node.map.over, ("input", "nodes"), node.parents)
    if (mapping is not None or node.map is not None) and any(edge.name is not None for edge in node.inputs):
        which = "mapping" if mapping is not None else "map"
        yield f"it has named inputs and a {which}; list its inputs without names, and write a mapping for the rest"


def _faults(what: str, text: str, names: tuple[str, ...] | None = None, parents: tuple[str, ...] = ()) -> Iterator[str]:
    try:
        expression = Expression(text)
    except ExpressionFailed as error:
        yield f"{what}: {error}"
        return
    for name, below in expression.roots() if names is not None else ():
        if name not in (names or ()):
            yield f"{what} looks up {name!r}; it sees {', '.join(names or ())}"
        elif name == "nodes" and below is not None and below not in parents:
            yield f"{what} looks up node {below!r}, which is not among its inputs"
