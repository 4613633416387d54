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

from e2e.support.harness import System, WorkerProcess, until
from e2e.support.harness import system as new_system
from spanloom.testing.servers import RedisServer

LEASE = ("--lease", "3")  # a renewal may come two seconds late


@pytest.fixture
def system(tmp_path: Path, own_redis: RedisServer) -> Iterator[System]:
    url = f"sqlite:///{tmp_path}/spanloom.db"
    with new_system("sqlite", url, own_redis.url, workers=0) as made:
        yield made


@pytest.fixture
def supervisor(system: System) -> Iterator[WorkerProcess]:
    made = WorkerProcess(system.store_url, system.redis_url, "--processes", "2", *LEASE)
    yield made
    made.stop()


def running(system: System) -> set[int]:
    return {worker.pid for worker in system.engine.store.list_workers() if alive(worker.pid)}


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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


def test_one_ctrl_c_on_the_terminal_leaves_running_nodes_their_grace(system: System) -> None:
    made = WorkerProcess(system.store_url, system.redis_url, "--processes", "2", new_session=True)
    until(lambda: len(running(system)) == 2)
    workflow_id = system.register({"id": "a", "type": "gate", "config": {"gate": "grace"}})
    execution_id = system.engine.enqueue_workflow(workflow_id)
    system.arrived("grace")

    os.killpg(made.pid, signal.SIGINT)  # what a terminal does: the whole group gets it
    until(lambda: len(running(system)) == 1)  # the idle one has gone, the busy one stays

    system.open_gate("grace")
    assert made.wait(30) == 0
    assert system.engine.wait(execution_id, timeout=5).output == "a"
    assert system.ran(execution_id) == ["a"]


def test_burst_does_what_is_due_and_ends_at_once(system: System) -> None:
    retry = {"max_attempts": 2, "delay": 0.01}
    workflow_id = system.register({"id": "a", "type": "flaky", "config": {"succeeds_at": 2}, "retry": retry})
    delayed = system.register({"id": "a", "type": "echo"})
    late = system.engine.enqueue_workflow(delayed, 1, delay=0.01)
    threading.Event().wait(0.05)  # it is due before any worker is there
    ids = [system.engine.enqueue_workflow(workflow_id) for _ in range(3)]

    started = time.monotonic()
    while any(not system.engine.store.get_execution(one).status.ended for one in [late, *ids]):  # type: ignore[union-attr]
        assert WorkerProcess(system.store_url, system.redis_url, "--burst").wait(30) == 0
        assert time.monotonic() - started < 30

    assert system.engine.store.get_execution(late).output == 1  # type: ignore[union-attr]


def test_an_outage_of_redis_does_not_end_the_fleet(system: System, own_redis: RedisServer) -> None:
    made = WorkerProcess(system.store_url, system.redis_url, "--processes", "2", *LEASE)
    until(lambda: len(running(system)) == 2)
    threading.Event().wait(3.5)  # as long as a process must live to count as started
    own_redis.kill()
    (victim, *_) = running(system)
    os.kill(victim, signal.SIGKILL)
    until(lambda: made.log.count("worker_died") >= 2)  # its replacement could not start
    assert made.process.poll() is None

    own_redis.start()

    until(lambda: len(running(system)) == 2, timeout=60)
    assert system.run(system.register({"id": "a", "type": "echo"}), 1).output == 1
    assert made.stop() == 0
