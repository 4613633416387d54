"""Behaviours 23-25: priorities, idempotent starts, and starts that leave nothing behind."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from e2e.support.harness import System, worker_processes
from spanloom.engine import (
    ConfigurationError,
    Execution,
    ExecutionStatus,
    IdempotencyConflict,
    PayloadRejected,
    SpanloomError,
    UnknownWorkflow,
)


def test_high_runs_before_normal_before_low(idle_system: System) -> None:
    system = idle_system
    workflow_id = system.register({"id": "a", "type": "order", "config": {"list": "priorities"}})
    ids = [
        system.engine.enqueue_workflow(workflow_id, f"{priority}{number}", priority=priority)
        for number in range(3)
        for priority in ("low", "normal", "high")
    ]

    with _one_slot(system):
        for execution_id in ids:
            system.engine.wait(execution_id, timeout=30)

    order = [entry.decode() for entry in system.redis.lrange("order:priorities", 0, -1)]
    assert order == [f"{priority}{number}" for priority in ("high", "normal", "low") for number in range(3)]


def test_a_long_chain_makes_way_for_an_urgent_execution(idle_system: System) -> None:
    system = idle_system
    gate = "urgent-gate"
    chain: list[dict[str, Any]] = [{"id": "n0", "type": "gate", "config": {"gate": gate}}]
    chain += [
        {"id": f"n{number}", "type": "order", "config": {"list": "urgent"}, "inputs": [f"n{number - 1}"]}
        for number in range(1, 40)
    ]
    slow = system.register(*chain)
    urgent = system.register({"id": "a", "type": "order", "config": {"list": "urgent"}})

    with _one_slot(system):
        slow_id = system.engine.enqueue_workflow(slow)
        system.arrived(gate)
        urgent_id = system.engine.enqueue_workflow(urgent, "URGENT", priority="high")
        system.open_gate(gate)
        system.engine.wait(slow_id, timeout=30)
        system.engine.wait(urgent_id, timeout=30)

    order = [entry.decode() for entry in system.redis.lrange("order:urgent", 0, -1)]
    assert order.index("URGENT") < 5, order


@pytest.mark.parametrize("racers", [1, 12])
def test_one_idempotency_key_is_one_execution_also_with_several_entry_nodes(system: System, racers: int) -> None:
    workflow_id = system.register({"id": "a", "type": "name"}, {"id": "b", "type": "name"})
    ids: list[str] = []
    barrier = threading.Barrier(racers)

    def start() -> None:
        barrier.wait(10)
        ids.append(system.engine.enqueue_workflow(workflow_id, {"n": 1}, idempotency_key="order-7"))

    threads = [threading.Thread(target=start) for _ in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    again = system.engine.enqueue_workflow(workflow_id, {"n": 1}, idempotency_key="order-7")

    assert set(ids) == {again}
    assert len(ids) == racers
    assert system.engine.wait(again, timeout=30).status is ExecutionStatus.COMPLETED
    assert sorted(system.ran(again)) == ["a", "b"]
    with pytest.raises(IdempotencyConflict, match="order-7"):
        system.engine.enqueue_workflow(workflow_id, {"n": 2}, idempotency_key="order-7")


def test_an_idempotency_key_is_free_again_after_its_time(system: System) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"})

    def start() -> str:
        return system.engine.enqueue_workflow(workflow_id, 1, idempotency_key="hourly", key_ttl=1.0)

    told: list[str] = []
    give_up, pause = time.monotonic() + 60, threading.Event()
    while sum(times > 1 for times in Counter(told).values()) < 2:  # the key held, was free, and held again
        assert time.monotonic() < give_up, told
        told.append(start())
        pause.wait(0.05)

    executions = [system.engine.wait(one, timeout=30) for one in dict.fromkeys(told)]
    assert told == sorted(told, key=[one.id for one in executions].index)  # an earlier one never comes back
    for earlier, later in pairwise(executions):
        assert (later.created_at - earlier.created_at).total_seconds() >= 1.0
    assert [system.ran(one.id) for one in executions] == [["a"]] * len(executions)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"version": 99}, UnknownWorkflow),
        ({"version": 0}, ConfigurationError),
        ({"version": "1"}, ConfigurationError),
        ({"priority": "urgent"}, ConfigurationError),
        ({"delay": -1}, ConfigurationError),
        ({"delay": "soon"}, ConfigurationError),
        ({"deadline": float("nan")}, ConfigurationError),
        ({"metadata": {"customer": 7}}, ConfigurationError),
        ({"metadata": {"customer": "x" * 501}}, ConfigurationError),
        ({"metadata": {"customer": "\x00"}}, ConfigurationError),
        ({"idempotency_key": ""}, ConfigurationError),
        ({"data": {1, 2}}, PayloadRejected),
        ({"data": "x" * 2_000_000}, PayloadRejected),
    ],
)
def test_a_wrong_option_leaves_no_execution_behind(
    system: System, options: dict[str, Any], error: type[SpanloomError]
) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"})
    before = system.engine.store.get_execution_count()

    with pytest.raises(error):
        system.engine.enqueue_workflow(workflow_id, **options)

    assert system.engine.store.get_execution_count() == before


def test_an_unknown_workflow_leaves_no_execution_behind(system: System) -> None:
    before = system.engine.store.get_execution_count()

    with pytest.raises(UnknownWorkflow, match="no-such-workflow"):
        system.engine.enqueue_workflow("no-such-workflow", 1)

    assert system.engine.store.get_execution_count() == before


def test_a_delayed_start_comes_when_it_is_due_and_not_before(system: System) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"})

    execution_id = system.engine.enqueue_workflow(workflow_id, 5, delay=0.5)

    seen = system.engine.store.get_execution(execution_id)
    assert seen is not None
    assert seen.status is ExecutionStatus.PENDING or _waited_seconds(seen) >= 0.5  # it was looked at late
    execution = system.engine.wait(execution_id, timeout=30)
    assert execution.output == 5
    assert _waited_seconds(execution) >= 0.5


def test_a_pinned_version_runs_though_a_newer_one_is_there(system: System) -> None:
    from spanloom.engine import Workflow

    workflow_id = system.register({"id": "a", "type": "value", "config": {"value": 1}})
    newer = {"id": workflow_id, "nodes": [{"id": "a", "type": "value", "config": {"value": 2}}]}
    assert system.engine.register_workflow(Workflow.model_validate(newer)) == 2

    assert system.run(workflow_id, version=1).output == 1
    assert system.run(workflow_id).output == 2


def _waited_seconds(execution: Execution) -> float:
    assert execution.started_at is not None
    return (execution.started_at - execution.created_at).total_seconds()


def _one_slot(system: System):  # type: ignore[no-untyped-def]
    if system.kind == "memory":
        return system.engine.start_workers(1, concurrency=1)
    return worker_processes(1, system.store_url, system.redis_url, "--concurrency", "1")
