"""Validation of definitions: their edges, entry nodes and sinks, and all problems that make one unfit to run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spanloom.engine.errors import WorkflowInvalid
from spanloom.engine.limits import MAX_EXPRESSIONS_CHARACTERS, MAX_NAME, shortened
from spanloom.engine.payload import find_faults
from spanloom.engine.wording import did_you_mean, quoted_list
from spanloom.engine.workflow.compiled import expression_problems
from spanloom.engine.workflow.definition_bounds import check_content, check_nodes
from spanloom.engine.workflow.definitions import INITIAL, NODE_ID, QUEUE_NAME, WORKFLOW_ID, Node, Workflow
from spanloom.engine.workflow.exception_names import NameChecks

if TYPE_CHECKING:
    from spanloom.engine.handlers.registry import NodeRegistry

__all__ = ["Edge", "edges", "find_problems", "validate"]

_NODE_ID = re.compile(NODE_ID).fullmatch
_QUEUE_NAME = re.compile(QUEUE_NAME).fullmatch
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]").search  # characters that the text of some store can't hold
_SHOWN_OF_A_CYCLE = 10
_SUGGESTIONS = 20_000  # how many names "did you mean" may compare in one workflow: it is slow


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge as transitions use it, with the properties of its target. `on`: success, failure or always."""

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
        if not parents:
            found.append(Edge("$start", node.id, "success", node.type, node.queue, 1))
        kinds = {edge.node: edge.on for edge in node.inputs}
        found.extend(Edge(parent, node.id, kinds[parent], node.type, node.queue, len(parents)) for parent in parents)
    sinks = [node.id for node in workflow.nodes if node.id not in has_successor]
    found.extend(Edge(sink, "$end", "always", "$end", "", len(sinks)) for sink in sinks)
    return found


def validate(workflow: Workflow, registry: NodeRegistry | None = None) -> None:
    """Raise WorkflowInvalid with every problem, if there is one."""
    found = find_problems(workflow, registry)
    if found:
        raise WorkflowInvalid(workflow.id, found)


def find_problems(workflow: Workflow, registry: NodeRegistry | None = None) -> list[str]:
    """Return one sentence for each problem that makes `workflow` unfit to run, with its node; empty if it is fit.

    With a registry, node types, their config and the fit of inputs to handlers are checked, too. Takes time linear in
    nodes and edges.

    >>> find_problems(Workflow(id="orders", nodes=[Node(id="ship", type="ship", inputs=["charge"])]))
    ["node 'ship': its input 'charge' is not a node of this workflow"]
    """
    try:
        check_nodes(len(workflow.nodes), sum(len(node.inputs) for node in workflow.nodes))
        check_content({node.id: node.config for node in workflow.nodes})  # each was checked alone
    except ValueError as error:
        return [str(error)]
    expressions = sum(map(_expression_characters, workflow.nodes))
    if expressions > MAX_EXPRESSIONS_CHARACTERS:
        return [f"its expressions have {expressions:,} characters, more than {MAX_EXPRESSIONS_CHARACTERS:,} together"]
    found: list[str] = []
    if not re.fullmatch(WORKFLOW_ID, workflow.id):
        found.append(f"the workflow id {workflow.id[:250]!r} must be 1 to 200 of the characters A-Z a-z 0-9 _ - .")
    if len(workflow.name) > MAX_NAME:
        found.append(f"its name has {len(workflow.name):,} characters, more than {MAX_NAME:,}")
    if _UNPRINTABLE(workflow.name):
        found.append("the workflow name holds a control character")
    if not workflow.nodes:
        found.append("there is no node; give it at least one")
    suggest, names = _Suggestions(), NameChecks()
    unknown_types = _unknown_types(workflow, registry, suggest) if registry is not None else {}
    counts = Counter(node.id for node in workflow.nodes)
    found += (f"node id {node_id!r} is used {count} times" for node_id, count in counts.items() if count > 1)
    for node in workflow.nodes:
        messages = [*_own_problems(node), *_input_problems(node, counts, suggest), *expression_problems(node)]
        if node.type in unknown_types:
            messages.append(unknown_types[node.type])
        elif registry is not None and node.type:
            messages += registry.handler(node.type).problems(node)
        messages += _policy_problems(node, names, runs_here=registry is not None and node.type in registry)
        found += (f"node {node.id[:250]!r}: {problem}" for problem in messages)
    found += (f"nodes wait for each other in a cycle: {_path(cycle)}" for cycle in _cycles(workflow))
    return found


