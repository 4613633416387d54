"""Behaviours 7 and 10: routing, conditions, skips that travel, and failures that are handled or are not."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.support.harness import System
from spanloom.engine import ExecutionStatus


def node(node_id: str, node_type: str = "name", *inputs: Any, **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": node_type, "inputs": list(inputs), **more}


def edge(source: str, **how: Any) -> dict[str, Any]:
    return {"node": source, **how}


def diamond_with_route(to: list[str]) -> list[dict[str, Any]]:
    """start → (left, right); left → below → deeper; join of below and right."""
    return [
        node("start", "route", config={"to": to}),
        node("left", "name", "start"),
        node("right", "name", "start"),
        node("below", "name", "left"),
        node("deeper", "name", "below"),
        node("join", "collect", "below", "right"),
    ]


def test_only_the_named_successors_run_and_the_skip_reaches_their_descendants(system: System) -> None:
    execution = system.run(system.register(*diamond_with_route(["right"])))

    assert execution.status is ExecutionStatus.COMPLETED
    assert system.statuses(execution.id) == {
        "start": "completed", "left": "skipped", "below": "skipped", "deeper": "skipped",
        "right": "completed", "join": "completed",
    }  # fmt: skip
    assert system.data(execution.id)["join"] == {"right": "right"}  # the skipped parent gives nothing
    assert sorted(system.ran(execution.id)) == ["join", "right", "start"]


def test_naming_none_skips_all_that_follows_and_completes(system: System) -> None:
    execution = system.run(system.register(*diamond_with_route([])))

    assert execution.status is ExecutionStatus.COMPLETED
    assert set(system.statuses(execution.id).values()) == {"completed", "skipped"}
    assert system.ran(execution.id) == ["start"]
    assert execution.output == {}  # no sink has data


def test_routing_to_a_stranger_is_a_permanent_failure_that_names_the_successors(system: System) -> None:
    flow = diamond_with_route(["join"])
    flow[0]["retry"] = {"max_attempts": 5, "delay": 0}
    execution = system.run(system.register(*flow))

    assert execution.status is ExecutionStatus.FAILED
    assert execution.error is not None
    assert execution.error["type"] == "RoutingFailed"
    assert "'join'" in execution.error["message"]
    assert "'left', 'right'" in execution.error["message"]
    assert system.ran(execution.id) == ["start"]


@pytest.mark.parametrize(("total", "ran"), [(5, {"small", "always"}), (50, {"large", "always"})])
def test_conditions_over_the_data_choose(system: System, total: int, ran: set[str]) -> None:
    execution = system.run(
        system.register(
            node("order", "echo"),
            node("small", "echo", edge("order", when="total < `10`")),
            node("large", "echo", edge("order", when="total >= `10`")),
            node("always", "echo", edge("order", on="always")),
            node("never", "echo", edge("order", on="failure")),
        ),
        {"total": total},
    )

    completed = {name for name, status in system.statuses(execution.id).items() if status == "completed"}
    assert completed == {"order"} | ran
    assert execution.output == {name: {"total": total} for name in ran}


def test_a_condition_that_can_not_be_evaluated_fails_the_node_that_routed(system: System) -> None:
    execution = system.run(
        system.register(node("order", "echo"), node("b", "echo", edge("order", when="length(@) > `1`"))), 5
    )

    assert execution.error is not None
    assert (execution.error["node_id"], execution.error["type"]) == ("order", "RoutingFailed")
    assert "length() takes" in execution.error["message"]
    assert system.ran(execution.id) == ["order"]


def test_a_mapping_makes_the_data_and_one_that_fails_fails_the_node_it_feeds(system: System) -> None:
    flow = [
        node("a", "value", config={"value": {"lines": [{"n": 2}, {"n": 3}], "name": "x"}}),
        node("sum", "echo", "a", mapping={"sum": "sum(nodes.a.lines[].n)", "who": "input.who", "none": "nodes.a.zzz"}),
        node("odd", "echo", "a", mapping="sum(nodes.a.name)", retry={"max_attempts": 3, "delay": 0}),
    ]
    assert system.run(system.register(*flow[:2]), {"who": "me"}).output == {"sum": 5, "who": "me", "none": None}
    execution = system.run(system.register(*flow))
    assert execution.error is not None
    assert (execution.error["node_id"], execution.error["type"]) == ("odd", "PermanentError")
    assert "sum() takes array-number, not string" in execution.error["message"]
    assert "odd" not in system.ran(execution.id)


def test_a_failure_edge_handles_the_failure_and_carries_the_error(system: System) -> None:
    execution = system.run(
        system.register(
            node("pay", "boom", config={"how": "permanent"}),
            node("ship", "name", "pay"),
            node("refund", "collect", edge("pay", on="failure")),
            node("report", "collect", edge("pay", on="always"), "refund"),
        )
    )

    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.error is None
    error = {"error": {"type": "PermanentError", "message": "told to", "node_id": "pay"}}
    assert system.statuses(execution.id) == {
        "pay": "failed", "ship": "skipped", "refund": "completed", "report": "completed",
    }  # fmt: skip
    assert system.data(execution.id)["refund"] == {"pay": error}
    assert execution.output == {"report": {"pay": error, "refund": {"pay": error}}}


def test_continue_on_fail_goes_on_with_the_error_as_data(system: System) -> None:
    execution = system.run(
        system.register(
            node("a", "boom", continue_on_fail=True, retry={"max_attempts": 2, "delay": 0}),
            node("b", "echo", "a"),
            node("last", "boom", "b", continue_on_fail=True),
        )
    )

    assert execution.status is ExecutionStatus.COMPLETED
    assert system.statuses(execution.id) == {"a": "failed", "b": "completed", "last": "failed"}
    assert system.data(execution.id)["b"] == {
        "error": {"type": "ConnectionError", "message": "told to", "node_id": "a"}
    }
    assert execution.output["error"]["node_id"] == "last"
    assert system.ran(execution.id) == ["a", "a", "b", "last"]


def test_after_a_failure_nothing_new_starts_on_other_branches(system: System) -> None:
    gate, bad_gate = f"after-failure-{system.kind}", f"before-failure-{system.kind}"
    workflow_id = system.register(
        node("slow", "gate", config={"gate": gate}),
        node("after-slow", "name", "slow"),
        node("before-bad", "gate", config={"gate": bad_gate}),
        node("bad", "boom", "before-bad", config={"how": "returned"}),
        node("after-bad", "name", "bad"),
    )
    execution_id = system.engine.enqueue_workflow(workflow_id)
    system.arrived(gate)
    system.open_gate(bad_gate)
    assert system.engine.wait(execution_id, timeout=30).status is ExecutionStatus.FAILED

    system.open_gate(gate)  # what runs may end, and is recorded
    system.until(execution_id, "node.completed", "slow")

    assert system.statuses(execution_id)["slow"] == "completed"
    assert system.statuses(execution_id)["after-slow"] == "held"
    assert "after-bad" not in system.statuses(execution_id)
    assert sorted(system.ran(execution_id)) == ["bad", "before-bad", "slow"]
    execution = system.engine.store.get_execution(execution_id)
    assert execution is not None
    assert execution.status is ExecutionStatus.FAILED
    assert execution.error is not None
    assert execution.error["type"] == "OutOfStock"


def test_a_skip_travels_through_hundreds_of_nodes(system: System) -> None:
    chain = [node("n0", "name", "start")] + [node(f"n{n}", "name", f"n{n - 1}") for n in range(1, 300)]
    execution = system.run(
        system.register(node("start", "route", config={"to": ["end"]}), node("end", "count", "start", "n299"), *chain)
    )

    assert execution.output == 1
    assert list(system.statuses(execution.id).values()).count("skipped") == 300
