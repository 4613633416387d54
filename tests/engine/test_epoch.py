"""The epoch rises when Redis lost its data, once, whoever notices first."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from spanloom.engine.epoch import Epoch
from spanloom.engine.errors import ConfigurationError
from spanloom.engine.queue import NodeQueue
from spanloom.engine.store import ExecutionStore
from spanloom.stores import InMemoryExecutionStore, open_store


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "shop")
    yield made
    made.close()


@pytest.fixture
def store() -> Iterator[ExecutionStore]:
    made = open_store("memory://")
    made.open()
    yield made
    made.close()


def test_the_first_look_begins_epoch_one_and_the_next_keep_it(queue: NodeQueue, store: ExecutionStore) -> None:
    assert [Epoch(store, queue).check(), Epoch(store, queue).check()] == [1, 1]


def test_a_flush_raises_the_epoch(queue: NodeQueue, store: ExecutionStore) -> None:
    epoch = Epoch(store, queue)
    epoch.check()

    queue.redis.flushall()

    assert epoch.check() == 2
    assert epoch.number == 2


def test_a_server_of_another_run_raises_the_epoch(queue: NodeQueue, store: ExecutionStore) -> None:
    Epoch(store, queue).check()

    store.raise_epoch(1, "run id of a server that is gone")  # as if the last look had been at another server

    assert Epoch(store, queue).check() == 3


def test_a_flush_that_many_notice_raises_the_epoch_once(queue: NodeQueue, store: ExecutionStore) -> None:
    epochs = [Epoch(store, queue) for _ in range(8)]
    for epoch in epochs:
        epoch.check()
    queue.redis.flushall()
    barrier = threading.Barrier(8)

    def look(epoch: Epoch) -> None:
        barrier.wait(10)
        epoch.check()

    threads = [threading.Thread(target=look, args=(epoch,)) for epoch in epochs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert {epoch.check() for epoch in epochs} == {2}


def test_a_namespace_that_belongs_to_another_store_is_refused(queue: NodeQueue, store: ExecutionStore) -> None:
    Epoch(store, queue).check()
    other = InMemoryExecutionStore()

    with pytest.raises(ConfigurationError, match="another store"):
        Epoch(other, queue).check()

    other.close()


def test_a_store_that_ends_with_its_process_leaves_the_namespace_to_the_next(queue: NodeQueue) -> None:
    first, second = InMemoryExecutionStore(), InMemoryExecutionStore()
    epoch = Epoch(first, queue)
    epoch.check()
    assert 0 < queue.redis.ttl(queue.epoch_key) <= 60  # a process that crashed leaves it as well

    epoch.release()

    assert Epoch(second, queue).check() == 1
    epoch.release()  # it is not ours any more
    assert queue.redis.exists(queue.epoch_key)
    first.close()
    second.close()
