"""Following events while Redis is emptied or restarted, workers are killed, and Postgres is away: nothing is missed."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.support.harness import System, worker_processes
from e2e.support.harness import system as new_system
from spanloom.engine import Event
from spanloom.testing.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.every_store

TIMEOUT = 90


@pytest.fixture
def system(own_redis: RedisServer, shared_store_url: str) -> Iterator[System]:
    """A system without workers over each store that processes can share."""
    kind = shared_store_url.partition(":")[0]
    with new_system(kind, shared_store_url, own_redis.url, workers=0) as made:
        yield made


@contextmanager
def followed(system: System, execution_id: str) -> Iterator[list[Future[list[Event]]]]:
    """Watch an execution from two threads and an event loop; what they saw must be its whole history.

    Each has had its first look when the block begins: no outage is waited out at that one.
    """
    looked = threading.Semaphore(0)

    async def follow() -> list[Event]:
        async with system.engine.aevents(execution_id, timeout=TIMEOUT) as events:
            first = await anext(events)
            looked.release()
            return [first, *[event async for event in events]]

    def follow_in_a_thread() -> list[Event]:
        with system.engine.events(execution_id, timeout=TIMEOUT) as events:
            first = next(events)
            looked.release()
            return [first, *events]

    with ThreadPoolExecutor(3) as pool:
        watchers = [pool.submit(follow_in_a_thread) for _ in range(2)] + [pool.submit(asyncio.run, follow())]
        for _ in watchers:
            assert looked.acquire(timeout=30)
        yield watchers
    history: list[Event] = []
    while page := system.engine.store.get_events(execution_id, after=history[-1].cursor if history else None):
        history += page
    assert history[-1].kind == "execution.completed"
    assert [watcher for watcher in watchers if watcher.result() != history] == []


def gated(system: System, width: int = 30) -> str:
    """Start an execution that waits before a gate in the middle."""
    before = [{"id": f"n{number}", "type": "plain"} for number in range(width)]
    gate = {
        "id": "gate", "type": "gate", "config": {"gate": "middle"}, "inputs": [one["id"] for one in before],
        "retry": {"max_attempts": 10, "delay": 0.01},
    }  # fmt: skip
    after = [{"id": f"m{number}", "type": "plain", "inputs": ["gate"]} for number in range(width)]
    return system.engine.enqueue_workflow(system.register(*before, gate, *after))


def test_a_redis_that_is_emptied_costs_no_event(system: System) -> None:
    with worker_processes(2, system.store_url, system.redis_url, "--concurrency", "4"):
        execution_id = gated(system)
        with followed(system, execution_id):
            system.arrived("middle")
            system.redis.flushall()
            system.open_gate("middle", times=9)


@pytest.mark.parametrize("empty", [False, True])
def test_a_redis_that_is_restarted_costs_no_event(system: System, own_redis: RedisServer, empty: bool) -> None:
    with worker_processes(2, system.store_url, system.redis_url, "--concurrency", "4"):
        execution_id = gated(system)
        with followed(system, execution_id):
            system.arrived("middle")
            own_redis.kill() if empty else own_redis.stop()
            own_redis.start()
            system.open_gate("middle", times=9)


def test_a_worker_that_is_killed_costs_no_event(system: System) -> None:
    with worker_processes(2, system.store_url, system.redis_url, "--concurrency", "4", "--lease", "2") as workers:
        execution_id = system.engine.enqueue_workflow(
            system.register(
                {"id": "kills", "type": "kills", "config": {"times": 1}},
                {"id": "b", "type": "plain", "inputs": ["kills"]},
            )
        )
        with followed(system, execution_id):
            system.engine.wait(execution_id, timeout=TIMEOUT)
        (killed,) = [worker for worker in workers if worker.process.poll() is not None]
        assert killed.wait() == -signal.SIGKILL
        workers.remove(killed)


def test_an_outage_of_the_store_is_waited_out(
    own_redis: RedisServer, postgres_url: str, postgres_server: PostgresServer
) -> None:
    with (
        new_system("postgres", postgres_url, own_redis.url, workers=0) as system,
        worker_processes(2, system.store_url, system.redis_url, "--concurrency", "4"),
    ):
        execution_id = gated(system)
        with followed(system, execution_id) as watchers:
            system.arrived("middle")
            postgres_server.stop()
            system.open_gate("middle")
            threading.Event().wait(2.5)  # longer than any pause between looks
            postgres_server.start()
            assert [watcher for watcher in watchers if watcher.done() and watcher.exception()] == []


def test_following_needs_no_redis(tmp_path: Path, own_redis: RedisServer) -> None:
    with new_system("sqlite", f"sqlite:///{tmp_path}/spanloom.db", own_redis.url, workers=0) as system:
        execution_id = system.engine.enqueue_workflow(system.register({"id": "a", "type": "plain"}))
        own_redis.stop()
        threading.Timer(1.5, system.engine.cancel_execution, [execution_id]).start()
        events = list(system.engine.events(execution_id, timeout=30))
        assert events[-1].kind == "execution.cancelled"
        own_redis.start()
