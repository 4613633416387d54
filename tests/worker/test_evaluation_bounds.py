"""Expressions of a node end with its timeout, with a cancel, and at a bound on all of them together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from spanloom.engine import (
    Execution,
    ExecutionStatus,
    Input,
    Node,
    NodeRegistry,
    NodeStatus,
    Workflow,
    WorkflowEngine,
)
from spanloom.stores import InMemoryExecutionStore

#: Two hundred elements, each with a mapping that takes about a tenth of a second: none is over a bound of its own.
LONG = {"rows": list(range(200)), "big": list(range(20_000))}
SLOW = "length(input.big[*].[@, @, @])"


@pytest.fixture
def engine() -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()

    @registry.node("echo")
    def echo(data: Any) -> Any:
        return data

    made = WorkflowEngine(registry, InMemoryExecutionStore(), FakeRedis(server=FakeServer()))
    made.register_workflow(Workflow(id="short", nodes=[Node(id="a", type="echo")]))
    with made, made.start_workers(1, concurrency=1):
        yield made


def failed(engine: WorkflowEngine, node: Node, *others: Node) -> Execution:
    engine.register_workflow(Workflow(id="long", nodes=[node, *others]))
    execution = engine.wait(engine.enqueue_workflow("long", LONG), timeout=60)
    assert execution.status is ExecutionStatus.FAILED
    return execution


@pytest.mark.parametrize(
    "node",
    [
        Node(id="a", type="echo", map="input.rows", mapping=SLOW, timeout=0.2),
        Node(id="a", type="echo", map="input.rows", mapping={"n": "item", "slow": SLOW}, timeout=0.2),
        Node(id="a", type="echo", mapping={f"n{n}": SLOW for n in range(100)}, timeout=0.2),
        Node(id="a", type="echo", map="[input.big[*].[@, @, @], input.big[*].[@, @, @]] | [0]", timeout=0.02),
    ],
    ids=["map", "object", "mapping", "over"],
)
def test_a_timeout_ends_the_expressions_of_a_node(engine: WorkflowEngine, node: Node) -> None:
    execution = failed(engine, node)

    assert execution.error is not None
    assert execution.error["type"] == "NodeTimeout"


def test_a_cancel_ends_the_expressions_of_a_node(engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanloom.engine.workflow.evaluation.MAX_EXPRESSIONS_SECONDS", 1_000)
    monkeypatch.setattr("spanloom.engine.workflow.evaluation.MAX_EXPRESSIONS_STEPS", 10**12)
    node = Node(id="a", type="echo", mapping={f"n{n}": SLOW for n in range(2_000)})
    engine.register_workflow(Workflow(id="long", nodes=[node]))
    execution_id = engine.enqueue_workflow("long", LONG)
    while engine.store.get_node_results(execution_id)[0].status is not NodeStatus.RUNNING:
        threading.Event().wait(0.01)

    assert engine.cancel_execution(execution_id)

    assert engine.run("short", 7, timeout=30) == 7  # the only slot of the worker is free again


def test_the_expressions_of_a_node_have_bounds_together(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanloom.engine.workflow.evaluation.MAX_EXPRESSIONS_STEPS", 500_000)

    execution = failed(engine, Node(id="a", type="echo", map="input.rows", mapping=SLOW))

    assert execution.error is not None
    assert "with those before it, more than 500,000 steps" in execution.error["message"]


def test_the_conditions_of_edges_have_bounds_together(engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanloom.engine.workflow.evaluation.MAX_EXPRESSIONS_STEPS", 500_000)
    conditions = [
        Node(id=f"n{n}", type="echo", inputs=[Input(node="a", when="length(big[*].[@, @, @]) > `0`")])
        for n in range(50)
    ]

    execution = failed(engine, Node(id="a", type="echo"), *conditions)

    assert execution.error is not None
    assert execution.error["type"] == "RoutingFailed"
    assert "with those before it" in execution.error["message"]


def test_the_elements_of_a_map_are_made_up_to_the_bound_of_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLOOM_JOIN_LIMIT_BYTES", "1000000")
    registry = NodeRegistry()
    registry.register("echo", lambda data: data)
    engine = WorkflowEngine(registry, InMemoryExecutionStore(), FakeRedis(server=FakeServer()))

    with engine, engine.start_workers(1):
        execution = failed(engine, Node(id="a", type="echo", map="input.rows", mapping="input.big"))

    assert execution.error is not None
    assert "the first 10 elements of its map take" in execution.error["message"]
