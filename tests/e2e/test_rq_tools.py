"""Behaviour 37 after a crash: `rq info` an hour later finds no job of a worker that was killed, started or failed."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from rq.registry import FailedJobRegistry, StartedJobRegistry

from e2e.support.harness import System, WorkerProcess, worker_processes

LIST = "spanloom.default"


@pytest.mark.stores("sqlite", "postgres", why="its workers are threads: none of them is killed")
def test_a_node_that_another_worker_completed_is_no_failed_job_of_the_one_that_died(idle_system: System) -> None:
    system = idle_system
    workflow_id = system.register({"id": "slow", "type": "gate", "config": {"gate": "books"}})
    killed = WorkerProcess(system.store_url, system.redis_url, "--lease", "1s")
    killed.wait_ready()
    execution_id = system.engine.enqueue_workflow(workflow_id)
    system.arrived("books")
    with worker_processes(1, system.store_url, system.redis_url, "--lease", "1s"):
        killed.send(signal.SIGKILL)
        killed.wait()
        system.arrived("books")
        system.open_gate("books", times=2)
        assert system.engine.wait(execution_id, timeout=30).status == "completed"
        _until_empty(system, f"rq:job:{execution_id}*", f"rq:wip:{LIST}")

    started, failed = (
        registry(LIST, connection=system.redis, serializer="json")
        for registry in (StartedJobRegistry, FailedJobRegistry)
    )
    started.cleanup(time.time() + 3600)
    assert failed.get_job_ids() == []


def _until_empty(system: System, *patterns: str) -> None:
    give_up, pause = time.monotonic() + 30, threading.Event()
    while left := [key for pattern in patterns for key in system.redis.keys(pattern)]:
        assert time.monotonic() < give_up, left
        pause.wait(0.05)
