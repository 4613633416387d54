"""What follows from a definition's inputs: edges, entry nodes, sinks, and every problem that makes a graph unfit to run."""

from __future__ import annotations

from dataclasses import dataclass

from spanloom.engine.definitions import Workflow

__all__ = ["Edge", "edges"]


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge as transitions follow it; what they need of the target stands in it. `on`: success, failure or always."""

    source: str
    target: str
    on: str
    target_type: str
    target_queue: str
    target_inputs: int  # how many edges lead to the target


def edges(workflow: Workflow) -> list[Edge]:
    """List all edges, with the virtual ones: `$start` to each entry node, and each sink to `$end`."""
    found: list[Edge] = []
    has_successor: set[str] = set()
    for node in workflow.nodes:
        parents = node.parents
        has_successor.update(parents)
        sources = parents or ("$start",)
        found.extend(Edge(source, node.id, "success", node.type, node.queue, len(sources)) for source in sources)
    sinks = [node.id for node in workflow.nodes if node.id not in has_successor]
    found.extend(Edge(sink, "$end", "always", "$end", "", len(sinks)) for sink in sinks)
    return found
