"""What a worker announces: changes of executions that somebody follows, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from spanloom.engine.events.listener import Listener
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.worker.queue.notifier import Notifier

A, B = "019cb2f4-1111-7abc-8def-0123456789ab", "019cb2f4-2222-7abc-8def-ba9876543210"


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "spanloom")
    yield made
    made.close()


@pytest.fixture
def notifier(queue: NodeQueue) -> Iterator[Notifier]:
    made = Notifier(queue, "w1")
    yield made
    made.close()


@pytest.fixture
def overheard(queue: NodeQueue) -> Iterator[Any]:
    """A subscription to everything, which follows nothing."""
    with queue.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.psubscribe("*")
        pubsub.get_message(timeout=5)
        yield pubsub


def announced(overheard: Any, queue: NodeQueue) -> list[str]:
    """The channels of what was published so far."""
    queue.redis.publish("end", "of it")
    found: list[str] = []
    while (message := overheard.get_message(timeout=5)) is None or message["channel"] != b"end":
        found += [message["channel"].decode()] if message else []
    return found


@contextmanager
def following(queue: NodeQueue, *execution_ids: str) -> Iterator[dict[str, threading.Event]]:
    listener = Listener(queue)
    try:
        heard = {execution_id: threading.Event() for execution_id in execution_ids}
        watching = [listener.watch(execution_id, heard[execution_id].set, changes=True) for execution_id in heard]
        for one in watching:
            one.__enter__()
        yield heard
        for one in watching:
            one.__exit__(None, None, None)
    finally:
        listener.close()


def test_nothing_is_announced_while_nobody_follows(notifier: Notifier, queue: NodeQueue, overheard: Any) -> None:
    notifier.refresh_watched()
    notifier.changed([A])
    notifier.note_mark(0)
    notifier.changed([A])
    notifier.close()
    assert announced(overheard, queue) == []


def test_those_that_are_followed_are_announced_and_no_others(
    notifier: Notifier, queue: NodeQueue, overheard: Any
) -> None:
    with following(queue, A) as heard:
        notifier.refresh_watched()
        notifier.changed([A, B])
        notifier.changed([B])
        assert heard[A].wait(10)
        notifier.close()
    assert announced(overheard, queue) == [queue.keys.changed_channel(A)]


def test_a_fetch_tells_that_others_are_followed_than_before(notifier: Notifier, queue: NodeQueue) -> None:
    with following(queue, A):
        notifier.refresh_watched()
        before = queue.watched_mark()
        with following(queue, B) as heard:
            assert queue.watched_mark() != before
            notifier.changed([B])
            assert not heard[B].wait(0.2)
            notifier.note_mark(queue.watched_mark())
            notifier.changed([B])
            assert heard[B].wait(10)


def test_the_mark_is_forgotten_some_time_after_the_last_has_left(queue: NodeQueue) -> None:
    with following(queue, A):
        assert 2000 < queue.redis.pttl(queue.keys.followed) <= 10_000
        assert queue.watched_executions() == {A}
    assert queue.watched_executions() == frozenset()


def test_a_followed_execution_that_changes_all_the_time_is_announced_in_portions(
    notifier: Notifier, queue: NodeQueue, overheard: Any
) -> None:
    with following(queue, A):
        notifier.refresh_watched()
        for _ in range(1000):
            notifier.changed([A])
        notifier.close()
    assert 1 <= len(announced(overheard, queue)) < 100
