"""The layout of a graph as an indented list: a sequence goes straight down, a fan-out nests, its join comes back."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spanloom.engine.workflow.definitions import Node, Workflow

__all__ = ["Row", "lay_out"]

_ROOT = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line: its guides, the guides of the lines below it, its depth, and its node or the folded nodes."""

    guides: str
    below: str
    depth: int
    node: Node | None
    folded: tuple[str, ...] = ()


def lay_out(workflow: Workflow, *, fold: int | None = None, quiet: Callable[[str], bool] = bool) -> list[Row]:
    """Place every node of a valid workflow once, parents before their successors.

    A node hangs below the last node that all ways to it pass through (its immediate dominator), so that
    `1 → 20 → 1` reads as a node, twenty branches, and the join at the first one's level. Where a fan-out has more than
    `fold` branches, those beyond it that are single nodes and `quiet` (a function of the id) share one row.
    """
    below = _dominated(workflow)
    rows: list[Row] = []
    # A stack, not recursion: a chain may be ten thousand nodes long.
    waiting: list[Row] = []

    def put_below(parent: str, guides: str, depth: int) -> None:
        children = below[parent]
        branches = [node for node in children if len(node.parents) <= 1]
        joins = [node for node in children if len(node.parents) > 1]
        if len(children) == 1:
            branches, joins = [], children
        shown, folded = _fold(branches, below, fold, quiet)
        placed: list[Row] = []
        for position, branch in enumerate(shown):
            last = position == len(shown) - 1 and not folded
            corner, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
            placed.append(Row(guides + corner, guides + rest, depth + 1, branch))
        if folded:
            placed.append(Row(guides + "└─ ", guides + "   ", depth + 1, None, folded))
        placed.extend(Row(guides, guides, depth, join) for join in joins)
        waiting.extend(reversed(placed))

    put_below(_ROOT, "", 0)
    while waiting:
        row = waiting.pop()
        rows.append(row)
        if row.node is not None:
            put_below(row.node.id, row.below, row.depth)
    return rows


def _fold(
    branches: Sequence[Node], below: dict[str, list[Node]], fold: int | None, quiet: Callable[[str], bool]
) -> tuple[list[Node], tuple[str, ...]]:
    if fold is None or len(branches) <= fold:
        return list(branches), ()
    foldable = [node.id for node in branches if not below.get(node.id) and quiet(node.id)]
    spare = max(0, fold - (len(branches) - len(foldable)))
    folded = tuple(foldable[spare:])
    hidden = frozenset(folded)
    return [node for node in branches if node.id not in hidden], folded


def _dominated(workflow: Workflow) -> dict[str, list[Node]]:
    """Return, by node id (and for the root), the nodes that it immediately dominates, in topological order."""
    dominator: dict[str, str] = {}
    depth = {_ROOT: 0}
    dominated: dict[str, list[Node]] = defaultdict(list)
    for node in _in_order(workflow):
        nearest, *others = node.parents or (_ROOT,)
        for other in others:
            nearest = _meet(nearest, other, dominator, depth)
        dominator[node.id] = nearest
        depth[node.id] = depth[nearest] + 1
        dominated[nearest].append(node)
    return dominated


def _meet(node: str, other: str, dominator: Mapping[str, str], depth: Mapping[str, int]) -> str:
    while node != other:
        if depth[node] >= depth[other]:
            node = dominator[node]
        else:
            other = dominator[other]
    return node


def _in_order(workflow: Workflow) -> list[Node]:
    """Return the nodes in topological order, and in the order written where the graph leaves it open."""
    open_parents = Counter({node.id: len(node.parents) for node in workflow.nodes})
    successors: dict[str, list[Node]] = defaultdict(list)
    for node in workflow.nodes:
        for parent in node.parents:
            successors[parent].append(node)
    ready = [node for node in workflow.nodes if not node.parents]
    for node in ready:  # grows while it is walked
        for successor in successors[node.id]:
            open_parents[successor.id] -= 1
            if open_parents[successor.id] == 0:
                ready.append(successor)
    return ready
