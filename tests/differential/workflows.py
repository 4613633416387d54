"""Draws workflows: graphs that route, fail, retry, wait, map and start children, as plain JSON."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from differential.app import NODE_TYPE

CREWS = ("one", "pair", "trio", "many")  #: who runs it: the queues of the workers, see runner.py
MAIN = "main"
MAX_NODES = 40

_KINDS = ["act"] * 9 + ["delay", "workflow", "map", "map", "map-workflow", "map-delay"]
_WHEN = [None] * 16 + ["ok", "!ok", "v > `500`", "v", "error", "error.type == 'ValueError'", "nothing", "list"]
_OFTEN, _RARELY = ["fail"] * 3 + ["skip", "fine"], ["fine"] * 10 + ["fail"] * 5 + ["skip"]
_ON = ["success"] * 12 + ["failure", "failure", "always", "always"]
_RETRIED = st.sampled_from([["ValueError"], ["ChildFailed"], ["ValueError", "ChildFailed"]])
_SECONDS = st.sampled_from([0, 0.001, 60, 90, 600, 3_600, 86_400, 172_800])


@lru_cache(4096, typed=True)  # a strategy is costlier to make than to draw from
def _any(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@lru_cache
def _one_in(number: int) -> st.SearchStrategy[bool]:
    return st.sampled_from([False] * (number - 1) + [True])


@st.composite
def cases(draw: st.DrawFn, max_nodes: int = MAX_NODES) -> dict[str, Any]:
    """Draw an execution: its workflow and those of its children, its input, who runs it, and whether to retry it."""
    retry, crew = draw(st.booleans()), draw(_any(*CREWS))  # first: what is drawn late is drawn less evenly
    trouble = draw(_any("none", "handled", "some", "some", "any", "any"))
    size = draw(st.one_of(st.integers(1, 8), st.integers(1, max_nodes)))
    workflows: list[dict[str, Any]] = []
    for number in range(draw(st.integers(0, 3))):
        child_trouble = draw(_any("none", "some" if trouble == "none" else trouble))
        known = [one["id"] for one in workflows]
        workflows.append(draw(_workflow(f"child{number}", draw(st.integers(1, 5)), child_trouble, known)))
    workflows.append(draw(_workflow(MAIN, size, trouble, [one["id"] for one in workflows])))
    return {
        "workflows": workflows,
        "input": {
            "v": draw(st.integers(0, 999)),
            "ok": draw(st.booleans()),
            "list": list(range(draw(st.integers(0, 6)))),
        },
        "crew": crew,
        "retry": retry,
    }


@st.composite
def _workflow(draw: st.DrawFn, workflow_id: str, size: int, trouble: str, children: list[str]) -> dict[str, Any]:
    nodes: list[dict[str, Any]] = []
    for number in range(size):
        names = [node["id"] for node in nodes]
        count = min(len(names), draw(_any(0, 1, 1, 1, 2, 2, 3, 5)))
        recent = names[-8:]
        parents = sorted({draw(_any(*recent)) for _ in range(count)})
        nodes.append(draw(_node(f"n{number}", parents, trouble, children, nested=workflow_id != MAIN)))
    for node in nodes:
        if node["type"] == NODE_TYPE and "map" not in node and draw(_one_in(8)):
            after = [one["id"] for one in nodes if any(edge["node"] == node["id"] for edge in one["inputs"])]
            ghosts = ["ghost"] if trouble == "any" else []
            route = draw(st.lists(_any(*after, *ghosts), max_size=3, unique=True)) if after else []
            followed = {one["id"]: edge["on"] for one in nodes for edge in one["inputs"] if edge["node"] == node["id"]}
            node["config"]["route"] = [
                name for name in route if trouble == "any" or followed[name] != "failure"
            ]  # a target that is left only after a failure can't be named
    return {"id": workflow_id, "nodes": nodes}


@st.composite
def _node(
    draw: st.DrawFn, name: str, parents: list[str], trouble: str, children: list[str], *, nested: bool
) -> dict[str, Any]:
    kind = draw(_any(*[one for one in _KINDS if children or "workflow" not in one]))
    retry: dict[str, Any] = {"max_attempts": draw(_any(1, 1, 2, 3)), "delay": 0}
    if draw(_one_in(8)):
        retry["no_retry_on" if draw(st.booleans()) else "retry_on"] = draw(_RETRIED)
    node: dict[str, Any] = {"id": name, "retry": retry}
    node["inputs"] = [draw(_edge(parent, trouble)) for parent in parents]
    if trouble == "handled" or (trouble != "none" and draw(_one_in(5))):
        node["continue_on_fail"] = True
    mapped = kind.startswith("map")
    if kind.endswith("delay"):
        node["type"], node["config"] = "delay", {"seconds": draw(_SECONDS)}
        if draw(_one_in(6)):
            expressions = ["input.v"] + (["input.nothing"] if trouble in ("handled", "any") else [])
            node["config"] = {"expression": draw(_any(*expressions))}
    elif kind.endswith("workflow"):
        node["type"] = "workflow"
        gone = ["gone"] if trouble == "any" and draw(_one_in(6)) else []
        node["config"] = {"workflow": draw(_any(*(gone or children)))}
        outputs = [None, None, "{got: @}", "v"] + (["length(v)"] if trouble == "any" else [])
        if output := draw(_any(*outputs)):
            node["config"]["output"] = output
    else:
        node["type"], node["config"] = NODE_TYPE, draw(_behaviour(retry["max_attempts"], trouble))
        if mapped and draw(st.booleans()):
            numbers = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True))
            node["config"]["items"] = {
                str(number): draw(_behaviour(retry["max_attempts"], trouble, often=True)) for number in numbers
            }
    if draw(_one_in(6)):
        node["mapping"] = draw(_mapping(parents, mapped=mapped, trouble=trouble))
    if mapped and kind.endswith("workflow") and nested:  # children of children of children: a few will do
        node["map"] = {"over": draw(_any("`[2, 1]`", "`[]`")), "max_concurrency": draw(st.integers(1, 2))}
    elif mapped:
        overs = ["input.list", "`[3, 1, 2]`", "`[]`", "`[5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6]`"]
        overs += [f"nodes.{parents[0]}.list || `[7, 8]`"] if parents else []
        overs += (
            ["input.v"] + [f"nodes.{parent}.list" for parent in parents[:1]] if trouble in ("handled", "any") else []
        )
        node["map"] = {
            "over": draw(_any(*overs)),
            "max_concurrency": draw(st.integers(1, 5)),
            "tolerated_failures": draw(_any(0, 0, 1, 2, 12)),
        }
    return node


@st.composite
def _edge(draw: st.DrawFn, parent: str, trouble: str) -> dict[str, Any]:
    edge = {"node": parent, "on": draw(_any(*_ON))}
    if when := draw(_any(*_WHEN)):
        edge["when"] = when
    elif trouble in ("handled", "any") and draw(_one_in(16)):
        edge["when"] = "length(v)"  # can't be evaluated of a number
    return edge


@st.composite
def _behaviour(draw: st.DrawFn, attempts: int, trouble: str, *, often: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "list": draw(_any(0, 1, 3, 12)),
        "ok": draw(_any(True, True, False)),
    }
    what = draw(_any(*(_OFTEN if often else _RARELY)))
    if what == "skip":
        found["skip"] = True
    if draw(_one_in(10)):
        found["later"] = draw(st.integers(1, 2))
    if what == "fail":
        found["fail_times"] = draw(st.integers(1, 3))
        found["how"] = draw(_any("raised", "raised", "permanent", "returned"))
        if trouble == "none":
            found["how"], found["fail_times"] = "raised", max(attempts - 1, 0)
    return found


@st.composite
def _mapping(draw: st.DrawFn, parents: list[str], *, mapped: bool, trouble: str) -> Any:
    parts = ["input.v", "input", "nodes", *(f"nodes.{parent}.v" for parent in parents)]
    parts += ["item", "index", "{one: item, at: index}"] if mapped else []
    parts += ["length(input.v)"] if trouble in ("handled", "any") else []
    if draw(st.booleans()):
        return draw(_any(*parts))
    return draw(st.dictionaries(_any("x", "y", "v", "list"), _any(*parts), min_size=1, max_size=3))
