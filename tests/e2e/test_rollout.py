"""While a new version is rolled out, workers that lack a node type leave its jobs to those that have it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from e2e.support.behaviour_app import clients, registry
from e2e.support.harness import System, worker_processes
from spanloom.engine import NodeContext, NodeRegistry, WorkflowEngine

pytestmark = pytest.mark.stores("sqlite", "postgres", why="a store in memory has one version of everything")


@pytest.fixture
def newer(idle_system: System) -> Iterator[WorkflowEngine]:
    """An engine of the next version, on the same store and Redis."""
    handlers = NodeRegistry()
    handlers.merge(registry)

    @handlers.node("brand-new")
    def brand_new(ctx: NodeContext) -> int:
        ctx.state.redis.incr("brand-new")
        return 7

    with WorkflowEngine(handlers, idle_system.store_url, idle_system.redis_url, lifespan=clients) as engine:
        yield engine


def test_nodes_of_a_new_type_wait_for_the_first_worker_that_knows_it(
    idle_system: System, newer: WorkflowEngine
) -> None:
    system = idle_system
    flow = replace(system, engine=newer).register(
        {"id": "a", "type": "brand-new"}, {"id": "b", "type": "echo", "inputs": ["a"]}, name="new"
    )
    known = system.register({"id": "a", "type": "echo"})
    with worker_processes(2, system.store_url, system.redis_url, "--concurrency", "4") as old:
        started = system.engine.enqueue_workflows(flow, range(40))
        for _ in range(600):
            if any(worker.events("node_type_unknown") for worker in old):
                break
            threading.Event().wait(0.05)
        # given: old workers that meet nothing but jobs they can't run go on with those that they can
        assert system.run(known, 1, timeout=30).output == 1

        with newer.start_workers(concurrency=4):
            started += [system.engine.enqueue_workflow(flow) for _ in range(10)]  # beside the old ones
            ended = [system.engine.wait(execution_id, timeout=30) for execution_id in started]

    assert {execution.output for execution in ended} == {7}
    assert int(system.redis.get("brand-new") or 0) == 50
    assert {len(worker.events("node_type_unknown")) for worker in old} <= {0, 1}  # named once


def test_a_burst_ends_beside_jobs_that_nobody_knows(idle_system: System, newer: WorkflowEngine) -> None:
    system = idle_system
    system.engine.enqueue_workflow(
        replace(system, engine=newer).register({"id": "a", "type": "brand-new"}, name="burst")
    )
    with worker_processes(1, system.store_url, system.redis_url, "--burst") as (worker,):
        assert worker.wait(timeout=30) == 0
