"""One bad key, list or job in Redis costs itself: the rest of the work goes on, and it is named once in the log."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis
from structlog.testing import capture_logs

from spanloom.engine import Node, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.queue.message import JOB_FUNCTION
from spanloom.worker.queue.failed_jobs import MOST_FAILED

LIST = "rq:queue:spanloom.default"
HUGE = "x" * 50_000_000
Spoil = Callable[[Redis], object]


def push(redis: Redis, job_id: str | bytes, data: str | None, **fields: str) -> None:
    key = b"rq:job:" + (job_id if isinstance(job_id, bytes) else job_id.encode())
    redis.hset(key, mapping={"status": "queued", **({"data": data} if data is not None else {}), **fields})
    redis.lpush(LIST, job_id)


def message(**fields: Any) -> str:
    body = {"format": 1, "execution": "e", "node": "n", "item": 0, "type": "pass", "push": 1, "at": 1.0, **fields}
    return json.dumps([JOB_FUNCTION, None, [body], {}])


def member(redis: Redis, name: bytes) -> None:
    redis.sadd("rq:queues", b"rq:queue:" + name)


SPOILS: dict[str, Spoil] = {
    "a member that is no UTF-8": lambda redis: member(redis, b"spanloom.\xff\xfe"),
    "a member of another form": lambda redis: member(redis, b"spanloom.a[/]b\x1b[31m"),
    "a member without the prefix": lambda redis: redis.sadd("rq:queues", b"\xff" * 1000),
    "a foreign hash at a list": lambda redis: (redis.hset(f"{LIST}2", "a", "b"), member(redis, b"spanloom.default2")),
    "our list is a string": lambda redis: redis.set(LIST, "a"),
    "our urgent list is a hash": lambda redis: redis.hset(f"{LIST}.high", "a", "b"),
    "the set of lists is a string": lambda redis: (redis.delete("rq:queues"), redis.set("rq:queues", "a")),
    "the started jobs are a list": lambda redis: redis.rpush("rq:wip:spanloom.default", "a"),
    "the failed jobs are a list": lambda redis: redis.rpush("rq:failed:spanloom.default", "a"),
    "RQ's workers are a string": lambda redis: (redis.delete("rq:workers"), redis.set("rq:workers", "a")),
    "RQ's entry of the worker is a list": lambda redis: [
        (redis.delete(key), redis.rpush(key, "a")) for key in redis.keys("rq:worker:*")
    ],
    "the wake list is a hash": lambda redis: [
        redis.hset(key.decode().replace("rq:worker:", "spanloom:wake:"), "a", "b") for key in redis.keys("rq:worker:*")
    ],
    "the epoch is garbage": lambda redis: redis.set("spanloom:epoch", b"\xff\x00 x"),
    "the epoch has a garbage number": lambda redis: redis.append("spanloom:epoch", "x"),
    "the epoch is no string": lambda redis: (redis.delete("spanloom:epoch"), redis.rpush("spanloom:epoch", "a")),
    "the epoch is empty": lambda redis: redis.set("spanloom:epoch", ""),
    "a job without a hash": lambda redis: redis.lpush(LIST, "nothing"),
    "a job without data": lambda redis: push(redis, "empty", None),
    "a job of garbage": lambda redis: push(redis, "garbage", "\x00{"),
    "a job that is a list": lambda redis: (redis.rpush("rq:job:list", "a"), redis.lpush(LIST, "list")),
    "a job of 50 MB": lambda redis: push(redis, "huge", message(type=HUGE)),
    "a job with an id of 50 MB": lambda redis: redis.lpush(LIST, HUGE),
    "an id with an escape sequence": lambda redis: push(redis, "\x1b]0;title\x07\x9b31m", message()),
    "an id that is no UTF-8": lambda redis: push(redis, b"\xff\xfe", message()),
    "a type with an escape sequence": lambda redis: push(redis, "typed", message(type="\x1b[31m")),
    "an odd number": lambda redis: push(redis, "odd", message(at=1e400, item=-1)),
    "a forged node": lambda redis: push(redis, "forged", message(execution="\x1b[31m")),
    "a job of another function": lambda redis: push(redis, "other", json.dumps(["os.system", None, ["true"], {}])),
    "a job of an unknown type": lambda redis: push(redis, "strange", message(type="nobody[/]has this type")),
}  # fmt: skip


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as made:
        yield made


@pytest.fixture
def engine(redis_url: str) -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()
    registry.register("pass", lambda: 1)

    @registry.node("fail")
    def fail() -> None:
        raise ValueError("x" * 100_000)

    with WorkflowEngine(registry, "memory://", redis_url) as made:
        made.register_workflow(
            Workflow(id="flow", nodes=[Node(id="a", type="pass"), Node(id="b", type="pass", inputs=["a"])])
        )
        made.register_workflow(Workflow(id="bad", nodes=[Node(id="a", type="fail")]))
        yield made


@pytest.mark.one_in(3)
@pytest.mark.parametrize("what", SPOILS)
def test_a_bad_thing_in_redis_costs_itself(what: str, engine: WorkflowEngine, redis: Redis) -> None:
    with capture_logs() as lines, engine.start_workers(1, sweep_seconds=0.05):
        assert engine.run("flow", timeout=20) == 1
        SPOILS[what](redis)
        for _ in range(3):
            assert engine.run("flow", timeout=20) == 1
        until(lambda: redis.llen(LIST) == 0)
        assert not engine.queue.breaker.is_open
    named = [line for line in lines if line["log_level"] in ("warning", "error")]
    assert len(named) <= 2, named
    assert all(len(str(line)) < 2_000 for line in named)
    assert all(str(value).isprintable() for line in named for value in line.values())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("what", SPOILS)
def test_a_worker_starts_beside_a_bad_thing(what: str, engine: WorkflowEngine, redis: Redis) -> None:
    engine.open()
    SPOILS[what](redis)
    started = engine.enqueue_workflow("flow")
    with engine.start_workers(1, sweep_seconds=0.05):
        assert engine.wait(started, timeout=20).output == 1
        assert engine.run("flow", timeout=20) == 1


def test_a_flood_of_garbage_is_named_a_hundred_times(engine: WorkflowEngine, redis: Redis) -> None:
    engine.open()
    for number in range(300):
        push(redis, f"garbage-{number}", "{")
    with capture_logs() as lines, engine.start_workers(1):
        assert engine.run("flow", timeout=20) == 1
        until(lambda: redis.llen(LIST) == 0)
    assert sum(line["log_level"] == "warning" for line in lines) == 100


def test_what_failed_is_bounded_by_number_and_by_size(engine: WorkflowEngine, redis: Redis) -> None:
    engine.open()
    with redis.pipeline() as pipe:
        for number in range(MOST_FAILED + 50):
            pipe.hset(f"rq:job:old-{number}", "data", "x")
            pipe.zadd("rq:failed:spanloom.default", {f"old-{number}": number})
        pipe.execute()
    with engine.start_workers(1):
        for _ in range(5):
            engine.enqueue_workflow("bad")
        until(lambda: engine.store.stats().executions.get("failed") == 5)  # type: ignore[call-overload]
    assert redis.zcard("rq:failed:spanloom.default") == MOST_FAILED
    assert sum(1 for _ in redis.scan_iter("rq:job:*")) == MOST_FAILED
    newest = redis.zrange("rq:failed:spanloom.default", -1, -1)[0].decode()
    assert redis.memory_usage(f"rq:job:{newest}") < 8_000
    assert redis.memory_usage(f"rq:results:{newest}") < 8_000


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    give_up, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < give_up
        pause.wait(0.01)
