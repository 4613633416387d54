"""A wait within a handler is refused when no slot is left that could run what it waits for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer
from structlog.testing import capture_logs

from spanloom.engine import NodeRegistry, Workflow, WorkflowEngine
from spanloom.stores import InMemoryExecutionStore


@pytest.fixture
def engine() -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()

    @registry.node("leaf")
    def leaf() -> int:
        return 7

    @registry.node("runs")
    def runs() -> Any:
        return engine.run("leaf")

    @registry.node("arun")
    async def arun() -> Any:
        return await engine.arun("leaf")

    @registry.node("follows")
    def follows() -> Any:
        handle = engine.start("leaf")
        list(handle.events())
        return handle.result()

    with WorkflowEngine(registry, InMemoryExecutionStore(), FakeRedis(server=FakeServer())) as engine:
        for name in registry.types:
            engine.register_workflow(Workflow.model_validate({"id": name, "nodes": [{"id": "a", "type": name}]}))
        yield engine


@pytest.mark.parametrize("kind", ["runs", "arun", "follows"])
def test_a_wait_that_can_not_end_is_refused_with_the_way_that_can(engine: WorkflowEngine, kind: str) -> None:
    with engine.start_workers(1, concurrency=1):
        execution = engine.wait(engine.enqueue_workflow(kind), timeout=30)

        assert execution.error is not None
        assert execution.error["type"] == "WaitRefused"
        assert "node of type 'workflow'" in execution.error["message"]
        assert engine.run("leaf", timeout=30) == 7


@pytest.mark.parametrize(("workers", "concurrency"), [(1, 2), (2, 1)])
def test_a_wait_that_can_end_is_logged_once(engine: WorkflowEngine, workers: int, concurrency: int) -> None:
    with capture_logs() as logged, engine.start_workers(workers, concurrency=concurrency):
        assert engine.run("runs", timeout=30) == 7

    (line,) = [line for line in logged if line["event"] == "handler_waits"]
    assert line["node_id"] == "a"
