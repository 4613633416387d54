"""What a worker publishes of the executions it changes: always, with round trips that it makes anyway."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import spanloom.worker.queue.consumer as consumer_module
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.requests import NodeJob
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.notifier import Notifier

A, B = "019cb2f4-1111-7abc-8def-0123456789ab", "019cb2f4-2222-7abc-8def-ba9876543210"


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "spanloom")
    yield made
    made.close()


@pytest.fixture
def consumer(queue: NodeQueue) -> JobConsumer:
    return JobConsumer(queue, ["default"], "w1")


@pytest.fixture
def notifier(consumer: JobConsumer) -> Iterator[Notifier]:
    made = Notifier(consumer, "w1")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def overheard(queue: NodeQueue) -> Iterator[Any]:
    """A subscription to everything."""
    with queue.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.psubscribe("*")
        pubsub.get_message(timeout=5)
        yield pubsub


def published(overheard: Any, queue: NodeQueue) -> list[str]:
    """The channels of what was published so far."""
    queue.redis.publish("end", "of it")
    found: list[str] = []
    while (message := overheard.get_message(timeout=5)) is None or message["channel"] != b"end":
        found += [message["channel"].decode()] if message else []
    return found


def round_trips(queue: NodeQueue) -> int:
    """How many reads of a client's socket Redis has made."""
    return int(queue.redis.info("stats")["total_reads_processed"])


def test_a_fetch_takes_what_has_changed_along_once_for_each_execution(
    consumer: JobConsumer, queue: NodeQueue, overheard: Any
) -> None:
    consumer.fetch(1, 0)  # loads the script
    before = round_trips(queue)
    consumer.fetch(1, 0)
    without = round_trips(queue) - before
    consumer.publish_changed([A, B])
    consumer.publish_changed([A])
    before = round_trips(queue)
    consumer.fetch(1, 0)

    assert round_trips(queue) - before == without
    assert sorted(published(overheard, queue)) == [queue.keys.changed_channel(A), queue.keys.changed_channel(B)]


def test_a_flush_sends_what_fetches_keep_back(
    consumer: JobConsumer, queue: NodeQueue, overheard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "_PUBLISH_SECONDS", 1e9)  # no fetch is that long after the last publication
    consumer.publish_changed([A])
    consumer.fetch(1, 0)
    assert published(overheard, queue) == []
    assert consumer.has_changes

    consumer.flush()
    assert published(overheard, queue) == [queue.keys.changed_channel(A)]
    assert not consumer.has_changes


def test_a_push_takes_what_has_changed_along(queue: NodeQueue, overheard: Any) -> None:
    job = NodeJob(A, "n", 0, "plain", "default", "normal", 1, datetime.now(UTC))
    queue.push([job])
    before = round_trips(queue)
    queue.push([job])
    without = round_trips(queue) - before
    before = round_trips(queue)
    queue.push([job], changed=[A])

    assert round_trips(queue) - before == without
    assert published(overheard, queue) == [queue.keys.changed_channel(A)]


def test_without_another_round_trip_it_is_published_soon(notifier: Notifier, queue: NodeQueue, overheard: Any) -> None:
    notifier.changed([A])

    assert overheard.get_message(timeout=10)["channel"].decode() == queue.keys.changed_channel(A)


def test_an_execution_that_changes_all_the_time_is_published_in_portions(
    notifier: Notifier, consumer: JobConsumer, queue: NodeQueue, overheard: Any
) -> None:
    for _ in range(1000):
        notifier.changed([A])
    notifier.stop()
    consumer.flush()

    assert 1 <= len(published(overheard, queue)) < 100
    assert not consumer.has_changes


class StoppedAsTheWaitEnds(threading.Event):
    """Says that nobody has stopped it, and is stopped before the one who asked goes on."""

    def __init__(self, wake: threading.Event) -> None:
        super().__init__()
        self._wake = wake

    def wait(self, timeout: float | None = None) -> bool:
        answer = super().wait(timeout)
        self.set()
        self._wake.set()
        return answer


def test_it_ends_though_it_is_stopped_as_it_has_gathered(
    consumer: JobConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Notifier(consumer, "w1")
    monkeypatch.setattr(made, "_stopped", StoppedAsTheWaitEnds(made._wake))
    made.start()
    made.changed([A])
    made._thread.join(10)

    assert not made._thread.is_alive()
