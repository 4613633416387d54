"""Definitions are frozen, round-trip through JSON, and keep their digest across spellings of the same content."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from spanloom.engine.errors import WorkflowInvalid
from spanloom.engine.workflow.definitions import DEFINITION_FORMAT, Input, Node, RetryPolicy, Workflow


def etl() -> Workflow:
    return Workflow(
        id="etl",
        name="ETL",
        nodes=[
            Node(id="a", type="fetch", config={"url": "x", "deep": {"list": (1, 2)}}, timeout=timedelta(minutes=1)),
            Node(id="b", type="fetch", inputs=["a"], retry=RetryPolicy(max_attempts=3, delay=timedelta(seconds=2))),
            Node(id="c", type="join", inputs={"left": "a", "right": "b", "start": "$input"}, queue="slow"),
        ],
    )


def test_a_workflow_comes_back_from_its_json_equal() -> None:
    workflow = etl()
    read = Workflow.from_json(workflow.to_json())
    assert read == workflow
    assert read.to_json() == workflow.to_json()
    assert read.digest() == workflow.digest()


def test_inputs_may_be_written_in_any_of_their_forms() -> None:
    edge = (Input(node="a"),)
    assert Node(id="b", type="t", inputs="a").inputs == edge
    assert Node(id="b", type="t", inputs=["a"]).inputs == edge
    assert Node(id="b", type="t", inputs=[Input(node="a")]).inputs == edge
    assert Node.model_validate({"id": "b", "type": "t", "inputs": [{"node": "a"}]}).inputs == edge
    assert Node(id="b", type="t", inputs={"x": "a"}).inputs == (Input(node="a", name="x"),)


def test_parents_are_named_once_and_without_the_initial_data() -> None:
    node = Node(id="c", type="t", inputs={"x": "b", "y": "a", "z": "b", "start": "$input"})
    assert node.parents == ("b", "a")


def test_durations_are_seconds_or_timedeltas() -> None:
    assert Node(id="a", type="t", timeout=timedelta(minutes=2)).timeout == 120.0
    assert Node(id="a", type="t", timeout=2).timeout == 2.0
    assert RetryPolicy(delay=timedelta(milliseconds=5)).delay == 0.005


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), timedelta(0), "soon"])
def test_a_timeout_that_is_no_positive_duration_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        Node(id="a", type="t", timeout=wrong)


def test_definitions_cannot_be_changed() -> None:
    workflow = etl()
    with pytest.raises(ValidationError):
        workflow.name = "other"
    with pytest.raises(ValidationError):
        workflow.nodes[0].id = "other"


def test_a_node_keeps_its_own_copy_of_its_config() -> None:
    config: dict[str, Any] = {"urls": ["x"]}
    node = Node(id="a", type="t", config=config)
    config["urls"].append("y")
    config["more"] = 1
    assert node.config == {"urls": ["x"]}


def test_two_nodes_without_config_share_none() -> None:
    assert Node(id="a", type="t").config is not Node(id="b", type="t").config


def test_a_config_that_holds_itself_is_refused() -> None:
    config: dict[str, Any] = {}
    config["self"] = config
    with pytest.raises(ValidationError, match="holds itself"):
        Node(id="a", type="t", config=config)


def test_the_json_leaves_defaults_out_and_names_the_format() -> None:
    content = json.loads(Workflow(id="w", nodes=[Node(id="a", type="t", queue="default")]).to_json())
    assert content == {"format": DEFINITION_FORMAT, "id": "w", "nodes": [{"id": "a", "type": "t"}]}


def test_the_digest_is_that_of_the_content_however_it_is_written() -> None:
    short = Workflow(id="w", nodes=[Node(id="a", type="t", config={"x": 1, "y": [1]})])
    long = Workflow(
        id="w",
        name="",
        nodes=[Node(id="a", type="t", config={"y": (1,), "x": 1}, retry=RetryPolicy(max_attempts=1), inputs=())],
    )
    assert short.digest() == long.digest()
    # Pinned: a release that changed it would make a new version of every workflow there is.
    assert short.digest() == "a92a3b8bbfcae666067d2dc5cd3519696dc8e2f0150e4c289da483fc020567a2"


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "n"},
        {"nodes": [Node(id="a", type="u")]},
        {"nodes": [Node(id="a", type="t", config={"x": 0})]},
        {"nodes": [Node(id="a", type="t", timeout=1)]},
        {"nodes": [Node(id="a", type="t"), Node(id="b", type="t")]},
    ],
    ids=str,
)
def test_the_digest_changes_with_the_content(changed: dict[str, Any]) -> None:
    base: dict[str, Any] = {"id": "w", "nodes": [Node(id="a", type="t")]}
    assert Workflow(**base).digest() != Workflow(**base | changed).digest()


def test_a_format_newer_than_this_release_is_refused_with_one_sentence() -> None:
    text = json.dumps({"format": DEFINITION_FORMAT + 1, "id": "w", "nodes": [{"id": "a", "kind": "new"}], "new": 1})
    with pytest.raises(WorkflowInvalid) as caught:
        Workflow.from_json(text)
    assert str(caught.value) == (
        f"workflow 'w' is not valid: it is written in format {DEFINITION_FORMAT + 1} and this release reads up to "
        f"{DEFINITION_FORMAT}: upgrade spanloom"
    )


def test_every_misfit_of_a_definition_is_a_sentence_with_its_place() -> None:
    content = {
        "id": "w",
        "nodes": [
            {"id": "a", "typ": "t"},
            {"id": "b", "type": "t", "inputs": [{"node": 7}], "timeout": 0},
            {"id": "c", "type": "t", "retry": {"max_attempts": 0, "backoff": "never"}},
        ],
    }
    with pytest.raises(WorkflowInvalid) as caught:
        Workflow.read(content)
    assert caught.value.workflow_id == "w"
    assert caught.value.problems == (
        "nodes[0].type: Field required",
        "nodes[0].typ: is not a known key",
        "nodes[1].inputs[0].node: Input should be a valid string",
        "nodes[1].timeout: Input should be greater than 0",
        "nodes[2].retry.max_attempts: Input should be greater than or equal to 1",
        "nodes[2].retry.backoff: Input should be 'fixed' or 'exponential'",
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"w"', "[" * 100_000])
def test_text_that_is_no_workflow_is_refused(text: str) -> None:
    with pytest.raises(WorkflowInvalid):
        Workflow.from_json(text)


def test_odd_ids_and_an_empty_graph_are_left_to_the_graph_checks() -> None:
    assert Workflow(id="odd id", nodes=[]).nodes == ()
    assert Node(id="a b", type="", queue="x.y").id == "a b"
