"""What a definition may say of edges, mappings, maps and the built-in nodes, and what is refused with a sentence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from spanloom.engine import (
    ConfigurationError,
    Input,
    MapOver,
    Node,
    NodeRegistry,
    Workflow,
    WorkflowBuilder,
    WorkflowInvalid,
)
from spanloom.engine.handlers.builtin import LONGEST_SECONDS, moment
from spanloom.engine.workflow.validation import edges, find_problems

REGISTRY = NodeRegistry()


@REGISTRY.node("t")
def step(data: Any, ctx: Any) -> Any:
    return data


def told(**node: Any) -> list[str]:
    """The problems of node `b` after node `a`, which a definition file would write so."""
    workflow = Workflow.read({"id": "w", "nodes": [{"id": "a", "type": "t"}, {"id": "b", "type": "t", **node}]})
    return find_problems(workflow, REGISTRY)


@pytest.mark.parametrize(
    "node",
    [
        {"inputs": [{"node": "a", "on": "failure", "when": "error.type == 'X'"}]},
        {"inputs": {"data": {"node": "a", "on": "always"}}},
        {"inputs": ["a"], "mapping": "nodes.a.x"},
        {"inputs": ["a"], "mapping": {"x": "input.id", "y": "nodes.a"}},
        {"inputs": ["a"], "map": "nodes.a.list"},
        {
            "map": {"over": "input", "max_concurrency": 3, "tolerated_failures": 1},
            "mapping": {"i": "index", "it": "item", "all": "input"},
        },
        {"type": "delay", "config": {"seconds": 0}, "inputs": ["a"]},
        {"type": "delay", "config": {"until": "2030-01-01T00:00:00Z"}},
        {"type": "delay", "config": {"expression": "input.at"}},
        {"type": "workflow", "config": {"workflow": "other", "version": 3, "output": "total"}, "mapping": "input"},
        {"inputs": ["a"], "continue_on_fail": True},
    ],
)
def test_what_a_workflow_can_say_is_fit_to_run(node: dict[str, Any]) -> None:
    assert told(**node) == []


@pytest.mark.parametrize(
    ("node", "what"),
    [
        ({"inputs": [{"node": "a", "when": "a."}]}, "the `when` of its input 'a'"),
        ({"inputs": ["a"], "mapping": "nodes.c"}, "its mapping looks up node 'c', which is not among its inputs"),
        ({"inputs": ["a"], "mapping": {"x": "foo"}}, "its mapping of 'x' looks up 'foo'; it sees input, nodes"),
        ({"inputs": ["a"], "mapping": "item"}, "looks up 'item'"),
        ({"inputs": ["a"], "map": "item"}, "its map looks up 'item'"),
        ({"inputs": {"data": "a"}, "mapping": "input"}, "named inputs and a mapping"),
        ({"inputs": {"data": "a"}, "map": "input"}, "named inputs and a map"),
        ({"inputs": {"x": "a", "y": {"node": "a", "on": "failure"}}}, "differ in `on` or `when`"),
        ({"inputs": {"data": {"node": "$input", "when": "x"}}}, "can't have `on` or `when`"),
        ({"type": "delay"}, "say one of seconds, until and expression"),
        ({"type": "delay", "config": {"seconds": -1}}, "greater than or equal to 0"),
        ({"type": "delay", "config": {"seconds": LONGEST_SECONDS * 2}}, "less than or equal"),
        ({"type": "delay", "config": {"seconds": 1, "until": "2030-01-01T00:00:00Z"}}, "say one of"),
        ({"type": "delay", "config": {"until": "2030-01-01T00:00:00"}}, "timezone"),
        ({"type": "delay", "config": {"until": "9999-12-31T23:59:59-14:00"}}, "too far away"),
        ({"type": "delay", "config": {"expression": "lenght(input)"}}, "did you mean 'length'"),
        ({"type": "workflow"}, "workflow: Field required"),
        ({"type": "workflow", "config": {"workflow": "x", "version": 0}}, "version"),
        ({"type": "workflow", "config": {"workflow": "x", "input": "y"}}, "is not a known key"),
        ({"type": "workflow", "config": {"workflow": "x"}, "inputs": {"x": "a"}}, "takes no named inputs"),
    ],
)
def test_what_can_not_run_is_refused_with_a_sentence(node: dict[str, Any], what: str) -> None:
    found = told(**node)
    assert [problem for problem in found if problem.startswith("node 'b': ") and what in problem], found


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": [{"node": "a", "on": "sometimes"}]},
        {"map": {"over": "input", "max_concurrency": 0}},
        {"map": {"over": "input", "max_concurrency": 10_001}},
        {"map": {"over": "input", "tolerated_failures": -1}},
        {"map": {"each": "input"}},
        {"mapping": 5},
    ],
)
def test_a_misfit_of_form_is_refused_when_it_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(WorkflowInvalid):
        told(**wrong)


def test_edges_carry_their_kind() -> None:
    workflow = Workflow(
        id="w", nodes=[Node(id="a", type="t"), Node(id="b", type="t", inputs=[Input(node="a", on="failure")])]
    )
    assert [(edge.source, edge.target, edge.on) for edge in edges(workflow)] == [
        ("$start", "a", "success"), ("a", "b", "failure"), ("b", "$end", "always"),
    ]  # fmt: skip


def test_a_definition_without_the_new_words_keeps_its_digest() -> None:
    plain = Workflow(id="w", nodes=[Node(id="a", type="t"), Node(id="b", type="t", inputs=["a"])])
    assert plain.to_json() == (
        '{"format":1,"id":"w","nodes":[{"id":"a","type":"t"},{"id":"b","inputs":[{"node":"a"}],"type":"t"}]}'
    )


@pytest.mark.parametrize("node_type", ["delay", "workflow"])
def test_a_built_in_type_can_not_be_registered(node_type: str) -> None:
    with pytest.raises(ConfigurationError, match="is built in"):
        NodeRegistry().node(node_type)(step)


def test_a_builder_says_all_of_it() -> None:
    flow = WorkflowBuilder("flow", input=list[int])

    @flow.node
    def fetch(data: list[int]) -> list[int]:
        return data

    @flow.node(inputs=fetch.when("length(@) > `0`"), map="nodes.fetch", continue_on_fail=True)
    def square(data: int) -> int:
        return data * data

    @flow.node(map=flow.input)
    def each(data: int) -> int:
        return data

    @flow.node(map=fetch)
    def every(data: int) -> int:
        return data

    @flow.node(inputs=[fetch.on_failure(), square.always(when="@")], mapping={"n": "nodes.square"})
    def mend(data: Any) -> Any:
        return data

    flow.delay("wait", timedelta(minutes=2), inputs=square)
    flow.delay("until", until=datetime(2030, 1, 1, tzinfo=UTC), inputs=square)
    flow.child("ship", "shipping", version=2, output="total", inputs=square)
    flow.child("again", flow)

    nodes = {node.id: node for node in flow.workflow.nodes}
    assert find_problems(flow.workflow, flow.registry) == []
    assert nodes["square"].inputs == (Input(node="fetch", when="length(@) > `0`"),)
    assert nodes["square"].continue_on_fail
    assert nodes["each"].map == MapOver(over="input")
    assert nodes["every"].map == MapOver(over='nodes."fetch"')
    assert nodes["every"].inputs == (Input(node="fetch"),)
    assert nodes["mend"].inputs == (
        Input(node="fetch", on="failure"), Input(node="square", on="always", when="@"),
    )  # fmt: skip
    assert nodes["wait"].config == {"seconds": 120.0}
    assert nodes["until"].config == {"until": "2030-01-01T00:00:00+00:00"}
    assert nodes["ship"].config == {"workflow": "shipping", "version": 2, "output": "total"}
    assert nodes["again"].config == {"workflow": "flow"}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0, timedelta(0)),
        (1.5, timedelta(seconds=1.5)),
        ("2030-01-01T00:00:00Z", datetime(2030, 1, 1, tzinfo=UTC)),
        ("2030-01-01T01:00:00+01:00", datetime(2030, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_delay_reads_seconds_and_times(value: Any, found: Any) -> None:
    assert moment(value) == found


@pytest.mark.parametrize(
    "value", [-1, LONGEST_SECONDS + 1, float("inf"), True, None, "soon", "2030-01-01T00:00:00", [], {"seconds": 1}]
)
def test_a_delay_refuses_what_is_neither_without_showing_it(value: Any) -> None:
    with pytest.raises(ValueError, match="its expression gave") as caught:
        moment(value)
    assert "soon" not in str(caught.value)
