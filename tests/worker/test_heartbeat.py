"""The heartbeat of a worker: what it keeps up, and whom it wakes."""

from __future__ import annotations

import threading

import pytest

from spanloom.engine.errors import QueueUnavailable
from spanloom.worker.queue.rq_heartbeat import Heartbeat
from spanloom.worker.service import Phase, WorkerState, running


class Redis:
    """A registration and a consumer in one: notes what is asked of it."""

    name = "w1"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.beaten, self.woken = threading.Event(), threading.Event()
        self.suspend = self.away = False

    def register(self) -> None:
        self.seen.append("register")

    def send_heartbeat(self, *, busy: bool) -> bool:
        if self.away:
            raise QueueUnavailable("away")
        self.beaten.set()
        return self.suspend

    def renew(self) -> None:
        self.seen.append("renew")

    def flush(self) -> None:
        self.seen.append("flush")

    def wake(self) -> None:
        self.woken.set()

    def unregister(self) -> None:
        if self.away:
            raise QueueUnavailable("away")
        self.seen.append("unregister")


@pytest.fixture
def redis() -> Redis:
    return Redis()


def heartbeat(redis: Redis, state: WorkerState, seconds: float = 60.0) -> Heartbeat:
    return Heartbeat(redis, redis, lambda: 0, state, seconds)  # type: ignore[arg-type]


def test_a_loop_that_is_to_drain_is_woken_also_if_its_grace_ends_at_once(redis: Redis) -> None:
    state = WorkerState()
    with running(heartbeat(redis, state)):
        assert redis.beaten.wait(10)
        assert not redis.woken.is_set()
        state.advance(Phase.DRAINING)
        state.advance(Phase.ABORTING)
        assert redis.woken.wait(10)

    assert redis.seen[0] == "register"
    assert redis.seen[-2:] == ["flush", "unregister"]


def test_a_worker_that_is_to_pause_fetches_nothing_more(redis: Redis) -> None:
    state = WorkerState()
    redis.suspend = True
    beating = heartbeat(redis, state)
    with running(beating):
        assert redis.woken.wait(10)
        assert beating.suspended
        state.advance(Phase.DRAINING)


def test_a_redis_that_is_away_keeps_no_worker_from_stopping(redis: Redis) -> None:
    state = WorkerState()
    redis.away = True
    with running(heartbeat(redis, state, seconds=0.01)):
        state.advance(Phase.DRAINING)

    assert "unregister" not in redis.seen
