"""The sweep of a worker: how long one goes on, and what it does while Redis is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from spanloom.engine.epoch import Epoch
from spanloom.engine.queue import NodeQueue
from spanloom.engine.records import Swept
from spanloom.engine.store import ExecutionStore
from spanloom.stores import InMemoryExecutionStore
from spanloom.worker import WorkerOptions
from spanloom.worker.sweeper import Sweeper

LIST = "shop.default"


class Endless(InMemoryExecutionStore):
    """A store in which something is due all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = threading.Event()

    def sweep(self, **options: Any) -> Swept:
        self.at_work.set()
        return Swept((), {"timer": 1}, more=True)


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "shop")
    yield made
    made.close()


def sweeper(store: ExecutionStore, queue: NodeQueue, **options: Any) -> Sweeper:
    return Sweeper(store, queue, Epoch(store, queue), [LIST], WorkerOptions(sweep_seconds=0.05, **options))


def test_a_worker_that_stops_does_not_wait_for_the_end_of_a_backlog(queue: NodeQueue) -> None:
    store = Endless()
    endless = sweeper(store, queue)
    endless.start()
    assert store.at_work.wait(10)

    endless.stop()

    endless.thread.join(10)
    assert not endless.thread.is_alive()
    store.close()
