"""The sweep of a worker: how long one goes on, and what it does while Redis is away."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ResponseError

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_epoch import Epoch
from spanloom.engine.queue.redis_look import RedisLook
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeKey, Outcome, SweepResult
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores import InMemoryExecutionStore, open_store
from spanloom.testing.driver import StoreDriver
from spanloom.testing.servers import RedisServer
from spanloom.testing.servers import redis_server as new_redis_server
from spanloom.testing.workflows import single
from spanloom.worker import WorkerOptions
from spanloom.worker.service import WorkerEvents
from spanloom.worker.sweeper import Sweeper

LIST = "shop.default"


class Endless(InMemoryExecutionStore):
    """A store in which something is due all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = threading.Event()

    def sweep(self, **options: Any) -> SweepResult:
        self.at_work.set()
        return SweepResult((), {"timer": 1}, more=True)


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "shop")
    yield made
    made.close()


def sweeper(store: ExecutionStore, queue: NodeQueue, **options: Any) -> Sweeper:
    wanted = WorkerOptions(**{"sweep_seconds": 0.05, **options})
    return Sweeper(store, queue, Epoch(store, queue), [LIST], wanted, WorkerEvents())


def test_a_worker_that_stops_does_not_wait_for_the_end_of_a_backlog(queue: NodeQueue) -> None:
    store = Endless()
    endless = sweeper(store, queue)
    endless.start()
    assert store.at_work.wait(10)

    endless.stop()

    assert not endless._thread.is_alive()
    store.close()


@pytest.fixture
def redis_of_its_own() -> Iterator[RedisServer]:
    with new_redis_server(persist=True) as server:
        yield server


@pytest.fixture
def store(store_url: str) -> Iterator[ExecutionStore]:
    made = open_store(store_url)
    made.open()
    yield made
    made.close()


@pytest.mark.parametrize("outage", ["stopped", "hangs"])
def test_deadlines_leases_and_retries_go_on_while_redis_is_away(
    store: ExecutionStore, redis_of_its_own: RedisServer, outage: str
) -> None:
    queue = NodeQueue(redis_of_its_own.url, "shop")
    one = sweeper(store, queue, lost_job_after_seconds=300)  # nothing is pushed again on suspicion
    one.sweep()
    # given a deadline, a retry and a worker's lease that end while Redis is away
    driver = StoreDriver(store)
    store.save_workflow(single())
    late = driver.start("single", deadline_seconds=0.1)
    again, lost = driver.start("single"), driver.start("single")
    driver.record(again, driver.claim(again, "only"), Outcome.RETRY, delay_seconds=0.1)
    store.register_worker("dead", name="dead", host="h", pid=1, queues=["default"], lease_seconds=0.1)
    store.claim([NodeKey(lost, "only")], worker_id="dead")
    if outage == "stopped":
        redis_of_its_own.stop()
    else:
        os.kill(redis_of_its_own.pid, signal.SIGSTOP)
    try:
        # when it is swept, then the store's side of it is done
        give_up, moved = time.monotonic() + 30, set[str]()
        while moved != {"again", "lost", "late"}:
            assert time.monotonic() < give_up, f"only {moved}"
            with pytest.raises(QueueUnavailable):
                one.sweep()
            queued = {name for name, execution in (("again", again), ("lost", lost)) if _is_queued(store, execution)}
            found = store.get_execution(late)
            assert found is not None
            moved = queued | ({"late"} if found.status is ExecutionStatus.FAILED else set())
    finally:
        if outage == "stopped":
            redis_of_its_own.start()
        else:
            os.kill(redis_of_its_own.pid, signal.SIGCONT)
    # and the first pass that finds Redis, also with all it had, pushes what became queued
    _until_back(queue)
    one.sweep()
    waiting = [job.args[0]["execution"] for job in queue.rq_queue(LIST).jobs]
    assert {again, lost} <= set(waiting)
    assert len(waiting) == len(set(waiting))
    queue.close()


def _until_back(queue: NodeQueue) -> None:
    give_up, pause = time.monotonic() + 30, threading.Event()
    while True:
        try:
            return queue.ping()
        except QueueUnavailable:
            assert time.monotonic() < give_up
            pause.wait(0.05)


def _is_queued(store: ExecutionStore, execution_id: str) -> bool:
    (run,) = store.get_node_results(execution_id)
    return run.status == "queued"


class Passes(InMemoryExecutionStore):
    """A store that counts its sweeps, and has nothing due."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0

    def sweep(self, **_: Any) -> SweepResult:
        self.counted += 1
        return SweepResult((), {}, more=False)


def test_many_workers_share_the_passes_over_the_store(queue: NodeQueue) -> None:
    store = Passes()
    many = [sweeper(store, queue, sweep_seconds=60) for _ in range(20)]

    for one in many:
        one.sweep(shared=True)
    assert store.counted == 1
    assert 0 < queue.redis.pttl(queue.keys.sweep) < 60_000

    for one in many:
        one.sweep()  # a row is due
    assert store.counted == 21
    queue.redis.delete(queue.keys.sweep)
    many[7].sweep(shared=True)
    assert store.counted == 22
    store.close()


def test_a_pass_that_cannot_tell_whose_turn_it_is_has_it() -> None:
    refused = ResponseError("NOPERM this user has no permissions to run the 'set' command")
    assert RedisLook([b"", {}, set(), [], refused], []).has_turn
    assert RedisLook([b"", {}, set(), [], True], []).has_turn
    assert not RedisLook([b"", {}, set(), [], None], []).has_turn
