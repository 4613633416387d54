"""Worker processes that end after so many nodes, or once they are too large: others go on, and nothing is lost."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.support.harness import System, WorkerProcess, until
from e2e.support.harness import system as new_system
from spanloom.engine import NodeStatus
from spanloom.testing.servers import RedisServer

TO_BE_REPLACED = 75
Start = Callable[..., WorkerProcess]


@pytest.fixture
def system(tmp_path: Path, own_redis: RedisServer) -> Iterator[System]:
    url = f"sqlite:///{tmp_path}/spanloom.db"
    with new_system("sqlite", url, own_redis.url, workers=0) as made:
        yield made


@pytest.fixture
def worker(system: System) -> Iterator[Start]:
    made: list[WorkerProcess] = []

    def start(*options: str) -> WorkerProcess:
        made.append(WorkerProcess(system.store_url, system.redis_url, *options))
        return made[-1]

    yield start
    for one in made:
        if not one.waited:
            one.process.kill()
            one.wait()


def pids_of(system: System, execution_ids: list[str]) -> Counter[int]:
    """By process, the handlers that it ran."""
    ran = [entry.decode() for one in execution_ids for entry in system.redis.lrange(f"ran:{one}", 0, -1)]
    return Counter(int(entry.rpartition(":")[2]) for entry in ran)


def test_each_process_runs_about_so_many_nodes_and_each_node_runs_once(system: System, worker: Start) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]})
    made = worker("--processes", "2", "--max-nodes", "60")
    until(lambda: len(system.engine.store.list_workers()) == 2)
    ids: list[str] = []
    while len(pids := pids_of(system, ids)) < 3:  # in turns: one may run all that waits while others start
        ids += [system.engine.enqueue_workflow(workflow_id, number) for number in range(40)]
        for one in ids[-40:]:
            system.engine.wait(one, timeout=30)
        until(lambda: len(system.engine.store.list_workers()) == 2)
        assert len(ids) < 2000

    assert made.stop() == 0

    assert all(system.ran(one) == ["a", "b"] for one in ids), "each once"
    assert sum(pids.values()) == 2 * len(ids)
    reasons = [line["reason"] for line in made.events("worker_recycles")]
    assert reasons
    assert all("of --max-nodes 60" in reason for reason in reasons)
    assert not made.events("worker_died")


def test_a_process_whose_handlers_leak_is_replaced_while_a_long_one_has_its_grace(
    system: System, worker: Start
) -> None:
    leaks, gate = (
        system.register({"id": "a", "type": "leaks"}),
        system.register({"id": "a", "type": "gate", "config": {"gate": "a"}}),
    )
    made = worker("--processes", "1", "--max-memory", "200MB")
    until(system.engine.store.list_workers)
    held = system.engine.enqueue_workflow(gate)
    system.arrived("a")

    ids = []
    while not made.events("worker_stopping"):
        ids.append(system.engine.enqueue_workflow(leaks))
        threading.Event().wait(0.05)
        assert len(ids) < 200
    system.open_gate("a")

    outputs = [system.engine.wait(one, timeout=30) for one in [held, *ids]]
    ids.append(system.engine.enqueue_workflow(leaks))
    assert system.engine.wait(ids[-1], timeout=30).output != outputs[1].output, "a new process goes on"
    assert made.stop() == 0
    assert all(system.ran(one) == ["a"] for one in [held, *ids])
    assert made.events("worker_recycles")[0]["reason"].endswith(", more than --max-memory 190.7 MiB")
    assert not made.events("worker_died")


def test_without_a_supervisor_the_process_ends_with_a_code_of_its_own(system: System, worker: Start) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"})
    ids = [system.engine.enqueue_workflow(workflow_id) for _ in range(40)]

    made = worker("--max-nodes", "1", "--concurrency", "1")

    assert made.wait(30) == TO_BE_REPLACED
    left = [one for one in ids if not system.engine.store.get_execution(one).status.ended]  # type: ignore[union-attr]
    assert 0 < len(left) < 40
    assert {status for one in left for status in system.statuses(one).values()} == {NodeStatus.QUEUED}
    assert os.getpid() not in pids_of(system, ids)


def test_a_process_that_is_too_large_from_the_beginning_is_refused(system: System, worker: Start) -> None:
    made = worker("--max-memory", "1MB")

    assert made.wait(30) == 2
    assert "--max-memory 976.6 KiB is less than" in made.log
    assert "Traceback" not in made.log
