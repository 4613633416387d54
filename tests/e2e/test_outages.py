"""Redis away when work is started or due: the store has it, and it runs once Redis is back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import System, worker_processes
from harness import system as new_system

from spanloom.engine import ExecutionStatus
from spanloom.testing.servers import RedisServer
from spanloom.testing.servers import redis_server as new_redis_server


@pytest.fixture
def redis_of_its_own() -> Iterator[RedisServer]:
    with new_redis_server() as server:
        yield server


@pytest.fixture
def system(redis_of_its_own: RedisServer, tmp_path: Path) -> Iterator[System]:
    with new_system("sqlite", f"sqlite:///{tmp_path}/spanloom.db", redis_of_its_own.url, workers=0) as made:
        yield made


def test_a_start_while_redis_is_away_succeeds_and_runs_when_it_is_back(
    system: System, redis_of_its_own: RedisServer
) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]})
    redis_of_its_own.stop()

    ids = system.engine.enqueue_workflows(workflow_id, range(5))

    assert {system.engine.store.get_execution(one).status for one in ids} == {ExecutionStatus.RUNNING}  # type: ignore[union-attr]
    redis_of_its_own.start()
    with worker_processes(1, system.store_url, system.redis_url):
        assert [system.engine.wait(one, timeout=30).output for one in ids] == list(range(5))


def test_workers_outlive_a_redis_that_is_killed_and_comes_back_empty(
    system: System, redis_of_its_own: RedisServer
) -> None:
    workflow_id = system.register({"id": "a", "type": "value", "config": {"value": 1}})
    slow = system.register(
        {"id": "a", "type": "gate", "config": {"gate": "outage"}}, {"id": "b", "type": "name", "inputs": ["a"]}
    )
    with worker_processes(2, system.store_url, system.redis_url) as workers:
        held = system.engine.enqueue_workflow(slow)
        system.arrived("outage")

        redis_of_its_own.kill()
        during = system.engine.enqueue_workflow(workflow_id)
        redis_of_its_own.start()
        after = system.engine.enqueue_workflow(workflow_id)

        for execution_id in (during, after):
            assert system.engine.wait(execution_id, timeout=60).output == 1
        system.open_gate("outage", times=5)  # the handler lost its connection: its node runs again, or went on
        assert system.engine.wait(held, timeout=60).status in (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED)
        assert all(worker.process.poll() is None for worker in workers)
