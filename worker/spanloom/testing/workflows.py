"""Small workflows of the usual shapes, for tests of stores, queues and engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spanloom.engine.workflow.definitions import Input, Node, Workflow

__all__ = ["after_any_end", "chain", "diamond", "fan", "graph", "route_failure", "single"]


def route_failure(node: str) -> Input:
    """Return an edge that is taken if `node` fails for good."""
    return Input(node=node, on="failure")


def after_any_end(node: str) -> Input:
    """Return an edge that is taken whether `node` completes or fails for good."""
    return Input(node=node, on="always")


def graph(
    id: str, inputs: Mapping[str, Sequence[str | Input]], *, type: str = "work", queue: str = "default"
) -> Workflow:
    """Return a workflow with one node per key, each waiting for the nodes it maps to: by their id after success."""
    nodes = [Node(id=node, type=type, queue=queue, inputs=tuple(parents)) for node, parents in inputs.items()]
    return Workflow(id=id, name=id, nodes=tuple(nodes))


def single(id: str = "single", *, type: str = "work", queue: str = "default") -> Workflow:
    """Return a workflow of one node, `only`."""
    return graph(id, {"only": []}, type=type, queue=queue)


def chain(length: int, id: str = "chain", *, type: str = "work", queue: str = "default") -> Workflow:
    """Return `n1` → `n2` → … → `n<length>`."""
    names = [f"n{number}" for number in range(1, length + 1)]
    parents: list[list[str]] = [[], *([name] for name in names)]
    return graph(id, dict(zip(names, parents, strict=False)), type=type, queue=queue)


def fan(width: int, id: str = "fan", *, type: str = "work", queue: str = "default") -> Workflow:
    """Return `split` → `w1` … `w<width>` → `join`."""
    branches = [f"w{number}" for number in range(1, width + 1)]
    return graph(id, {"split": [], **{name: ["split"] for name in branches}, "join": branches}, type=type, queue=queue)


def diamond(id: str = "diamond", *, type: str = "work", queue: str = "default") -> Workflow:
    """Return `top` → `left`, `right` → `bottom`."""
    return graph(
        id, {"top": [], "left": ["top"], "right": ["top"], "bottom": ["left", "right"]}, type=type, queue=queue
    )
