"""Several worker processes under one command: a dead one is replaced, and none outlives the command."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import System, WorkerProcess
from harness import system as new_system

from spanloom.testing.servers import redis_server as new_redis_server


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    url = f"sqlite:///{tmp_path}/spanloom.db"
    with new_redis_server() as server, new_system("sqlite", url, server.url, workers=0) as made:
        yield made


@pytest.fixture
def supervisor(system: System) -> Iterator[WorkerProcess]:
    made = WorkerProcess(system.store_url, system.redis_url, "--processes", "2", "--lease", "1")
    yield made
    made.stop()


def running(system: System) -> set[int]:
    return {worker.pid for worker in system.engine.store.list_workers() if alive(worker.pid)}


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def until(condition, timeout: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        pause.wait(0.02)


def test_a_dead_process_is_replaced_and_its_work_goes_on(system: System, supervisor: WorkerProcess) -> None:
    until(lambda: len(running(system)) == 2)
    workflow_id = system.register({"id": "a", "type": "gate", "config": {"gate": "dies"}})
    execution_id = system.engine.enqueue_workflow(workflow_id)
    system.arrived("dies")
    (victim,) = [worker.pid for worker in system.engine.store.list_workers() if worker.running]

    os.kill(victim, signal.SIGKILL)

    system.arrived("dies")  # again, in another process
    system.open_gate("dies", times=2)
    assert system.engine.wait(execution_id, timeout=30).output == "a"
    until(lambda: len(running(system)) == 2 and victim not in running(system))


def test_sigterm_ends_all_processes_with_zero(system: System, supervisor: WorkerProcess) -> None:
    until(lambda: len(running(system)) == 2)
    children = running(system)

    assert supervisor.stop() == 0

    assert not any(alive(pid) for pid in children)


def test_processes_whose_supervisor_was_killed_end_by_themselves(system: System, supervisor: WorkerProcess) -> None:
    until(lambda: len(running(system)) == 2)
    children = running(system)

    supervisor.send(signal.SIGKILL)

    until(lambda: not any(alive(pid) for pid in children))


def test_processes_that_can_not_start_end_the_command_with_two(system: System) -> None:
    made = WorkerProcess(system.store_url, "unix:///nowhere/redis.sock", "--processes", "2")

    assert made.wait(30) == 2
    assert "Traceback" not in made.log
