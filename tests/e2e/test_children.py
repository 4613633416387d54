"""Behaviours 4 and 16 to 19: a workflow in a workflow, to any end and to a bounded depth."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from e2e.support.harness import System
from spanloom.engine import ExecutionFilter, ExecutionStatus, Node, Workflow


def child(
    node_id: str, workflow: str, *inputs: Any, config: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": "workflow",
        "config": {"workflow": workflow, **(config or {})},
        "inputs": list(inputs),
        **more,
    }


def echo(node_id: str, *inputs: Any, **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": "echo", "inputs": list(inputs), **more}


def test_a_child_with_a_diamond_and_several_sinks_runs_once_and_its_output_is_mapped(system: System) -> None:
    inner = system.register(
        echo("top"),
        echo("left", "top"),
        echo("right", "top"),
        {"id": "join", "type": "count", "inputs": ["left", "right"]},
        echo("other", "left"),
        name="inner",
    )
    outer = system.register(
        echo("before"),
        child(
            "call", inner, "before", config={"output": "{n: join, x: other.x}"}, mapping={"x": "nodes.before.deep.x"}
        ),
        echo("after", "call"),
    )

    execution = system.run(outer, {"deep": {"x": 7}}, metadata={"order": "7"}, priority="high")

    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.output == {"n": 2, "x": 7}
    (made,) = system.engine.store.get_child_executions(execution.id)
    assert (made.workflow_id, made.status, made.depth) == (inner, ExecutionStatus.COMPLETED, 1)
    assert (made.parent_execution_id, made.parent_node_id, made.parent_item) == (execution.id, "call", 0)
    assert (made.input, made.metadata, made.priority) == ({"x": 7}, {"order": "7"}, "high")
    assert system.engine.store.get_parent_execution(made.id) == system.engine.store.get_execution(execution.id)
    assert Counter(system.ran(made.id)) == Counter(["top", "left", "right", "join", "other"])
    assert system.ran(execution.id) == ["before", "after"]
    assert made.trace_parent is not None
    assert execution.trace_parent is not None
    assert made.trace_parent.split("-")[1] == execution.trace_parent.split("-")[1]


def test_grandchildren_complete_upwards(system: System) -> None:
    leaf = system.register(echo("leaf"), name="leaf")
    middle = system.register(child("down", leaf), echo("up", "down"), name="middle")
    top = system.register(child("down", middle), child("again", middle, "down"))

    execution = system.run(top, {"v": 1})

    assert execution.output == {"v": 1}
    assert [one.depth for one in system.engine.store.get_child_executions(execution.id)] == [1, 1]


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_childs_failure_reaches_the_parent_which_may_try_another_child(system: System, attempts: int) -> None:
    inner = system.register(echo("ok"), {"id": "bad", "type": "boom", "inputs": ["ok"]}, name="inner")
    outer = system.register(child("call", inner, retry={"max_attempts": attempts, "delay": 0}), echo("after", "call"))

    execution = system.run(outer, 1)

    assert execution.status is ExecutionStatus.FAILED
    assert execution.error is not None
    assert (execution.error["node_id"], execution.error["type"]) == ("call", "ChildFailed")
    assert "at node 'bad': ConnectionError: told to" in execution.error["message"]
    children = system.engine.store.get_child_executions(execution.id)
    assert [one.status for one in children] == [ExecutionStatus.FAILED] * attempts
    assert system.ran(execution.id) == []


def test_an_unknown_child_workflow_fails_the_node_and_leaves_nothing(system: System) -> None:
    for config in ({}, {"version": 9}):
        known = system.register(echo("a"), name="known")
        workflow = known if config else "no-such-workflow"
        execution = system.run(system.register(child("call", workflow, config=config)), 1)
        assert execution.error is not None
        assert (execution.error["node_id"], execution.error["type"]) == ("call", "UnknownWorkflow")
        assert workflow in execution.error["message"]
        assert system.engine.store.get_child_executions(execution.id) == []


def test_a_deactivated_child_workflow_fails_the_node(system: System) -> None:
    known = system.register(echo("a"), name="known")
    system.engine.store.deactivate_workflow(known)
    execution = system.run(system.register(child("call", known)), 1)
    assert execution.error is not None
    assert "deactivated" in execution.error["message"]


def test_continue_on_fail_and_failure_edges_hold_for_children_too(system: System) -> None:
    inner = system.register({"id": "bad", "type": "boom"}, name="inner")
    execution = system.run(
        system.register(
            child("soft", inner, continue_on_fail=True),
            echo("after", "soft"),
            child("hard", inner),
            echo("mend", {"node": "hard", "on": "failure"}),
        )
    )

    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.output["after"]["error"]["type"] == "ChildFailed"
    assert execution.output["mend"]["error"]["node_id"] == "hard"


def test_a_workflow_that_calls_itself_stops_at_the_depth_limit(system: System) -> None:
    workflow_id = f"self-{system.kind}"
    config = {"workflow": workflow_id}
    system.engine.register_workflow(Workflow(id=workflow_id, nodes=[Node(id="again", type="workflow", config=config)]))

    execution = system.run(workflow_id)

    assert execution.status is ExecutionStatus.FAILED
    everyone = system.engine.store.list_executions(ExecutionFilter(workflow_id=workflow_id)).items
    assert sorted(one.depth for one in everyone) == list(range(10))
    assert {one.status for one in everyone} == {ExecutionStatus.FAILED}
    deepest = max(everyone, key=lambda one: one.depth)
    assert deepest.error is not None
    assert deepest.error["type"] == "DepthExceeded"
    assert "SPANLOOM_MAX_DEPTH" in deepest.error["message"]


def test_executions_and_children_keep_their_version(system: System) -> None:
    gate = f"version-{system.kind}"
    inner = f"inner-versions-{system.kind}"

    def register_inner(value: str) -> int:
        nodes = [Node(id="v", type="value", config={"value": value})]
        return system.engine.register_workflow(Workflow(id=inner, nodes=nodes))

    assert register_inner("one") == 1
    nodes = [
        {"id": "wait", "type": "gate", "config": {"gate": gate}},
        child("latest", inner, "wait"),
        child("pinned", inner, "wait", config={"version": 1}),
    ]
    outer = system.register(*nodes)
    execution_id = system.engine.enqueue_workflow(outer)
    system.arrived(gate)
    # when both get newer versions while the first execution runs
    assert register_inner("two") == 2
    newer = Workflow.model_validate(
        {"id": outer, "nodes": [{"id": "new", "type": "value", "config": {"value": "new"}}]}
    )
    assert system.engine.register_workflow(newer) == 2
    system.open_gate(gate)

    # then it keeps its own, and the unpinned child takes the latest at its start
    execution = system.engine.wait(execution_id, timeout=60)
    assert (execution.version, execution.output) == (1, {"latest": "two", "pinned": "one"})
    assert system.run(outer).output == "new"


def test_cancelling_pausing_and_resuming_a_parent_reach_its_children(system: System) -> None:
    gate = f"family-{system.kind}"
    leaf = system.register({"id": "wait", "type": "gate", "config": {"gate": gate}}, echo("next", "wait"), name="leaf")
    middle = system.register(child("leaf", leaf), name="middle")
    top = system.register(child("middle", middle), echo("end", "middle"))

    def family(execution_id: str) -> list[str]:
        (below,) = system.engine.store.get_child_executions(execution_id)
        (lowest,) = system.engine.store.get_child_executions(below.id)
        return [execution_id, below.id, lowest.id]

    def statuses(ids: list[str]) -> set[str]:
        found = [system.engine.store.get_execution(one) for one in ids]
        return {one.status.value for one in found if one is not None}

    handle = system.engine.start(top, 1)
    system.arrived(gate)
    ids = family(handle.id)
    assert handle.pause() is True
    assert statuses(ids) == {"paused"}
    system.open_gate(gate)
    system.until(ids[2], "node.completed", "wait")
    assert system.statuses(ids[2])["next"] == "held"  # it runs on, and nothing after it
    assert handle.resume() is True
    assert handle.result(timeout=60) == "wait"
    assert statuses(ids) == {"completed"}

    handle = system.engine.start(top, 1)
    system.arrived(gate)
    ids = family(handle.id)
    assert handle.cancel() is True
    assert statuses(ids) == {"cancelled"}
    system.open_gate(gate)
    assert all(run in ("cancelled",) for one in ids for run in system.statuses(one).values())


def test_a_child_cancelled_by_itself_fails_its_parents_node(system: System) -> None:
    gate = f"lone-{system.kind}"
    inner = system.register({"id": "wait", "type": "gate", "config": {"gate": gate}}, name="inner")
    handle = system.engine.start(system.register(child("call", inner)))
    system.arrived(gate)
    (made,) = system.engine.store.get_child_executions(handle.id)

    assert system.engine.cancel_execution(made.id) is True
    system.open_gate(gate)

    execution = system.engine.wait(handle.id, timeout=30)
    assert execution.error is not None
    assert execution.error["type"] == "ChildFailed"
    assert "was cancelled" in execution.error["message"]


def test_a_hundred_children_of_one_parent_complete(system: System) -> None:
    inner = system.register(echo("a"), echo("b", "a"), name="inner")
    outer = system.register(child("each", inner, map="input"), {"id": "n", "type": "echo", "inputs": ["each"]})

    execution = system.run(outer, list(range(100)), timeout=120)

    assert execution.output == list(range(100))
    assert len(system.engine.store.get_child_executions(execution.id)) == 100
