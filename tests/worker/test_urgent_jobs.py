"""Whether more urgent jobs wait, for which a worker that goes on with successors makes way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.requests import NodeJob
from spanloom.worker.queue import consumer as consumer_module
from spanloom.worker.queue.consumer import JobConsumer

AT = datetime(2026, 1, 2, tzinfo=UTC)


def job(number: int, priority: str = "normal") -> NodeJob:
    return NodeJob(f"e{number}", "a", 0, "work", "default", priority, 1, AT)


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "shop")
    yield made
    made.close()


@pytest.mark.parametrize(("free", "known"), [(3, True), (2, False)])
def test_a_fetch_that_leaves_nothing_answers_for_a_moment_that_nothing_urgent_waits(
    queue: NodeQueue, monkeypatch: pytest.MonkeyPatch, free: int, known: bool
) -> None:
    # given a fetch of two jobs, for as many slots or for more, after which an urgent one comes
    consumer = JobConsumer(queue, ["default"], "w")
    queue.push([job(1), job(2)])
    assert len(consumer.fetch(free, 0)) == 2
    queue.push([job(3, "high")])
    # then, while an answer counts, the fetch is one if it has seen that nothing was left
    monkeypatch.setattr(consumer_module, "_URGENT_SECONDS", 60.0)
    assert consumer.urgent_waits("default", "normal") is not known
    # and no longer
    monkeypatch.setattr(consumer_module, "_URGENT_SECONDS", 0.0)
    assert consumer.urgent_waits("default", "normal")
    assert not consumer.urgent_waits("default", "high")
