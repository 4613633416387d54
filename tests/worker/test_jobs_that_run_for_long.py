"""What RQ's tools make of a job that runs for longer than they expect: nothing, as long as its worker renews it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from rq.registry import StartedJobRegistry

from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.requests import NodeJob
from spanloom.worker.queue import consumer as inbox_module
from spanloom.worker.queue.consumer import JobConsumer

LIST = "spanloom.default"
NODE = NodeJob("01890000-0000-7000-8000-000000000000", "a", 0, "work", "default", "normal", 1, datetime.now(UTC))


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "spanloom")
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The inbox's clock: `now` is Unix seconds."""
    made = SimpleNamespace(now=time.time(), monotonic=time.monotonic)
    made.time = lambda: made.now
    monkeypatch.setattr(inbox_module, "time", made)
    return made


def test_a_job_that_is_renewed_is_never_taken_for_abandoned(queue: NodeQueue, clock: SimpleNamespace) -> None:
    queue.push([NODE])
    consumer = JobConsumer(queue, ["default"], "worker")
    (message,) = consumer.fetch(1, 0.0)
    registry = StartedJobRegistry(LIST, connection=queue.redis, serializer="json")

    for _ in range(5):  # minutes
        clock.now += 100
        consumer.renew()
        assert registry.get_expired_job_ids(clock.now + 60) == []
    clock.now += 121

    assert [job_id.split(":")[0] for job_id in registry.get_expired_job_ids(clock.now)] == [message.job_id]
    consumer.done(message)
    consumer.flush()
    consumer.renew()
    assert registry.get_expired_job_ids(clock.now + 1_000) == []
