"""The epoch rises when Redis lost its data, once, whoever notices first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ResponseError

from spanloom.engine import WorkflowBuilder, WorkflowEngine, WorkflowInvalid
from spanloom.engine.errors import ConfigurationError
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_epoch import Epoch
from spanloom.engine.store.port import ExecutionStore
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
    assert 0 < queue.redis.ttl(queue.keys.epoch) <= 60  # a process that crashed leaves it as well

    epoch.release()

    assert Epoch(second, queue).check() == 1
    epoch.release()  # it is not ours any more
    assert queue.redis.exists(queue.keys.epoch)
    first.close()
    second.close()


@pytest.mark.parametrize("version", ["6.0.16", "5.0.14", "2.8.4"])
def test_a_redis_that_is_too_old_is_refused_with_its_version(
    queue: NodeQueue, store: ExecutionStore, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    _reports(monkeypatch, queue, {"redis_version": version, "run_id": "a-run"})

    with pytest.raises(ConfigurationError, match=rf"version {version}, but Spanloom needs Redis 6.2 or later"):
        Epoch(store, queue).check()


@pytest.mark.parametrize(
    "server",
    [
        {"redis_version": "6.2.0", "run_id": "a-run"},
        {"redis_version": "7.2.4", "run_id": "a-run"},
        {"redis_version": "10.0.0", "run_id": "a-run"},
        {"redis_version": "unstable", "run_id": "a-run"},
        {"run_id": "a-run"},
        {},
    ],
)
def test_a_redis_of_this_time_or_of_no_known_version_is_accepted(
    queue: NodeQueue, store: ExecutionStore, monkeypatch: pytest.MonkeyPatch, server: dict[str, str]
) -> None:
    _reports(monkeypatch, queue, server)

    assert Epoch(store, queue).check() == 1


def test_a_redis_that_hides_its_version_is_accepted(
    queue: NodeQueue, store: ExecutionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(section: str) -> dict[str, str]:
        raise ResponseError("unknown command 'INFO'")

    monkeypatch.setattr(queue.redis, "info", refuse)

    assert Epoch(store, queue).check() == 1


def _reports(monkeypatch: pytest.MonkeyPatch, queue: NodeQueue, server: dict[str, str]) -> None:
    monkeypatch.setattr(queue.redis, "info", lambda section: server)


def test_a_second_flush_is_noticed_by_who_has_not_seen_the_first(queue: NodeQueue, store: ExecutionStore) -> None:
    first, late = Epoch(store, queue), Epoch(store, queue)
    first.check()
    late.check()
    queue.redis.flushall()
    assert first.check() == 2
    queue.redis.flushall()

    assert late.check() == 3  # what was pushed in epoch 2 is lost as well

    assert first.check() == 3


def test_who_loses_the_race_leaves_the_key_to_the_winner(queue: NodeQueue, store: ExecutionStore) -> None:
    winner, loser = Epoch(store, queue), Epoch(store, queue)
    winner.check()
    loser.check()
    queue.redis.flushall()
    run_id = store.get_epoch().redis_run_id
    raised = store.raise_epoch(1, run_id)  # as the winner does, who then takes a moment to write the key
    write = threading.Timer(0.05, winner._write, [raised])
    write.start()

    assert loser.check() == 2

    write.join()


def test_a_number_written_late_over_a_later_loss_counts_as_a_loss(queue: NodeQueue, store: ExecutionStore) -> None:
    epoch = Epoch(store, queue)
    epoch.check()
    before = store.get_epoch()
    queue.redis.flushall()
    assert epoch.check() == 2
    queue.redis.flushall()
    epoch._write(before)  # by someone who raised it to 1, and was stopped before this

    assert epoch.check() == 3
    assert queue.redis.get(queue.keys.epoch) == f"{before.store_id} 3".encode()


def test_an_engine_that_does_not_open_leaves_the_namespace_to_the_next(redis_url: str) -> None:
    wrong = WorkflowBuilder[Any]("wrong")

    @wrong.node()
    def needs(data: Any, also: Any) -> None: ...

    with pytest.raises(WorkflowInvalid):
        WorkflowEngine([wrong], store="memory://", redis=redis_url).open()

    with WorkflowEngine([], store="memory://", redis=redis_url):
        pass
