"""Definitions have bounds on size, number and depth, which end their reading early, with a sentence."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spanloom.engine import ConfigurationError, Node, Workflow, WorkflowInvalid
from spanloom.engine.limits import (
    MAX_CONFIG_DEPTH,
    MAX_DEFINITION_BYTES,
    MAX_DEFINITION_VALUES,
    MAX_EDGES,
    MAX_NAME,
    MAX_NODES,
)
from spanloom.engine.workflow.files import (
    _each_key_once,  # pyright: ignore[reportPrivateUsage]  the decoder makes keys of plain text
    load_workflow,
)
from spanloom.engine.workflow.validation import find_problems, validate

FEW_BYTES = 100_000_000
LAUGHS = "\n".join(["l0: &l0 [ha, ha]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 10))])


@contextmanager
def few_bytes() -> Generator[None]:
    tracemalloc.start()
    try:
        yield
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < FEW_BYTES


def nested(levels: int) -> Any:
    """Return a config of so many levels."""
    config: Any = {}
    for _ in range(levels - 1):
        config = {"a": config}
    return config


def definition(**fields: Any) -> dict[str, Any]:
    return {"id": "w", "nodes": [{"id": "a", "type": "t", **fields}]}


CONTENTS = {
    "many nodes": ({"id": "w", "nodes": [{}] * (MAX_NODES + 1)}, f"has 25,001 nodes, more than {MAX_NODES:,}"),
    "numbers as nodes": ({"id": "w", "nodes": [1] * 100_000}, "has 100,000 nodes"),
    "many inputs": (definition(inputs=["a"] * (MAX_EDGES + 1)), f"has 100,001 edges, more than {MAX_EDGES:,}"),
    "many named inputs": (definition(inputs={f"p{n}": "a" for n in range(MAX_EDGES + 1)}), "has 100,001 edges"),
    "many keys": (
        {"id": "w", "nodes": [], **{f"k{n}": n for n in range(150_001)}},
        "more than 300,000 keys and values",
    ),
    "a large list": (definition(config={"a": [0] * MAX_DEFINITION_VALUES}), "more than 300,000 keys and values"),
    "a long text": (definition(config={"a": "x" * (MAX_DEFINITION_BYTES + 1)}), "larger than 8 MiB"),
    "a long key": (definition(config={"x" * (MAX_DEFINITION_BYTES + 1): 1}), "larger than 8 MiB"),
    "deep": (definition(config=nested(MAX_CONFIG_DEPTH + 1)), "nested more than 100 levels deep"),
    "deeper": (definition(config=nested(400)), "nested more than 100 levels deep"),
    "deep in place of nodes": ({"id": "w", "nodes": nested(490)}, "nested more than 100 levels deep"),
}


@pytest.mark.parametrize(("content", "told"), CONTENTS.values(), ids=CONTENTS)
def test_a_definition_over_a_bound_is_refused_with_a_sentence(content: Any, told: str) -> None:
    with few_bytes(), pytest.raises(WorkflowInvalid) as caught:
        Workflow.read(content)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("content", "told"), CONTENTS.values(), ids=CONTENTS)
def test_a_file_over_a_bound_is_refused_with_a_sentence(content: Any, told: str, tmp_path: Path) -> None:
    file = tmp_path / "w.json"
    file.write_text(json.dumps(content))

    with pytest.raises((WorkflowInvalid, ConfigurationError)) as caught:
        load_workflow(file)
    assert told in str(caught.value) or "300,000" in str(caught.value) or "8 MiB" in str(caught.value)
    with pytest.raises(WorkflowInvalid):
        Workflow.from_json(file.read_text())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "more than 300,000 keys and values"),
        (f"id: w\nnodes: [{{id: a, type: t, config: {{{LAUGHS.replace(chr(10), ', ')}}}}}]", "more than 300,000"),
        ("a: &a [*a, *a]\nb: [*a, *a]", "more than 300,000 keys and values"),
        ("[" * 200 + "]" * 200, "nested more than 100 levels deep"),
        ("- " * 200 + "a", "nested more than 100 levels deep"),
        ("\n".join(" " * n + "a:" for n in range(200)), "nested more than 100 levels deep"),
        ("[a" + ",a" * 30_000 + "]", "more than 300,000 keys and values"),
        ("a: " + "x" * MAX_DEFINITION_BYTES, "larger than 8 MiB"),
    ],
    ids=["laughs", "laughs inside", "itself", "flow", "sequences", "mappings", "list", "text"],
)
def test_yaml_is_bounded_while_it_is_read(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanloom.engine.workflow.definition_bounds.MAX_DEFINITION_VALUES", 30_000)
    file = tmp_path / "w.yaml"
    file.write_text(text)

    with few_bytes(), pytest.raises((ConfigurationError, WorkflowInvalid)) as caught:
        load_workflow(file)
    assert told in str(caught.value)


def test_without_the_parser_in_c_yaml_has_the_same_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    file = tmp_path / "w.yaml"
    file.write_text(LAUGHS)

    with pytest.raises(ConfigurationError, match="more than 300,000"):
        load_workflow(file)


def test_an_alias_that_is_used_a_few_times_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("id: w\nnodes:\n- {id: a, type: t, retry: &r {max_attempts: 3}}\n- {id: b, type: t, retry: *r}\n")

    assert [node.retry.max_attempts for node in load_workflow(file).nodes] == [3, 3]


def test_a_key_that_stands_twice_is_found_in_one_pass(tmp_path: Path) -> None:
    class Counted(str):
        """A key that counts how often it is compared with another one."""

        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return str.__eq__(self, other)

    pairs = [(Counted(f"k{number}"), number) for number in range(20_000)]
    with pytest.raises(ValueError, match="the key 'k7' stands twice"):
        _each_key_once([*pairs, (Counted("k7"), 0)])
    assert Counted.compared < 1_000


@pytest.mark.parametrize("levels", [MAX_CONFIG_DEPTH, MAX_CONFIG_DEPTH + 1, 250, 400, 490, 600, 5_000])
def test_a_config_is_kept_up_to_a_depth_and_refused_below_it(levels: int) -> None:
    if levels > MAX_CONFIG_DEPTH:
        with pytest.raises(ValidationError, match="nested more than 100 levels deep"):
            Node(id="a", type="t", config=nested(levels))
        return
    workflow = Workflow(id="w", nodes=[Node(id="a", type="t", config=nested(levels))])
    assert find_problems(workflow) == []
    assert Workflow.from_json(workflow.to_json()) == workflow


def test_a_definition_of_many_models_has_the_bounds_of_one_that_is_read() -> None:
    with pytest.raises(WorkflowInvalid, match="larger than 8 MiB"):
        validate(Workflow(id="w", nodes=[Node(id=f"n{n}", type="t", config={"x": "x" * 1_000_000}) for n in range(9)]))
    with pytest.raises((WorkflowInvalid, ValidationError), match="has 25,001 nodes"):
        validate(Workflow(id="w", nodes=[Node(id="n", type="t")] * (MAX_NODES + 1)))


@pytest.mark.parametrize(
    "node",
    [
        Node(id="a", type="t" * 1_000_000),
        Node(id="a", type="t", queue="q" * 1_000_000),
        Node(id="a" * 1_000_000, type="t"),
        Node(id="a", type="t", inputs={"p" * 1_000_000: "$input"}),
        Node(id="a", type="t", inputs=["b" * 1_000_000]),
        Node(id="a", type="t", mapping={"p" * 1_000_000: "input"}),
        Node(id="a", type="t", retry={"max_attempts": 2, "retry_on": ["E" * 1_000_000]}),  # type: ignore[arg-type]
    ],
)
def test_a_long_name_is_refused_and_shown_short(node: Node) -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        validate(Workflow(id="w", nodes=[node]))
    assert len(str(caught.value)) < 10 * MAX_NAME


def test_expressions_have_a_bound_together_and_are_not_compiled_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: object) -> None:
        raise AssertionError("an expression was compiled")

    monkeypatch.setattr("spanloom.engine.workflow.compiled.Expression", compiled)
    mapping = {f"n{number}": "a" * 4_000 for number in range(600)}

    with pytest.raises(WorkflowInvalid, match="its expressions have 2,400,000 characters"):
        validate(Workflow(id="w", nodes=[Node(id="a", type="t", mapping=mapping)]))


def test_a_message_shows_some_of_many_problems() -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        Workflow.read({"id": "w", "nodes": [{}] * 1_000})

    assert len(caught.value.problems) == 2_000
    assert str(caught.value).endswith("and 1,900 more problems")


def test_a_workflow_of_ten_thousand_nodes_is_within_the_bounds(tmp_path: Path) -> None:
    nodes = [
        {"id": f"n{n}", "type": "t", "inputs": [f"n{n - 1}"] if n else [], "config": {"n": n}} for n in range(10_000)
    ]
    file = tmp_path / "w.json"
    file.write_text(json.dumps({"id": "w", "nodes": nodes}))

    assert len(load_workflow(file).nodes) == 10_000
