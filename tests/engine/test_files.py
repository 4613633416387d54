"""Workflow files say the same in JSON and YAML, and a mistake in one is named with its file and place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spanloom.engine.errors import ConfigurationError, WorkflowInvalid
from spanloom.engine.workflow import validation as graph
from spanloom.engine.workflow.definitions import Node, RetryPolicy, Workflow
from spanloom.engine.workflow.files import dump_workflow, load_workflow, workflow_json_schema

ETL = Workflow(
    id="etl",
    name="ETL, täglich",
    nodes=[
        Node(id="a", type="fetch", config={"on": True, "no": None, "day": "2026-01-01", "n": [1, 1.5, "yes"]}),
        Node(id="on", type="fetch", inputs=["a"], retry=RetryPolicy(max_attempts=3), timeout=2.5),
        Node(id="c", type="join", inputs={"left": "a", "right": "on"}, queue="slow"),
        Node(id="d", type="join", inputs=[{"node": "a"}, {"node": "c", "name": "x"}]),  # type: ignore[list-item]
    ],
)

YAML = """
# a comment
id: etl
nodes:
  - id: a
    type: fetch
    config: {url: x, when: 2026-01-01, off: on, really: true}
    retry: &often {max_attempts: 3}
  - {id: "no", type: fetch, inputs: [a], retry: *often}
  - {id: c, type: join, inputs: {left: a, right: no}}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["w.json", "w.yaml", "w.yml", "W.JSON"])
def test_a_workflow_comes_back_from_its_file_equal(tmp_path: Path, name: str) -> None:
    dump_workflow(ETL, tmp_path / name)
    assert load_workflow(tmp_path / name) == ETL
    assert load_workflow(str(tmp_path / name)).digest() == ETL.digest()


def test_a_written_file_is_as_one_would_write_it(tmp_path: Path) -> None:
    dump_workflow(ETL, tmp_path / "w.json")
    content = json.loads((tmp_path / "w.json").read_text())
    assert list(content) == ["id", "name", "nodes", "format"]
    assert content["nodes"][1]["inputs"] == ["a"]
    assert content["nodes"][2]["inputs"] == {"left": "a", "right": "on"}
    assert content["nodes"][3]["inputs"] == [{"node": "a"}, {"node": "c", "name": "x"}]

    dump_workflow(ETL, tmp_path / "w.yaml")
    assert "name: ETL, täglich\n" in (tmp_path / "w.yaml").read_text(encoding="utf-8")


def test_yaml_words_and_dates_stay_what_they_look_like(tmp_path: Path) -> None:
    workflow = load_workflow(write(tmp_path / "w.yaml", YAML))
    assert workflow.nodes[0].config == {"url": "x", "when": "2026-01-01", "off": "on", "really": True}
    assert [node.id for node in workflow.nodes] == ["a", "no", "c"]
    assert workflow.nodes[2].parents == ("a", "no")
    assert workflow.nodes[1].retry.max_attempts == 3
    assert graph.find_problems(workflow) == []


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(ETL.to_json(), encoding="utf-8-sig")
    assert load_workflow(tmp_path / "w.json") == ETL


def test_every_misfit_is_a_sentence_with_file_and_place(tmp_path: Path) -> None:
    path = write(
        tmp_path / "w.yaml", "id: etl\nnodes:\n  - {id: a, typ: t}\n  - {id: b, type: t, timeout: soon}\nextra: 1\n"
    )
    with pytest.raises(WorkflowInvalid) as caught:
        load_workflow(path)
    assert caught.value.workflow_id == "etl"
    assert caught.value.problems == (
        f"{path}: nodes[0].type: Field required",
        f"{path}: nodes[0].typ: is not a known key",
        f"{path}: nodes[1].timeout: Input should be a valid number, unable to parse string as a number",
        f"{path}: extra: is not a known key",
    )


def test_a_file_in_a_newer_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkflowInvalid, match="format 99 and this release reads up to 1: upgrade spanloom"):
        load_workflow(write(tmp_path / "w.json", '{"format": 99, "id": "w", "nodes": []}'))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("w.json", '{"id": "w",\n "nodes": [}', "w.json is not JSON: Expecting value, line 2 column 12"),
        ("w.json", "", "w.json is not JSON: Expecting value, line 1 column 1"),
        ("w.json", "[]", "w.json holds no workflow: it must be a mapping with id and nodes"),
        ("w.json", '{"id": 1, "id": 2}', "w.json can't be used: the key 'id' stands twice in one object"),
        ("w.json", '{"a":' * 100_000, "w.json can't be used: it is nested too deep"),
        ("w.yaml", "", "w.yaml holds no workflow"),
        ("w.yaml", "id: [a", "w.yaml is not YAML: expected ',' or ']', but got '<stream end>', line 1 column 7"),
        ("w.yaml", "id: a\nid: b", "w.yaml is not YAML: the key 'id' stands twice in one mapping, line 2 column 1"),
        ("w.yaml", "id: a\n---\nid: b", "w.yaml is not YAML: but found another document, line 2 column 1"),
        ("w.yaml", "a: !!python/object/apply:os.getcwd []", "w.yaml is not YAML: could not determine a constructor"),
        ("w.yaml", "a: *nowhere", "w.yaml is not YAML: found undefined alias 'nowhere', line 1 column 4"),
        ("w.yaml", "a: \x00", "w.yaml is not YAML: "),
        ("w.yaml", "[" * 100_000, "w.yaml can't be used: it is nested too deep"),
        ("w.toml", "id = 1", "w.toml is no workflow file by its name; it must end in .json, .yaml or .yml"),
        ("w", "{}", "w is no workflow file by its name"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_workflow(write(tmp_path / name, text))
    assert str(caught.value).startswith(f"{tmp_path}/{sentence}")


def test_a_missing_file_a_directory_and_binary_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no workflow file .*/none\.json"):
        load_workflow(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"folder\.json can't be read: Is a directory"):
        load_workflow(tmp_path / "folder.json")
    (tmp_path / "w.json").write_bytes(b"{\xff}")
    with pytest.raises(ConfigurationError, match=r"w\.json is not UTF-8 text \(at byte 1\)"):
        load_workflow(tmp_path / "w.json")


def test_writing_to_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must end in"):
        dump_workflow(ETL, tmp_path / "w.txt")
    assert list(tmp_path.iterdir()) == []


def test_the_schema_describes_what_files_may_hold() -> None:
    schema = workflow_json_schema()
    json.dumps(schema)
    assert schema["required"] == ["id", "nodes"]
    node: dict[str, Any] = schema["$defs"]["Node"]
    assert node["additionalProperties"] is False
    assert node["properties"]["id"]["pattern"] == "^[A-Za-z0-9_-]{1,200}$"
    assert [one["type"] for one in node["properties"]["inputs"]["anyOf"]] == ["string", "array", "object"]
    assert node["properties"]["timeout"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0}


def test_yaml_is_loaded_by_those_who_use_it_only() -> None:
    code = "import sys, spanloom.engine.workflow.files; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