def _own_problems(node: Node) -> Iterator[str]:
    if not _NODE_ID(node.id):
        yield "its id must be 1 to 200 of the characters A-Z a-z 0-9 _ -"
    if not _QUEUE_NAME(node.queue):
        yield f"its queue {shortened(node.queue, MAX_NAME)!r} must be 1 to 100 of the characters A-Z a-z 0-9 _ -"
    for path, what in find_faults(node.config) if node.config else ():
        yield f"its config can't be kept as JSON: {path} is {what}"
    for what, name in _names(node):
        if len(name) > MAX_NAME:
            yield f"{what} has {len(name):,} characters, more than {MAX_NAME:,}"
    if not node.type or _UNPRINTABLE(node.type):
        yield f"its type {shortened(node.type, MAX_NAME)!r} {'holds a control character' if node.type else 'is empty'}"


def _expression_characters(node: Node) -> int:
    mapping = node.mapping or ""
    texts = [mapping] if isinstance(mapping, str) else [*mapping.values()]
    texts += [edge.when for edge in node.inputs if edge.when is not None]
    return sum(map(len, texts)) + (0 if node.map is None else len(node.map.over))


def _names(node: Node) -> Iterator[tuple[str, str]]:
    yield "its type", node.type
    for edge in node.inputs:
        if edge.name is not None:
            yield "the name of a parameter", edge.name
    for name in node.mapping if isinstance(node.mapping, dict) else ():
        yield "a name in its mapping", name
    for name in (*node.retry.retry_on, *node.retry.no_retry_on):
        yield "a name in its retry policy", name


def _policy_problems(node: Node, names: NameChecks, *, runs_here: bool) -> Iterator[str]:
    for field in ("retry_on", "no_retry_on"):
        for name in getattr(node.retry, field):
            if (problem := names.problem(name, runs_here=runs_here)) is not None:
                yield f"its {field}: {problem}"


def _unknown_types(workflow: Workflow, registry: NodeRegistry, suggest: _Suggestions) -> dict[str, str]:
    known = registry.types
    registered = f" (registered: {quoted_list(sorted(known)) or 'none'})"
    used = dict.fromkeys(node.type for node in workflow.nodes)
    unknown = [node_type for node_type in used if node_type not in registry]
    return {
        node_type: f"no handler is registered for its type {shortened(node_type, MAX_NAME)!r}"
        f"{suggest.like(node_type, known) or registered}"
        for node_type in unknown
        if node_type
    }


def _input_problems(node: Node, ids: Counter[str], suggest: _Suggestions) -> Iterator[str]:
    names = [edge.name for edge in node.inputs]
    named = [name for name in names if name is not None]
    if named and len(named) < len(names):
        yield "it mixes named and unnamed inputs; name all of them or none"
    if len(set(named)) < len(named):
        twice = [name for name, count in Counter(named).items() if count > 1]
        yield f"it has more than one input named {quoted_list(twice)}"
    sources = Counter([edge.node for edge in node.inputs])
    conditions: dict[str, set[tuple[str, str | None]]] = {}
    for edge in node.inputs:
        conditions.setdefault(edge.node, set()).add((edge.on, edge.when))
    for source, count in sources.items():
        if source == node.id:
            yield "it is an input of itself"
        elif source == INITIAL:
            if not named:
                yield f"its input {INITIAL!r} needs a parameter name; a node without inputs gets it anyway"
        elif source not in ids:
            yield f"its input {shortened(source, MAX_NAME)!r} is not a node of this workflow{suggest.like(source, ids)}"
        if count > 1 and not named:
            yield f"its input {source!r} is listed {count} times"
        if len(conditions[source]) > 1:
            yield f"its inputs from {source!r} differ in `on` or `when`; they are one edge, so write the same for each"
        if source == INITIAL and conditions[source] != {("success", None)}:
            yield f"its input {INITIAL!r} can't have `on` or `when`: the initial data is always there"


