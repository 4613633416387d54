"""Jobs of a type that a worker lacks wait on a list beside the others, which only workers that know it serve."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from redis import Redis
from rq.queue import Queue

from spanloom.engine import Node, NodeRegistry, QueueUnavailable, Workflow, WorkflowEngine
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.side_lists import side_list
from spanloom.engine.store.requests import NodeJob
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.unknown_types import SideListFollower, UnknownTypeFilter

AT = datetime(2026, 1, 2, tzinfo=UTC)
SIDE = side_list("shop.default", "new")


def job(number: int, node_type: str = "old") -> NodeJob:
    return NodeJob(f"e{number}", "a", 0, node_type, "default", "normal", 1, AT)


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "shop")
    yield made
    made.close()


def waiting(queue: NodeQueue, name: str = "shop.default") -> list[str]:
    return [one.decode().partition("-")[0] for one in queue.redis.lrange(queue.keys.queue(name), 0, -1)]


def test_jobs_of_an_unknown_type_go_aside_with_those_behind_them_and_the_others_keep_their_order(
    queue: NodeQueue,
) -> None:
    consumer = JobConsumer(queue, ["default"], "w")
    queue.push([job(number, "old" if number % 3 == 0 else "new") for number in range(1, 10)])

    known = UnknownTypeFilter(consumer, {"old"}).put_aside(consumer.fetch(3, 0))

    assert [message.execution_id for message in known] == ["e3"]
    assert waiting(queue) == ["e6", "e9"]
    assert waiting(queue, SIDE) == ["e1", "e2", "e4", "e5", "e7", "e8"]
    shown = Queue(SIDE, connection=queue.redis, serializer="json").jobs
    assert [(one.get_status(), one.origin) for one in shown] == [("queued", SIDE)] * 6
    assert queue.redis.zcard(queue.keys.started("shop.default")) == 1
    assert SIDE in {one.name for one in Queue.all(connection=queue.redis, serializer="json")}


def test_a_side_list_is_served_by_workers_that_know_its_type_and_lists_as_its_base_list(queue: NodeQueue) -> None:
    old, new = JobConsumer(queue, ["default"], "old"), JobConsumer(queue, ["default"], "new")
    queue.push([job(1, "new"), job(2)])
    UnknownTypeFilter(old, {"old"}).put_aside(old.fetch(1, 0))
    for consumer, types in ((old, {"old"}), (new, {"old", "new"})):
        SideListFollower(consumer, lambda types=types: types).follow(queue.known_lists(["shop.default"]))  # type: ignore[misc]

    assert [message.execution_id for message in old.fetch(9, 0)] == ["e2"]
    (found,) = new.fetch(9, 0.1)

    assert (found.execution_id, found.list_name) == ("e1", "shop.default")
    new.discard(found)
    new.flush()
    queue.drop_empty_side_lists()
    assert SIDE not in queue.known_lists([])


def test_the_head_of_a_side_list_stands_for_its_type(queue: NodeQueue) -> None:
    consumer = JobConsumer(queue, ["default"], "w")
    queue.push([job(1, "new")])
    UnknownTypeFilter(consumer, {"old"}).put_aside(consumer.fetch(1, 0))

    assert queue.heads(["shop.default"]) == {"default": None, "default@new": AT}


def test_a_job_that_was_popped_is_not_lost_with_the_script_that_should_have_started_it(
    queue: NodeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = JobConsumer(queue, ["default"], "w")
    queue.push([job(1)])
    pop = consumer._pop
    failing = iter([lambda *_: [], _refuse])
    monkeypatch.setattr(consumer, "_pop", lambda *given: next(failing, pop)(*given))
    with pytest.raises(QueueUnavailable):
        consumer.fetch(1, 0.5)

    queue.breaker.check()
    assert [message.execution_id for message in consumer.fetch(1, 0)] == ["e1"]


def _refuse(*_: Any) -> None:
    raise ConnectionError("between the pop and the start")


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.torture)])
def test_many_jobs_of_a_type_that_nobody_has_delay_no_others_and_run_when_somebody_has_it(
    redis_url: str, count: int
) -> None:
    registry, newer = NodeRegistry(), NodeRegistry()
    registry.register("old", lambda: 1)
    newer.merge(registry)
    newer.register("new", lambda: 2)
    with WorkflowEngine(registry, "memory://", redis_url) as engine:
        engine.register_workflow(Workflow(id="known", nodes=[Node(id="a", type="old")]))
        engine.store.save_workflow(Workflow(id="strange", nodes=[Node(id="a", type="new")]))
        started = engine.enqueue_workflows("strange", range(count))
        cancelled, kept = started[: count // 2], started[count // 2 :]
        with Redis.from_url(redis_url) as redis, engine.start_workers(2, sweep_seconds=0.05):
            assert engine.run("known", timeout=30) == 1
            side = "rq:queue:" + side_list("spanloom.default", "new")
            until(lambda: redis.llen(side) == count)
            for one in cancelled:
                engine.cancel_execution(one)
            fetches = redis.info("commandstats")["cmdstat_lpop"]["calls"]
            assert engine.run("known", timeout=30) == 1
            time.sleep(0.3)  # sweeps go by
            # then: nothing circulates, and nothing is pushed a second time
            assert redis.info("commandstats")["cmdstat_lpop"]["calls"] - fetches < 50
            assert redis.llen(side) == count
            with (
                WorkflowEngine(newer, engine.store, redis_url) as other,
                other.start_workers(1, sweep_seconds=0.05),
            ):
                assert {engine.wait(one, timeout=30).output for one in kept} == {2}
                until(lambda: redis.llen(side) == 0)


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    give_up, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < give_up
        pause.wait(0.01)
