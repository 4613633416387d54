"""Redis emptied under a working worker: RQ's tools show it again after its next heartbeat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rq import Worker

from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.rq_registration import RqRegistration


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "spanloom")
    yield made
    made.close()


def test_a_worker_that_counts_before_its_heartbeat_is_shown_again(queue: NodeQueue) -> None:
    consumer = JobConsumer(queue, ["default"], "busy")
    registration = RqRegistration(queue, consumer.list_names, "busy", ttl_seconds=15)
    registration.register()
    queue.redis.flushall()

    consumer.done(None)
    consumer.flush()  # counts a node that ran, into a hash that is gone
    registration.send_heartbeat(busy=True)

    (shown,) = Worker.all(connection=queue.redis)
    assert (shown.name, shown.get_state(), shown.pid) == ("busy", "busy", registration.pid)


def test_a_heartbeat_that_finds_its_worker_registers_nothing(queue: NodeQueue) -> None:
    consumer = JobConsumer(queue, ["default"], "idle")
    registration = RqRegistration(queue, consumer.list_names, "idle", ttl_seconds=15)
    registration.register()
    born = queue.redis.hget(registration.key, "birth")

    registration.send_heartbeat(busy=False)

    assert queue.redis.hget(registration.key, "birth") == born
