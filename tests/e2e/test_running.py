"""Behaviours 6, 8, 9: joins, payloads, and ends that come exactly once."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest

from e2e.support.harness import System
from spanloom.engine import ExecutionFailed, ExecutionStatus, InvalidTransition, NodeStatus, WaitTimeout
from support.postgres import until_blocked


def test_a_join_of_a_hundred_parents_runs_once_with_all_results(system: System) -> None:
    parents = [{"id": f"p{number}", "type": "name"} for number in range(100)]
    workflow_id = system.register(
        *parents, {"id": "join", "type": "collect", "inputs": [node["id"] for node in parents]}
    )

    ids = system.engine.enqueue_workflows(workflow_id, range(20))

    for execution_id in ids:
        execution = system.engine.wait(execution_id, timeout=60)
        assert execution.output == {f"p{number}": f"p{number}" for number in range(100)}
        assert system.ran(execution_id).count("join") == 1
        assert len(system.ran(execution_id)) == 101


def test_parents_that_end_at_the_same_instant_are_all_counted(system: System) -> None:
    # Eight slots in two workers stand before one gate, and it opens for all of them at once.
    workflow_id = system.register(
        *[{"id": f"p{number}", "type": "gate", "config": {"gate": f"together-{system.kind}"}} for number in range(8)],
        {"id": "join", "type": "count", "inputs": [f"p{number}" for number in range(8)]},
    )
    for _ in range(10):
        execution_id = system.engine.enqueue_workflow(workflow_id)
        for _ in range(8):
            system.arrived(f"together-{system.kind}")

        system.open_gate(f"together-{system.kind}", times=8)

        assert system.engine.wait(execution_id, timeout=30).output == 8
        assert system.ran(execution_id).count("join") == 1


PAYLOADS: list[Any] = [
    0, False, "", None, [], {}, True, 1, -0.0, 1e16, 1.5e300, 2**70, "\u0000", "\ud800", "ключ 鍵 🔑",
    {"b": 1, "a": {"z": [], "y": None}}, [[[]], {"": ""}],
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS, ids=[repr(payload)[:20] for payload in PAYLOADS])
def test_data_arrives_as_it_was_sent(system: System, payload: Any) -> None:
    if not any(workflow.id == f"payload-{system.kind}" for workflow in system.engine.store.list_workflows().items):
        _register_payload(system)

    output = system.run(f"payload-{system.kind}", payload).output

    assert output == payload
    assert type(output) is type(payload)
    if isinstance(payload, float):
        assert math.copysign(1, output) == math.copysign(1, payload)
    if isinstance(payload, dict):
        assert list(output) == list(payload)


def _register_payload(system: System) -> None:
    from spanloom.engine import Workflow

    nodes = [
        {"id": "first", "type": "echo"},
        {"id": "second", "type": "aecho", "inputs": ["first"]},
        {"id": "third", "type": "echo", "inputs": ["second"]},
    ]
    system.engine.register_workflow(Workflow.model_validate({"id": f"payload-{system.kind}", "nodes": nodes}))


def test_an_execution_ends_exactly_once_under_many_workers(system: System) -> None:
    sinks = [{"id": f"s{number}", "type": "echo", "inputs": ["root"]} for number in range(20)]
    workflow_id = system.register({"id": "root", "type": "echo"}, *sinks)

    ids = system.engine.enqueue_workflows(workflow_id, range(30))

    for number, execution_id in enumerate(ids):
        assert system.engine.wait(execution_id, timeout=60).output == {f"s{sink}": number for sink in range(20)}
        events = [event.kind for event in system.engine.store.get_events(execution_id)]
        assert events.count("execution.completed") == 1
        assert events.count("execution.started") == 1
        assert events.count("node.completed") == 21


def test_a_failed_execution_never_turns_completed(system: System) -> None:
    gate = f"late-{system.kind}"
    workflow_id = system.register(
        {"id": "bad", "type": "unserialisable", "config": {"gate": f"bad-{gate}"}},
        {"id": "late", "type": "gate", "config": {"gate": gate}},
    )
    execution_id = system.engine.enqueue_workflow(workflow_id)
    system.arrived(gate)
    system.open_gate(f"bad-{gate}")
    failed = system.engine.wait(execution_id, timeout=30)
    assert failed.status is ExecutionStatus.FAILED

    system.open_gate(gate)
    _wait_for_event(system, execution_id, "node.completed")

    after = system.engine.store.get_execution(execution_id)
    assert after == failed
    runs = {run.node_id: run.status for run in system.engine.store.get_node_results(execution_id)}
    assert runs == {"bad": NodeStatus.FAILED, "late": NodeStatus.COMPLETED}  # it was running and was recorded


def test_after_a_failure_nothing_new_starts_and_the_rest_is_held(system: System) -> None:
    gate = f"held-{system.kind}"
    workflow_id = system.register(
        {"id": "bad", "type": "unserialisable", "config": {"gate": f"bad-{gate}"}},
        {"id": "slow", "type": "gate", "config": {"gate": gate}},
        {"id": "after", "type": "name", "inputs": ["slow"]},
        {"id": "join", "type": "collect", "inputs": ["slow", "bad"]},
    )
    execution_id = system.engine.enqueue_workflow(workflow_id)
    system.arrived(gate)
    system.open_gate(f"bad-{gate}")
    system.engine.wait(execution_id, timeout=30)

    system.open_gate(gate)
    _wait_for_event(system, execution_id, "node.held")

    assert sorted(set(system.ran(execution_id))) == ["bad", "slow"]
    runs = {run.node_id: run.status for run in system.engine.store.get_node_results(execution_id)}
    assert runs["after"] is NodeStatus.HELD


def test_a_cancelled_execution_never_turns_completed(system: System) -> None:
    gate = f"cancel-{system.kind}"
    workflow_id = system.register(
        {"id": "slow", "type": "gate", "config": {"gate": gate}}, {"id": "after", "type": "name", "inputs": ["slow"]}
    )
    handle = system.engine.start(workflow_id)
    system.arrived(gate)

    assert handle.cancel() is True
    assert handle.cancel() is False
    system.open_gate(gate)

    with pytest.raises(ExecutionFailed, match="cancelled"):
        handle.result(timeout=30)
    assert system.run(system.register({"id": "next", "type": "echo"}), 1).output == 1  # the slots are free again
    assert handle.status is ExecutionStatus.CANCELLED
    assert system.ran(handle.id) == ["slow"]
    runs = {run.node_id: run.status for run in system.engine.store.get_node_results(handle.id)}
    assert set(runs.values()) == {NodeStatus.CANCELLED}


def test_a_completed_execution_can_not_be_cancelled(system: System) -> None:
    execution = system.run(system.register({"id": "a", "type": "echo"}), 1)

    with pytest.raises(InvalidTransition, match="completed"):
        system.engine.cancel_execution(execution.id)


def test_ends_are_not_lost_while_others_write(system: System) -> None:
    # Neighbours start and are cancelled while hundreds of executions end.
    workflow_id = system.register({"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]})
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            other = system.engine.enqueue_workflow(workflow_id, delay=3600)
            system.engine.cancel_execution(other)

    threads = [threading.Thread(target=disturb) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        ids = system.engine.enqueue_workflows(workflow_id, range(200))
        outputs = [system.engine.wait(execution_id, timeout=60).output for execution_id in ids]
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert outputs == list(range(200))


HELD = {
    "the execution": "select 1 from spanloom.executions where id = %s for update",
    "the run": "select 1 from spanloom.node_runs where execution_id = %s and node_id = 'last' for update",
    "$end": "select 1 from spanloom.node_runs where execution_id = %s and node_id = '$end' for update",
}
#: Over which stores: in memory nobody else can hold a lock, and SQLite has but one.
LOCKABLE = {"the execution": ("sqlite", "postgres"), "the run": ("postgres",), "$end": ("postgres",)}


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=pytest.mark.stores(*kinds)) for row, kinds in LOCKABLE.items()]
)
def test_an_end_that_meets_a_lock_waits_for_it_and_is_recorded(system: System, row: str) -> None:
    gate = f"lock-{system.kind}-{row}"
    workflow_id = system.register(
        {"id": "first", "type": "echo"},
        {"id": "last", "type": "gate", "config": {"gate": gate}, "inputs": ["first"]},
    )
    execution_id = system.engine.enqueue_workflow(workflow_id)
    system.arrived(gate)

    with _locked(system, HELD[row], execution_id) as somebody_waits:
        system.open_gate(gate)
        somebody_waits()
        with pytest.raises(WaitTimeout):
            system.engine.wait(execution_id, timeout=0.3)
        assert system.statuses(execution_id) == {"first": "completed", "last": "running"}

    assert system.engine.wait(execution_id, timeout=30).output == "last"
    kinds = [(event.kind, event.node_id) for event in system.engine.store.get_events(execution_id)]
    assert kinds.count(("node.completed", "last")) == 1
    assert kinds.count(("execution.completed", None)) == 1
    assert system.ran(execution_id) == ["first", "last"]


@contextmanager
def _locked(system: System, rows: str, execution_id: str) -> Iterator[Callable[[], None]]:
    """Hold what an end must write while the block lasts; yields what returns once somebody waits for it."""
    if system.kind == "postgres":
        with psycopg.connect(system.store_url) as holder:
            assert holder.execute(rows.encode(), [execution_id]).fetchone() is not None
            yield partial(until_blocked, system.store_url)
        return
    holder = sqlite3.connect(system.store_url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        holder.execute("begin immediate")
        yield lambda: None  # SQLite does not tell who waits; nobody else can write meanwhile
    finally:
        holder.close()


def _wait_for_event(system: System, execution_id: str, kind: str, timeout: float = 30) -> None:
    import time

    until = time.monotonic() + timeout
    pause = threading.Event()
    while not any(event.kind == kind for event in system.engine.store.get_events(execution_id)):
        assert time.monotonic() < until, f"no {kind} came"
        pause.wait(0.02)
