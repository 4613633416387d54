"""A join, a map or a child's output over the limit fails its node by the sizes that the store knows, unread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from spanloom.engine import (
    Execution,
    ExecutionStatus,
    Node,
    NodeRegistry,
    PayloadRejected,
    Workflow,
    WorkflowEngine,
)
from spanloom.engine.settings import Settings
from spanloom.stores import InMemoryExecutionStore

HALF = 1_000_000
PARENTS = [Node(id=f"n{number}", type="large") for number in range(20)]
JOIN = Node(id="join", type="count", inputs=[parent.id for parent in PARENTS])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkflowEngine]:
    """An engine whose joins take ten megabytes, with one worker."""
    registry = NodeRegistry()
    registry.register("large", lambda: "x" * HALF)
    registry.register("count", lambda data: len(data))
    redis, settings = FakeRedis(server=FakeServer()), Settings(join_limit_bytes=10_000_000)
    engine = WorkflowEngine(registry, InMemoryExecutionStore(), redis, settings=settings)
    with engine, engine.start_workers(1, concurrency=2):
        yield engine


def ended(engine: WorkflowEngine, workflow: Workflow, data: Any = None) -> Execution:
    engine.register_workflow(workflow)
    return engine.wait(engine.enqueue_workflow(workflow.id, data), timeout=60)


def message(execution: Execution) -> str:
    assert execution.status is ExecutionStatus.FAILED
    assert execution.error is not None
    return str(execution.error["message"])


def unread(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the data was read")

    monkeypatch.setattr(InMemoryExecutionStore, name, refused)


def test_a_join_over_the_limit_fails_its_node_without_reading(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread(monkeypatch, "get_data")

    told = message(ended(engine, Workflow(id="w", nodes=[*PARENTS, JOIN])))

    assert "the data that reaches node 'join' takes 20,000,040 bytes, more than the limit of 10,000,000" in told


def test_a_join_within_the_limit_that_its_claim_does_not_carry_is_run(engine: WorkflowEngine) -> None:
    some = PARENTS[:9]
    join = Node(id="join", type="count", inputs=[parent.id for parent in some])

    assert ended(engine, Workflow(id="w", nodes=[*some, join])).output == 9


def test_the_results_of_a_map_over_the_limit_fail_its_node_without_reading(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int | None] = []
    read = InMemoryExecutionStore.get_node_results

    def noted(self: Any, *given: Any, data_limit: int | None = None) -> Any:
        reads.append(data_limit)
        return read(self, *given, data_limit=data_limit)

    monkeypatch.setattr(InMemoryExecutionStore, "get_node_results", noted)

    told = message(ended(engine, Workflow(id="w", nodes=[Node(id="each", type="large", map="input")]), list(range(12))))

    assert "the results of the 12 items of node 'each' take 12,000,024 bytes, more than the limit of" in told
    assert reads == [0]


def test_the_output_of_a_child_over_the_limit_fails_its_node(engine: WorkflowEngine) -> None:
    engine.register_workflow(Workflow(id="child", nodes=PARENTS))
    parent = Node(id="call", type="workflow", config={"workflow": "child"})

    told = message(ended(engine, Workflow(id="w", nodes=[parent])))

    assert "takes 20,000,040 bytes, more than the limit of 10,000,000" in told


def test_a_result_over_the_limit_is_refused_and_its_execution_still_read(engine: WorkflowEngine) -> None:
    engine.register_workflow(Workflow(id="w", nodes=PARENTS))
    handle = engine.start("w", None)

    with pytest.raises(PayloadRejected, match=r"the output of execution .* takes 20,000,040 bytes"):
        handle.result(timeout=60)

    execution = engine.wait(handle.id, timeout=10)
    assert (execution.status, execution.output, execution.output_size) == (ExecutionStatus.COMPLETED, None, 20_000_040)
