"""A Redis that hangs, stopped or behind a network that drops packets: who asks it is held up once, not each time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis
from redis.connection import AbstractConnection
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.testing import capture_logs

from spanloom.engine import Node, NodeContext, NodeRegistry, QueueUnavailable, Workflow, WorkflowEngine
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_client import ANSWER_SECONDS, redis_client
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.servers import RedisServer
from spanloom.worker.queue.consumer import JobConsumer

AT_ONCE_SECONDS = 8.0  # for ten; far less than one wait for an answer each


@contextmanager
def hanging(server: RedisServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Collect each wait of this thread for an answer that did not come; pings are sent by threads of their own."""
    found: list[Exception] = []
    asker, read = threading.current_thread(), AbstractConnection.read_response

    def noted(*args: Any, **options: Any) -> Any:
        try:
            return read(*args, **options)
        except RedisTimeoutError as error:
            if threading.current_thread() is asker:
                found.append(error)
            raise

    monkeypatch.setattr(AbstractConnection, "read_response", noted)
    return found


def registry(first: threading.Event | None = None, release: threading.Event | None = None) -> NodeRegistry:
    made = NodeRegistry()

    @made.node("gate")
    def gate(ctx: NodeContext) -> int:
        assert first is not None
        assert release is not None
        first.set()
        assert release.wait(60)
        return 1

    @made.node("pass")
    def passes(ctx: NodeContext) -> int:
        return 1

    return made


def until_back(queue: NodeQueue) -> None:
    give_up, pause = time.monotonic() + 30, threading.Event()
    while True:
        try:
            return queue.ping()
        except QueueUnavailable:
            assert time.monotonic() < give_up
            pause.wait(0.05)


def test_a_start_waits_once_and_says_it_once(own_redis: RedisServer, waits: list[Exception]) -> None:
    with WorkflowEngine(registry(), InMemoryExecutionStore(), own_redis.url) as engine:
        engine.register_workflow(Workflow(id="one", nodes=(Node(id="a", type="pass"),)))
        engine.epoch.check()  # anew only in seconds: the push is what meets a Redis that hangs
        with hanging(own_redis), capture_logs() as logs:
            first = engine.enqueue_workflow("one")
            assert len(waits) == 1

            began = time.monotonic()
            more = [engine.enqueue_workflow("one") for _ in range(10)]
            assert time.monotonic() - began < AT_ONCE_SECONDS
            assert len(waits) == 1
            assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["push_deferred"]

        until_back(engine.queue)  # found by a ping that someone sent who was refused
        with engine.start_workers(1):
            for execution_id in (first, *more):
                assert engine.wait(execution_id, timeout=30).output == 1


def test_an_engine_that_finds_redis_hanging_when_it_opens_is_held_up_once(
    own_redis: RedisServer, waits: list[Exception]
) -> None:
    engine = WorkflowEngine(registry(), InMemoryExecutionStore(), own_redis.url)
    with hanging(own_redis):
        engine.register_workflow(Workflow(id="one", nodes=(Node(id="a", type="pass"),)))
        engine.enqueue_workflow("one")
        assert len(waits) == 1
    engine.close()


def test_a_worker_goes_through_a_chain_while_redis_hangs(own_redis: RedisServer) -> None:
    first, release = threading.Event(), threading.Event()
    nodes = [Node(id="n0", type="gate")]
    nodes += [Node(id=f"n{number}", type="pass", inputs=[f"n{number - 1}"]) for number in range(1, 20)]
    nodes += [Node(id=f"side{number}", type="pass", inputs=[f"n{number}"]) for number in range(20)]  # each a push
    with WorkflowEngine(registry(first, release), InMemoryExecutionStore(), own_redis.url) as engine:
        engine.register_workflow(Workflow(id="chain", nodes=tuple(nodes)))
        with engine.start_workers(1, max_inline_seconds=60):
            execution_id = engine.enqueue_workflow("chain", priority="low")  # which looks for what is more urgent
            assert first.wait(30)
            with hanging(own_redis):
                began, pause = time.monotonic(), threading.Event()
                release.set()
                # what goes on here goes on, what is to be handed over waits
                while sum(run.status.ended for run in engine.store.get_node_results(execution_id)) < 20:
                    assert time.monotonic() - began < 25  # less than a wait for each push
                    pause.wait(0.05)
            assert engine.wait(execution_id, timeout=30).status == "completed"


def test_a_read_that_waits_for_jobs_is_not_taken_for_a_redis_that_hangs(own_redis: RedisServer) -> None:
    queue = NodeQueue(own_redis.url, "shop")

    assert JobConsumer(queue, ["default"], "patient").fetch(1, ANSWER_SECONDS + 0.5) == []

    assert not queue.breaker.is_open
    queue.close()


def test_a_wait_that_began_while_redis_hung_is_told_of_the_end(own_redis: RedisServer) -> None:
    with WorkflowEngine(registry(), InMemoryExecutionStore(), own_redis.url) as engine:
        told = threading.Event()
        with hanging(own_redis):
            with pytest.raises(QueueUnavailable):
                engine.queue.ping()
            watching = engine._listener.watch("an-execution", told.set)
            watching.__enter__()
        give_up = time.monotonic() + 30
        while not told.wait(0.1):
            assert time.monotonic() < give_up
            engine.queue.redis.publish(engine.queue.keys.ended_channel("an-execution"), "ended")
        watching.__exit__(None, None, None)


def test_a_client_that_was_given_keeps_its_own_settings(own_redis: RedisServer) -> None:
    with Redis.from_url(own_redis.url, socket_timeout=90, retry_on_timeout=True) as given:
        before = dict(given.connection_pool.connection_kwargs)

        ours = redis_client(given)

        assert given.connection_pool.connection_kwargs == before
        assert ours.connection_pool.connection_kwargs["socket_timeout"] == ANSWER_SECONDS
        ours.close()