class _Suggestions:
    """Suggestions for misspelled names, until enough names were compared."""

    def __init__(self) -> None:
        self.left = _SUGGESTIONS

    def like(self, word: str, known: Counter[str] | frozenset[str]) -> str:
        self.left -= len(known)
        return did_you_mean(word, known) if self.left >= 0 else ""


def _cycles(workflow: Workflow) -> list[list[str]]:
    """Return one cycle of every strongly connected component; self loops are reported elsewhere."""
    parents: dict[str, list[str]] = {}
    for node in workflow.nodes:
        parents.setdefault(node.id, []).extend(parent for parent in node.parents if parent != node.id)
    unordered = _without_order(parents)
    return [_one_cycle(component, unordered) for component in _strongly_connected(unordered)] if unordered else []


def _without_order(parents: dict[str, list[str]]) -> dict[str, list[str]]:
    """Remove nodes that wait for no other, repeatedly; return the others: cycles, and all nodes that follow them."""
    children: dict[str, list[str]] = {node_id: [] for node_id in parents}
    waiting: dict[str, int] = {}
    for node_id, found in parents.items():
        known = [parent for parent in found if parent in children]
        waiting[node_id] = len(known)
        for parent in known:
            children[parent].append(node_id)
    ready = [node_id for node_id, count in waiting.items() if count == 0]
    while ready:
        done = ready.pop()
        del waiting[done]
        for child in children[done]:
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    return {node_id: [parent for parent in parents[node_id] if parent in waiting] for node_id in waiting}


def _strongly_connected(parents: dict[str, list[str]]) -> Iterator[set[str]]:
    """Yield the strongly connected components of more than one node (Tarjan, with a stack of its own: no recursion)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    trail: list[str] = []
    on_trail: set[str] = set()
    for root in parents:
        if root in order:
            continue
        work: list[tuple[str, Iterator[str]]] = [(root, iter(parents[root]))]
        order[root] = low[root] = len(order)
        trail.append(root)
        on_trail.add(root)
        while work:
            node_id, rest = work[-1]
            for parent in rest:
                if parent not in order:
                    order[parent] = low[parent] = len(order)
                    trail.append(parent)
                    on_trail.add(parent)
                    work.append((parent, iter(parents[parent])))
                    break
                if parent in on_trail:
                    low[node_id] = min(low[node_id], order[parent])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node_id])
                if low[node_id] == order[node_id]:
                    component: set[str] = set()
                    while node_id not in component:
                        component.add(trail.pop())
                    on_trail -= component
                    if len(component) > 1:
                        yield component


def _one_cycle(component: set[str], parents: dict[str, list[str]]) -> list[str]:
    """Follow inputs inside a component until a node repeats; return the cycle in the direction of the data."""
    here = min(component)
    walked: dict[str, int] = {}
    while here not in walked:
        walked[here] = len(walked)
        here = next(parent for parent in parents[here] if parent in component)
    cycle = list(walked)[walked[here] :]
    return [cycle[0], *cycle[:0:-1]]


def _path(cycle: list[str]) -> str:
    shown = [*cycle, cycle[0]]
    if len(cycle) > _SHOWN_OF_A_CYCLE:
        shown = [*cycle[:5], "…", *cycle[-3:], cycle[0]]
    return " → ".join(shown) + (f" ({len(cycle):,} nodes)" if len(cycle) > _SHOWN_OF_A_CYCLE else "")
