"""What RQ's tools say of the jobs of a worker that was killed: nothing, once its claims were recovered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from rq.registry import FailedJobRegistry, StartedJobRegistry

from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_epoch import Epoch
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim
from spanloom.stores import open_store
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single
from spanloom.worker import WorkerOptions
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.started_jobs import StartedJobCleaner
from spanloom.worker.service import WorkerEvents
from spanloom.worker.sweeper import Sweeper

LIST = "shop.default"
WIP = f"rq:wip:{LIST}"


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "shop")
    yield made
    made.close()


@pytest.fixture
def store(store_url: str) -> Iterator[ExecutionStore]:
    made = open_store(store_url)
    made.open()
    yield made
    made.close()


def worker(store: ExecutionStore, name: str, lease_seconds: float) -> None:
    store.register_worker(f"{name}:1", name=name, host="h", pid=1, queues=["default"], lease_seconds=lease_seconds)


def test_who_recovers_a_dead_workers_claims_takes_its_jobs_off_the_books(
    store: ExecutionStore, queue: NodeQueue
) -> None:
    # given two workers that each have started a job, of which one dies
    epoch = Epoch(store, queue)
    epoch.check()
    driver = StoreDriver(store)
    store.save_workflow(single())
    worker(store, "dead", lease_seconds=300)
    worker(store, "live", lease_seconds=300)
    started = {}
    for name in ("dead", "live"):
        driver.start("single")
        queue.push(list(driver.jobs))
        driver.jobs.clear()
        (started[name],) = JobConsumer(queue, ["default"], name).fetch(1, 0)
        (claim,) = store.claim([started[name].key], worker_id=f"{name}:1")
        assert isinstance(claim, Claim)
    assert queue.redis.zcard(WIP) == 2
    # when a sweep finds that its lease has lapsed
    assert store.renew_lease("dead:1", lease_seconds=0.1)
    sweeper = Sweeper(store, queue, epoch, [LIST], WorkerOptions(), WorkerEvents())
    give_up, pause = time.monotonic() + 30, threading.Event()
    while not sweeper.sweep():
        assert time.monotonic() < give_up
        pause.wait(0.05)
    # then the run waits under its next push, and nothing of the job before it is left
    (waiting,) = queue.rq_queue(LIST).job_ids
    assert waiting == started["dead"].job_id.removesuffix("-1") + "-2"
    assert [member.decode() for member in queue.redis.zrange(WIP, 0, -1)] == [f"{started['live'].job_id}:live"]
    assert not queue.redis.exists(f"rq:job:{started['dead'].job_id}")
    assert queue.redis.exists(f"rq:job:{started['live'].job_id}")


def _started(queue: NodeQueue, store: ExecutionStore, name: str = "one") -> tuple[JobConsumer, NodeMessage]:
    driver = StoreDriver(store)
    driver.start(single())
    queue.push(list(driver.jobs))
    consumer = JobConsumer(queue, ["default"], name)
    (message,) = consumer.fetch(1, 0)
    return consumer, message


@pytest.mark.parametrize("store_url", ["memory"], indirect=True)
class TestOneJob:
    """What becomes of one started job."""

    def test_rq_never_calls_a_job_abandoned_that_nobody_recovered(
        self, queue: NodeQueue, store: ExecutionStore
    ) -> None:
        _, message = _started(queue, store)
        job_id = message.job_id
        left_seconds = queue.redis.zscore(WIP, f"{job_id}:one") - time.time()
        assert 0 < queue.redis.ttl(f"rq:job:{job_id}") < left_seconds  # so it is gone when RQ looks for it

        queue.redis.delete(f"rq:job:{job_id}")
        StartedJobRegistry(LIST, connection=queue.redis, serializer="json").cleanup(time.time() + left_seconds + 1)

        assert queue.redis.zcard(WIP) == 0
        assert FailedJobRegistry(LIST, connection=queue.redis, serializer="json").get_job_ids() == []

    def test_a_job_that_runs_is_kept_on_the_books(self, queue: NodeQueue, store: ExecutionStore) -> None:
        consumer, message = _started(queue, store)
        job_id = message.job_id
        queue.redis.expire(f"rq:job:{job_id}", 5)
        queue.redis.zadd(WIP, {f"{job_id}:one": time.time() + 6})

        consumer.renew()

        assert queue.redis.ttl(f"rq:job:{job_id}") > 60
        assert queue.redis.zscore(WIP, f"{job_id}:one") > time.time() + 60

    def test_a_job_that_was_put_back_never_expires(self, queue: NodeQueue, store: ExecutionStore) -> None:
        consumer, message = _started(queue, store)
        job_id = message.job_id
        consumer.requeue([message])

        consumer._started[job_id] = LIST  # as a renewal knew it that comes late
        consumer.renew()

        assert queue.redis.ttl(f"rq:job:{job_id}") == -1
        assert queue.rq_queue(LIST).job_ids == [job_id]
        assert queue.redis.zcard(WIP) == 0

    def test_what_a_namesake_left_is_struck_off(self, queue: NodeQueue, store: ExecutionStore) -> None:
        _started(queue, store)
        worker(store, "one", lease_seconds=300)

        started_jobs = StartedJobCleaner(store, queue, [LIST])

        assert started_jobs.clean() == 0
        assert started_jobs.clean("one") == 1
        assert queue.redis.keys("rq:job:*") == []

    def test_a_job_that_nobody_renews_is_struck_off_though_its_worker_lives(
        self, queue: NodeQueue, store: ExecutionStore
    ) -> None:
        _, message = _started(queue, store)
        job_id = message.job_id
        worker(store, "one", lease_seconds=300)
        queue.redis.zadd(WIP, {f"{job_id}:one": time.time() - 3600})

        assert StartedJobCleaner(store, queue, [LIST]).clean() == 1

    def test_a_job_that_someone_else_has_started_since_is_kept(self, queue: NodeQueue, store: ExecutionStore) -> None:
        _, message = _started(queue, store, "dead")
        job_id = message.job_id
        worker(store, "live", lease_seconds=300)
        queue.redis.rpush(f"rq:queue:{LIST}", job_id)  # pushed again by hand
        assert len(JobConsumer(queue, ["default"], "live").fetch(1, 0)) == 1

        assert StartedJobCleaner(store, queue, [LIST]).clean() == 1

        assert queue.redis.exists(f"rq:job:{job_id}")

    def test_a_redis_that_was_emptied_breaks_nothing(self, queue: NodeQueue, store: ExecutionStore) -> None:
        consumer, _ = _started(queue, store)
        queue.redis.flushall()

        consumer.renew()

        assert StartedJobCleaner(store, queue, [LIST]).clean("one") == 0
        assert queue.redis.keys("*") == []
