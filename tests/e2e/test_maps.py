"""A node mapped over a list: every element once, in order, so many at a time, with failures counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from e2e.support.harness import System
from spanloom.engine import ExecutionStatus, NodeStatus


def mapped(over: str = "input", *inputs: str, config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    how = {name: more.pop(name) for name in ("max_concurrency", "tolerated_failures") if name in more}
    return {
        "id": "each",
        "type": "tenfold",
        "map": {"over": over, **how},
        "inputs": list(inputs),
        "config": config or {},
        **more,
    }


def after(*inputs: Any) -> dict[str, Any]:
    return {"id": "after", "type": "echo", "inputs": list(inputs)}


@pytest.mark.parametrize("items", [0, 1, 7, 250])
def test_results_come_in_the_order_of_the_list(system: System, items: int) -> None:
    execution = system.run(system.register(mapped(), after("each")), list(range(items)))

    assert execution.output == [number * 10 for number in range(items)]
    assert Counter(system.ran(execution.id)) == Counter({"each": items, "after": 1} if items else {"after": 1})
    runs = system.engine.store.get_node_results(execution.id, ["each"])
    assert [run.item for run in runs] == list(range(items + 1))
    assert {run.status for run in runs} == {NodeStatus.COMPLETED}


def test_no_more_than_at_once_run_at_the_same_time(system: System) -> None:
    execution = system.run(system.register(mapped(max_concurrency=3)), list(range(60)))

    assert execution.output == [number * 10 for number in range(60)]
    seen = [int(entry) for entry in system.redis.lrange(f"at-once:{execution.id}:seen", 0, -1)]
    assert len(seen) == 60
    assert max(seen) <= 3


def test_each_item_has_its_own_retries(system: System) -> None:
    flow = mapped(config={"flaky": [1, 3]}, retry={"max_attempts": 2, "delay": 0})
    execution = system.run(system.register(flow), [0, 1, 2, 3])

    assert execution.output == [0, 10, 20, 30]
    runs = system.engine.store.get_node_results(execution.id)
    assert {run.item: run.attempt for run in runs if run.item} == {1: 1, 2: 2, 3: 1, 4: 2}


def test_a_failed_item_fails_the_node_and_no_further_one_starts(system: System) -> None:
    execution = system.run(
        system.register(mapped(max_concurrency=1, config={"fails": [2]}), after("each")), list(range(50))
    )

    assert execution.status is ExecutionStatus.FAILED
    assert execution.error is not None
    assert (execution.error["node_id"], execution.error["type"]) == ("each", "ItemsFailed")
    assert "item 3: PermanentError: item of 2" in execution.error["message"]
    assert system.ran(execution.id) == ["each"] * 3


def test_tolerated_failures_stand_in_the_list(system: System) -> None:
    flow = [mapped(tolerated_failures=2, config={"fails": [0, 3]}), after("each")]
    execution = system.run(system.register(*flow), [0, 1, 2, 3])

    assert execution.status is ExecutionStatus.COMPLETED
    assert [one if isinstance(one, int) else one["error"]["message"] for one in execution.output] == [
        "item of 0", 10, 20, "item of 3",
    ]  # fmt: skip


def test_a_mapping_gives_each_item_what_it_needs(system: System) -> None:
    flow = [
        {"id": "rates", "type": "value", "config": {"value": {"eur": 2, "list": [{"n": 1}, {"n": 2}]}}},
        {
            "id": "each", "type": "echo", "inputs": ["rates"], "map": "nodes.rates.list",
            "mapping": {"n": "item.n", "at": "index", "rate": "nodes.rates.eur", "who": "input"},
        },
    ]  # fmt: skip
    assert system.run(system.register(*flow), "me").output == [
        {"n": 1, "at": 0, "rate": 2, "who": "me"}, {"n": 2, "at": 1, "rate": 2, "who": "me"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "told"),
    [({"a": 1}, "gave a dict, not a list"), (None, "gave null"), (list(range(10_001)), "10,001 elements")],
)
def test_what_is_no_list_of_bounded_length_is_a_permanent_failure(system: System, data: Any, told: str) -> None:
    execution = system.run(system.register(mapped(retry={"max_attempts": 3, "delay": 0})), data)

    assert execution.error is not None
    assert told in execution.error["message"]
    assert system.ran(execution.id) == []


def test_an_item_that_routes_is_refused(system: System) -> None:
    flow = [{"id": "each", "type": "route", "map": "input", "config": {"to": ["after"]}}, after("each")]
    execution = system.run(system.register(*flow), [1])
    assert execution.error is not None
    assert "named next_nodes" in execution.error["message"]


def test_a_failed_map_goes_on_with_its_failed_items_when_it_is_retried(system: System) -> None:
    test = f"map-{system.kind}"
    flow = [mapped(max_concurrency=2, config={"fails": [3, 4]}), after("each")]
    execution = system.run(system.register(*flow), list(range(20)), metadata={"test": test})
    assert execution.status is ExecutionStatus.FAILED
    before = Counter(system.ran(execution.id))["each"]

    system.redis.set(f"mended:{test}", 1)
    assert system.engine.retry_execution(execution.id) is True

    assert system.engine.wait(execution.id, timeout=30).output == [number * 10 for number in range(20)]
    failed = sum(run.item in (4, 5) for run in system.engine.store.get_node_results(execution.id, ["each"]))
    assert failed == 2
    ran = Counter(system.ran(execution.id))["each"]
    assert ran - before in (20 - before + 1, 20 - before + 2)  # one or both had failed before nothing new was started


def test_a_map_inside_a_child_of_a_map(system: System) -> None:
    inner = system.register({"id": "each", "type": "tenfold", "map": "input"}, name="inner")
    outer = system.register({"id": "rows", "type": "workflow", "config": {"workflow": inner}, "map": "input"})

    assert system.run(outer, [[1, 2], [], [3]]).output == [[10, 20], [], [30]]


@pytest.mark.parametrize("number", [2_000, pytest.param(10_000, marks=pytest.mark.torture)])
def test_thousands_of_items(system: System, number: int) -> None:
    flow = [{"id": "each", "type": "plain", "map": "input"}, {"id": "n", "type": "length", "inputs": ["each"]}]
    execution = system.run(system.register(*flow), list(range(number)), timeout=120)

    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.output == [number, 0, number - 1]
