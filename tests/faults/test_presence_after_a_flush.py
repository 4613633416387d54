"""Redis emptied under a working worker: RQ's tools show it again after its next heartbeat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rq import Worker

from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.worker.queue.consumer import Inbox
from spanloom.worker.queue.registration import Presence


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "spanloom")
    yield made
    made.close()


def test_a_worker_that_counts_before_its_heartbeat_is_shown_again(queue: NodeQueue) -> None:
    inbox = Inbox(queue, ["default"], "busy")
    presence = Presence(queue, inbox.list_names, "busy", ttl_seconds=15)
    presence.arrive()
    queue.redis.flushall()

    inbox.done(None)
    inbox.flush()  # counts a node that ran, into a hash that is gone
    presence.beat(busy=True)

    (shown,) = Worker.all(connection=queue.redis)
    assert (shown.name, shown.get_state(), shown.pid) == ("busy", "busy", presence.pid)


def test_a_heartbeat_that_finds_its_worker_registers_nothing(queue: NodeQueue) -> None:
    inbox = Inbox(queue, ["default"], "idle")
    presence = Presence(queue, inbox.list_names, "idle", ttl_seconds=15)
    presence.arrive()
    born = queue.redis.hget(presence.key, "birth")

    presence.beat(busy=False)

    assert queue.redis.hget(presence.key, "birth") == born
