"""Every problem of a graph is named in one list; edges and plans say what the inputs say; size is no obstacle."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from spanloom.engine.errors import WorkflowInvalid
from spanloom.engine.handlers.registry import NodeRegistry
from spanloom.engine.workflow import validation as graph
from spanloom.engine.workflow.compiled import plan as make_plan
from spanloom.engine.workflow.definitions import Node, Workflow
from spanloom.engine.workflow.validation import Edge

BIG = 10_000


def workflow_of(inputs: dict[str, Any], **fields: Any) -> Workflow:
    """A workflow of nodes of type `t`, by id, with their inputs."""
    return Workflow(id="w", nodes=[Node(id=id, type="t", inputs=given, **fields) for id, given in inputs.items()])


def registry_of(**functions: Any) -> NodeRegistry:
    registry = NodeRegistry()
    for node_type, function in functions.items():
        registry.register(node_type, function)
    return registry


# ---- what is fit to run ----


@pytest.mark.parametrize(
    "inputs",
    [
        {"a": []},
        {"a": [], "b": ["a"], "c": ["b"]},
        {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]},
        {"c": ["b"], "b": ["a"], "a": []},
        {"a": [], "alone": []},
        {"a": [], "b": {"x": "a", "y": "a", "z": "$input"}},
        {"A-Z_09": [], "x" * 200: []},
    ],
    ids=["one", "chain", "diamond", "any order", "isolated", "named", "ids"],
)
def test_a_sound_graph_has_no_problems(inputs: dict[str, Any]) -> None:
    assert graph.find_problems(workflow_of(inputs)) == []
    graph.validate(workflow_of(inputs))


# ---- problems, one by one ----


def test_a_workflow_without_nodes_is_a_problem() -> None:
    assert graph.find_problems(workflow_of({})) == ["there is no node; give it at least one"]


def test_an_id_that_is_used_twice_is_a_problem() -> None:
    workflow = Workflow(id="w", nodes=[Node(id="a", type="t"), Node(id="a", type="u"), Node(id="a", type="t")])
    assert graph.find_problems(workflow) == ["node id 'a' is used 3 times"]


@pytest.mark.parametrize("odd", ["", "a b", "a.b", "ä", "a\n", "$end", "x" * 201, "a/b", "\x00", "\ud800"])
def test_a_node_id_with_an_odd_character_is_a_problem(odd: str) -> None:
    (problem,) = graph.find_problems(workflow_of({odd: []}))
    assert problem == f"node {odd!r}: its id must be 1 to 200 of the characters A-Z a-z 0-9 _ -"


@pytest.mark.parametrize("odd", ["", "a b", "ä", "x" * 201, "a/b", "a:b"])
def test_a_workflow_id_with_an_odd_character_is_a_problem(odd: str) -> None:
    (problem,) = graph.find_problems(Workflow(id=odd, nodes=[Node(id="a", type="t")]))
    assert problem.startswith(f"the workflow id {odd!r} must be")
    assert graph.find_problems(Workflow(id="a.b-c_1", nodes=[Node(id="a", type="t")])) == []


@pytest.mark.parametrize("odd", ["", "high.first", "a b", "x" * 101])
def test_an_odd_queue_name_is_a_problem(odd: str) -> None:
    (problem,) = graph.find_problems(workflow_of({"a": []}, queue=odd))
    assert problem == f"node 'a': its queue {odd!r} must be 1 to 100 of the characters A-Z a-z 0-9 _ -"


def test_an_unknown_input_is_a_problem_and_a_typo_is_recognised() -> None:
    assert graph.find_problems(workflow_of({"charge": [], "email": ["chrage"], "log": ["nothing-like-it"]})) == [
        "node 'email': its input 'chrage' is not a node of this workflow (did you mean 'charge'?)",
        "node 'log': its input 'nothing-like-it' is not a node of this workflow",
    ]


def test_an_input_that_is_listed_twice_is_a_problem() -> None:
    assert graph.find_problems(workflow_of({"a": [], "b": ["a", "a"]})) == ["node 'b': its input 'a' is listed 2 times"]


def test_the_initial_data_needs_a_name_among_inputs() -> None:
    (problem,) = graph.find_problems(workflow_of({"a": ["$input"]}))
    assert problem == "node 'a': its input '$input' needs a parameter name; a node without inputs gets it anyway"


def test_named_and_unnamed_inputs_do_not_mix() -> None:
    mixed = [{"node": "a"}, {"node": "b", "name": "x"}]
    assert graph.find_problems(workflow_of({"a": [], "b": [], "c": mixed})) == [
        "node 'c': it mixes named and unnamed inputs; name all of them or none"
    ]


def test_a_name_that_two_inputs_have_is_a_problem() -> None:
    twice = [{"node": "a", "name": "x"}, {"node": "b", "name": "x"}]
    assert graph.find_problems(workflow_of({"a": [], "b": [], "c": twice})) == [
        "node 'c': it has more than one input named 'x'"
    ]


@pytest.mark.parametrize("value", [math.nan, b"x", {1: "x"}, {"a": [object()]}], ids=["nan", "bytes", "key", "object"])
def test_a_config_that_json_cannot_carry_is_a_problem(value: Any) -> None:
    (problem,) = graph.find_problems(workflow_of({"a": []}, config={"x": value}))
    assert problem.startswith("node 'a': its config can't be kept as JSON: $.x")


def test_an_empty_type_is_a_problem() -> None:
    for registry in (None, NodeRegistry()):
        (problem,) = graph.find_problems(Workflow(id="w", nodes=[Node(id="a", type="")]), registry)
        assert problem == "node 'a': its type '' is empty"


@pytest.mark.parametrize("odd", ["a\x00b", "a\nb", "\ud800"])
def test_text_that_a_store_cannot_hold_is_a_problem(odd: str) -> None:
    assert graph.find_problems(Workflow(id="w", name=odd, nodes=[Node(id="a", type=odd)])) == [
        "the workflow name holds a control character",
        f"node 'a': its type {odd!r} holds a control character",
    ]


# ---- cycles ----


def test_a_self_loop_is_a_problem() -> None:
    assert graph.find_problems(workflow_of({"a": ["a"]})) == ["node 'a': it is an input of itself"]


def test_a_cycle_is_shown_in_the_direction_of_the_data() -> None:
    assert graph.find_problems(workflow_of({"a": ["c"], "b": ["a"], "c": ["b"], "after": ["c"], "before": []})) == [
        "nodes wait for each other in a cycle: a → b → c → a"
    ]


def test_every_knot_is_named_once() -> None:
    found = graph.find_problems(
        workflow_of({"a": ["b"], "b": ["a"], "between": ["a"], "c": ["d", "between"], "d": ["c"], "e": ["e"]})
    )
    assert sorted(found) == [
        "node 'e': it is an input of itself",
        "nodes wait for each other in a cycle: a → b → a",
        "nodes wait for each other in a cycle: c → d → c",
    ]


def test_a_cycle_of_10_000_nodes_is_found_and_shown_short() -> None:
    (problem,) = graph.find_problems(workflow_of({f"n{i}": [f"n{(i - 1) % BIG}"] for i in range(BIG)}))
    assert problem.endswith("(10,000 nodes)")
    assert "n0 → n1 → n2 → n3 → n4 → … → n9997 → n9998 → n9999 → n0" in problem


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40), st.permutations(range(12)))
def test_a_cycle_is_reported_exactly_where_one_is(pairs: list[tuple[int, int]], order: list[int]) -> None:
    parents: dict[int, set[int]] = {
        number: {source for source, target in pairs if target == number} for number in order
    }
    found = graph.find_problems(workflow_of({f"n{number}": [f"n{one}" for one in parents[number]] for number in order}))

    reachable = {
        number: set(parents[number]) for number in order
    }  # by the definition: what a node waits for, in the end
    for _ in order:
        for number in order:
            reachable[number] |= {far for near in reachable[number] for far in parents[near]}
    knots = {
        frozenset(other for other in order if other in reachable[one] and one in reachable[other]) for one in order
    }
    cycles = [problem.partition("cycle: ")[2].split(" → ") for problem in found if "in a cycle" in problem]

    assert len(cycles) == len([knot for knot in knots if len(knot) > 1])
    for cycle in cycles:
        assert cycle[0] == cycle[-1]
        for source, target in itertools.pairwise(cycle):
            if "…" not in (source, target):
                assert int(source[1:]) in parents[int(target[1:])]
    assert len([problem for problem in found if "input of itself" in problem]) == sum(n in parents[n] for n in order)


# ---- against a registry ----


def test_an_unknown_node_type_is_a_problem_and_a_typo_is_recognised() -> None:
    registry = registry_of(fetch=lambda ctx: None, store=lambda ctx: None)
    workflow = Workflow(id="w", nodes=[Node(id="a", type="fecth"), Node(id="b", type="zzz")])
    assert graph.find_problems(workflow, registry) == [
        "node 'a': no handler is registered for its type 'fecth' (did you mean 'fetch'?)",
        "node 'b': no handler is registered for its type 'zzz' (registered: 'fetch', 'store')",
    ]
    assert graph.find_problems(workflow) == []
    assert graph.find_problems(workflow, NodeRegistry())[1].endswith("'zzz' (registered: none)")


def test_a_config_that_does_not_fit_its_model_is_a_problem_per_field() -> None:
    class Fetch(BaseModel):
        url: str
        seconds: float = 1

    registry = NodeRegistry()
    registry.register("fetch", lambda ctx: None, Fetch)
    good = Node(id="good", type="fetch", config={"url": "x"})
    bad = Node(id="bad", type="fetch", config={"seconds": "hidden value"})
    assert graph.find_problems(Workflow(id="w", nodes=[good, bad]), registry) == [
        "node 'bad': its config does not fit: url: Field required",
        "node 'bad': its config does not fit: seconds: "
        "Input should be a valid number, unable to parse string as a number",
    ]


def test_inputs_that_do_not_fit_the_signature_are_problems() -> None:
    def mail(order: Any, receipt: Any, copies: int = 1) -> None: ...

    registry = registry_of(mail=mail, t=lambda: None, look=lambda ctx: None)
    name = f"{__name__}.test_inputs_that_do_not_fit_the_signature_are_problems.<locals>.mail"

    def problems(node_type: str, inputs: Any) -> list[str]:
        nodes = [Node(id="a", type="t"), Node(id="b", type="t"), Node(id="n", type=node_type, inputs=inputs)]
        return graph.find_problems(Workflow(id="w", nodes=nodes), registry)

    assert problems("mail", {"order": "a", "receipt": "b"}) == []
    assert problems("mail", {"order": "a", "receipt": "b", "copies": "$input"}) == []
    assert problems("look", ["a", "b"]) == []
    assert problems("mail", ["a", "b"]) == [
        f"node 'n': its handler {name} also needs 'receipt'; write its inputs as {{parameter: node id}}"
    ]
    assert problems("mail", {"order": "a", "reciept": "b"}) == [
        f"node 'n': its handler {name} has no parameter 'reciept' (did you mean 'receipt'?)",
        f"node 'n': its handler {name} also needs 'receipt'; write its inputs as {{parameter: node id}}",
    ]
    (problem,) = problems("look", {"ctx": "a"})
    assert "its input can't be named 'ctx': that is the context of" in problem
    (problem,) = problems("look", {"x": "a"})
    assert problem.endswith("has no parameter 'x' (it takes none)")


def test_an_annotation_that_names_nothing_is_a_problem() -> None:
    def odd(data: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    (problem,) = graph.find_problems(Workflow(id="w", nodes=[Node(id="a", type="odd")]), registry_of(odd=odd))
    assert problem.startswith("node 'a': the annotation of parameter 'data' of ")
    assert "(name 'NotThere' is not defined)" in problem


# ---- all at once ----


def test_check_raises_every_problem_in_one_error() -> None:
    workflow = Workflow(
        id="odd id",
        nodes=[
            Node(id="odd id", type="t"),
            Node(id="twice", type="t"),
            Node(id="twice", type="missing"),
            Node(id="loop", type="t", inputs=["loop", "nowhere"]),
            Node(id="x", type="t", inputs=["y"], queue="a.b"),
            Node(id="y", type="t", inputs=["x"], config={"at": {1}}),
        ],
    )
    with pytest.raises(WorkflowInvalid) as caught:
        graph.validate(workflow, registry_of(t=lambda: None))
    assert caught.value.workflow_id == "odd id"
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "the workflow id 'odd id' must be 1 to 200 of the characters A-Z a-z 0-9 _ - .",
        "node id 'twice' is used 2 times",
        "node 'odd id'",
        "node 'twice'",
        "node 'loop'",
        "node 'loop'",
        "node 'x'",
        "node 'y'",
        "nodes wait for each other in a cycle",
    ]
    assert all(problem in str(caught.value) for problem in caught.value.problems)


# ---- edges and plans ----


def test_edges_carry_what_transitions_need() -> None:
    workflow = Workflow(
        id="w",
        nodes=[
            Node(id="a", type="t"),
            Node(id="b", type="u", inputs=["a"], queue="slow"),
            Node(id="c", type="t", inputs={"x": "a", "y": "a", "z": "$input"}),
        ],
    )
    assert graph.edges(workflow) == [
        Edge("$start", "a", "success", "t", "default", 1),
        Edge("a", "b", "success", "u", "slow", 1),
        Edge("a", "c", "success", "t", "default", 1),
        Edge("b", "$end", "always", "$end", "", 2),
        Edge("c", "$end", "always", "$end", "", 2),
    ]


def test_a_node_fed_by_the_initial_data_alone_is_an_entry_node() -> None:
    assert graph.edges(workflow_of({"a": {"x": "$input"}}))[0] == Edge("$start", "a", "success", "t", "default", 1)


acyclic = st.lists(st.sets(st.integers(0, 19)), min_size=1, max_size=20).map(
    lambda rows: {f"n{i}": [f"n{one}" for one in sorted(row) if one < i] for i, row in enumerate(rows)}
)


@given(acyclic)
def test_edges_and_plan_agree_with_the_inputs(inputs: dict[str, list[str]]) -> None:
    workflow = workflow_of(inputs)
    assert graph.find_problems(workflow) == []
    found, plan = graph.edges(workflow), make_plan(workflow)

    assert len({(edge.source, edge.target) for edge in found}) == len(found)
    for node_id, parents in inputs.items():
        arriving = [edge for edge in found if edge.target == node_id]
        assert [edge.source for edge in arriving] == (parents or ["$start"])
        assert all(edge.target_inputs == len(arriving) for edge in arriving)
        assert plan.successors(node_id) == tuple(target for target, given in inputs.items() if node_id in given)
    sinks = [edge.source for edge in found if edge.target == "$end"]
    assert sinks == [node_id for node_id in plan.nodes if not plan.successors(node_id)]
    assert plan.nodes == {node.id: node for node in workflow.nodes}
    assert plan.workflow is workflow


# ---- size ----


def wide() -> dict[str, list[str]]:
    return {"n0": []} | {f"n{i}": ["n0"] for i in range(1, BIG - 1)} | {"end": [f"n{i}" for i in range(1, BIG - 1)]}


def chain() -> dict[str, list[str]]:
    return {f"n{i}": [f"n{i - 1}"] if i else [] for i in range(BIG)}


def grid() -> dict[str, list[str]]:
    side = math.isqrt(BIG)
    return {
        f"n{row}-{column}": [f"n{r}-{c}" for r, c in ((row - 1, column), (row, column - 1)) if r >= 0 and c >= 0]
        for row in range(side)
        for column in range(side)
    }


def unknown() -> dict[str, list[str]]:
    return {f"n{i}": [f"x{i}"] for i in range(BIG)}


def one_typo() -> dict[str, list[str]]:
    return grid() | {"last": ["n50-505"]}


@pytest.mark.parametrize("most", [4_000, pytest.param(BIG, marks=pytest.mark.torture)])
@pytest.mark.parametrize("shape", [wide, chain, grid, unknown, one_typo], ids=lambda shape: shape.__name__)
def test_thousands_of_nodes_are_read_checked_and_planned_in_step_with_their_number(
    shape: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "BIG", most)
    of_all = seconds_of(shape, tries=1)
    monkeypatch.setitem(globals(), "BIG", most // 5)

    assert of_all < 20 * seconds_of(shape, tries=3)  # five times as many nodes: 25 times, if each met all others


def seconds_of(shape: Any, tries: int) -> float:
    """The CPU time that a workflow takes, the least of several tries."""
    text = workflow_of(shape()).to_json()
    registry = registry_of(t=lambda ctx: None)
    taken = []
    for _ in range(tries):
        started = time.process_time()
        workflow = Workflow.from_json(text)
        found = graph.find_problems(workflow, registry)
        if not found:
            graph.edges(workflow)
            make_plan(workflow)
        taken.append(time.process_time() - started)
        assert len(found) == {unknown: BIG, one_typo: 1}.get(shape, 0)
    return min(taken)
