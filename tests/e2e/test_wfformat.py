"""What a file in WfFormat says: its tasks, its edges however they are told, and what is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from e2e.support.wf_instances import layers, written

sys.path.append(str(Path(__file__).parents[2] / "examples"))  # where its users run it

import wfcommons
import wfformat
from wfformat import InstanceInvalid

from spanloom.engine.workflow.validation import validate


@pytest.mark.parametrize("told_by", ["both", "child", "parent"])
def test_an_edge_counts_once_however_it_is_told(told_by: str) -> None:
    instance = wfformat.instance_from(written(layers(5, 8, seed=3), told_by=told_by), "x")

    assert {task.id: sorted(task.parents) for task in instance.tasks.values()} == {
        task: sorted(parents) for task, parents in layers(5, 8, seed=3).items()
    }


def test_tasks_stand_after_their_parents_whatever_their_order_in_the_file() -> None:
    backwards = dict(reversed(list(layers(6, 10, seed=5).items())))

    instance = wfformat.instance_from(written(backwards), "x")

    seen: set[str] = set()
    for task in instance.tasks.values():
        assert seen.issuperset(task.parents)
        seen.add(task.id)
    assert seen == set(backwards)


def test_ids_that_differ_only_in_odd_characters_or_far_behind_become_different_nodes() -> None:
    odd = ["a b", "a/b", "a.b", "a-b", "", " ", "é", "日本", "x" * 200, "x" * 201, "x" * 201 + "y", "A-b", "a\u0000b"]
    taken = wfformat.node_ids_of(odd)["a b"]  # an id that looks like one that is made

    found = wfformat.node_ids_of([*odd, taken])

    assert len(set(found.values())) == len(odd) + 1
    assert found["a-b"] == "a-b"
    assert found["x" * 200] == "x" * 200
    assert found[taken] == taken
    instance = wfformat.instance_from(written({task: [] for task in [*odd, taken]}), "odd")
    validate(wfcommons.to_workflow(instance, 1.0))  # the engine takes all of them
    assert {node.config["task"] for node in wfcommons.to_workflow(instance, 1.0).nodes} == {*odd, taken}


def test_the_critical_path_is_the_longest_way_in_time_not_in_edges() -> None:
    parents = {"a": [], "b": ["a"], "c": ["b"], "slow": [], "end": ["c", "slow"]}
    runtimes = {"a": 1.0, "b": 1.0, "c": 1.0, "slow": 10.0}  # none is known of the last

    instance = wfformat.instance_from(written(parents, runtimes), "x")

    assert instance.critical_path() == 10.0
    assert instance.critical_path(0.5) == 5.0
    assert instance.tasks["end"].runtime is None


def test_only_files_that_a_parent_wrote_are_expected_of_the_parents() -> None:
    content = written({"a": [], "b": ["a"], "c": ["b"]})
    content["workflow"]["specification"]["tasks"][2]["inputFiles"] = ["a.out", "b.out", "raw.txt"]

    assert wfformat.instance_from(content, "x").tasks["c"].reads == ("b.out",)


def _without(*path: str) -> dict[str, Any]:
    content = written({"a": [], "b": ["a"]})
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return content


def _with_task(**changes: Any) -> dict[str, Any]:
    content = written({"a": [], "b": ["a"]})
    content["workflow"]["specification"]["tasks"][1] |= changes
    return content


def _with_runtime(value: Any) -> dict[str, Any]:
    content = written({"a": []})
    content["workflow"]["execution"]["tasks"] = [{"id": "a", "runtimeInSeconds": value}]
    return content


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "it holds a JSON list, not an object with a workflow"),
        (None, "it holds a JSON null, not an object"),
        (_without("workflow"), "workflow is missing"),
        (_without("workflow", "specification"), "workflow.specification is missing"),
        (_without("workflow", "specification", "tasks"), "workflow.specification.tasks is missing"),
        (written({}), "workflow.specification.tasks is empty: there is nothing to run"),
        (_with_task(id=7), r"workflow.specification.tasks\[1\].id: .*string"),
        (_with_task(parents="a"), r"workflow.specification.tasks\[1\].parents: "),
        (_with_task(parents=["z"]), "task 'b' has the parent 'z', which is no task"),
        (_with_task(children=["z"]), "task 'b' has the child 'z', which is no task"),
        (_with_task(id="a"), "task id 'a' is used 2 times"),
        (_with_task(children=["a"]), "nodes wait for each other in a cycle: a → b → a"),
        (_with_task(parents=["b"]), "it is an input of itself"),
        (_with_runtime(-1), r"workflow.execution.tasks\[0\].runtimeInSeconds: .*greater than or equal to 0"),
        (_with_runtime(float("nan")), r"workflow.execution.tasks\[0\].runtimeInSeconds: .*finite"),
        (_with_runtime("soon"), r"workflow.execution.tasks\[0\].runtimeInSeconds: .*number"),
    ],
)
def test_a_file_that_can_not_be_run_is_told_what_is_wrong(content: Any, sentence: str) -> None:
    with pytest.raises(InstanceInvalid, match=sentence):
        wfformat.instance_from(content, "x")


def test_many_mistakes_are_counted_rather_than_listed() -> None:
    content = written({"a": []})
    content["workflow"]["specification"]["tasks"][0]["parents"] = [f"missing {number}" for number in range(50)]

    with pytest.raises(InstanceInvalid, match=r"'missing 0'.*'missing 4', which is no task; and 45 more"):
        wfformat.instance_from(content, "x")


@pytest.mark.parametrize("execution", [None, {}, {"tasks": None}, {"tasks": [{"id": "unknown"}]}])
def test_an_instance_without_recorded_runtimes_takes_no_time(execution: Any) -> None:
    content = written({"a": [], "b": ["a"]})
    content["workflow"]["execution"] = execution

    assert wfformat.instance_from(content, "x").critical_path() == 0.0
