"""Node jobs as RQ's own classes see them, and what the queue says of the lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from redis import Redis
from rq.job import Job
from rq.queue import Queue

from spanloom.engine.errors import ConfigurationError, QueueUnavailable
from spanloom.engine.queue.message import JOB_FORMAT, JOB_FUNCTION, NodeMessage
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.requests import NodeJob

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def job(node: str = "a", push: int = 1, priority: str = "normal", queue: str = "default") -> NodeJob:
    return NodeJob("01890000-0000-7000-8000-000000000000", node, 0, "shop.charge", queue, priority, push, AT)


@pytest.fixture
def queue(redis_url: str) -> Iterator[NodeQueue]:
    made = NodeQueue(redis_url, "shop")
    yield made
    made.close()


def test_a_node_job_is_an_rq_job_that_rq_reads_as_its_own(queue: NodeQueue) -> None:
    queue.push([job()])

    (found,) = Queue("shop.default", connection=queue.redis, serializer="json").jobs
    made_by_rq = Queue("other", connection=queue.redis, serializer="json").enqueue(
        JOB_FUNCTION, found.args[0], result_ttl=0, failure_ttl=found.failure_ttl, job_timeout=-1
    )

    assert found.id == f"{job().execution_id}-a-0-1"
    assert found.func_name == JOB_FUNCTION
    assert found.args == [
        {
            "format": JOB_FORMAT,
            "execution": job().execution_id,
            "node": "a",
            "item": 0,
            "type": "shop.charge",
            "push": 1,
            "at": AT.timestamp(),
        }
    ]
    assert found.get_status() == "queued"
    assert found.origin == "shop.default"
    mine, theirs = (Job.fetch(one, connection=queue.redis, serializer="json") for one in (found.id, made_by_rq.id))
    for field in ("timeout", "result_ttl", "failure_ttl", "ttl", "retries_left", "meta", "instance", "kwargs"):
        assert getattr(mine, field) == getattr(theirs, field), field
    assert mine.enqueued_at is not None
    assert theirs.enqueued_at is not None


def test_the_job_function_that_rqs_tools_show_exists_and_refuses_a_stock_worker(queue: NodeQueue) -> None:
    queue.push([job()])
    (found,) = Queue("shop.default", connection=queue.redis, serializer="json").jobs

    with pytest.raises(RuntimeError, match="spanloom worker"):
        found.func(*found.args)


def test_closing_gives_up_the_connections_and_the_next_use_opens_another(queue: NodeQueue, redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        before = len(client.client_list())
        queue.push([job()])
        queue.blocking.ping()
        assert len(client.client_list()) == before + 2

        queue.close()
        while len(client.client_list()) > before:  # until the server has noticed
            pass

        queue.push([job(push=2)])
        assert len(client.client_list()) == before + 1


def test_each_priority_has_a_list_of_its_own(queue: NodeQueue) -> None:
    queue.push([job("a"), job("b", priority="high"), job("c", priority="low"), job("d", queue="gpu", priority="high")])

    names = {
        name: Queue(name, connection=queue.redis).job_ids for name in sorted(q.name for q in Queue.all(queue.redis))
    }

    assert {name: len(ids) for name, ids in names.items()} == {
        "shop.default": 1,
        "shop.default.high": 1,
        "shop.default.low": 1,
        "shop.gpu.high": 1,
    }


def test_heads_tell_when_the_first_waiting_job_was_pushed(queue: NodeQueue) -> None:
    queue.push([job("a"), job("b")])
    queue.redis.rpush("rq:queue:shop.foreign", "no-such-job")
    queue.redis.sadd("rq:queues", "rq:queue:shop.foreign", "rq:queue:other.default")

    heads = queue.heads(["shop.gpu"])

    assert heads == {
        "default": AT,
        "gpu": None,
    }  # of a list with a foreign head nothing is known, of others nothing said


def test_thousands_of_jobs_are_pushed_in_order(queue: NodeQueue) -> None:
    queue.push([job(f"n{number}") for number in range(2_500)])

    ids = Queue("shop.default", connection=queue.redis).job_ids

    assert ids == [f"{job().execution_id}-n{number}-0-1" for number in range(2_500)]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x04K\x01.", "not a JSON call"),
        (b"not json", "not a JSON call"),
        (b"[1]", "not a JSON call"),
        (json.dumps(["os.system", None, ["reboot"], {}]).encode(), "os.system"),
        (json.dumps([JOB_FUNCTION, None, [{"format": 99}], {}]).encode(), "format is 99"),
        (json.dumps([JOB_FUNCTION, None, [{"format": 1}], {}]).encode(), "lacks"),
        (json.dumps([JOB_FUNCTION, None, [{"format": 1}], {"extra": 1}]).encode(), "node jobs only"),
    ],
)
def test_what_is_no_node_job_of_our_format_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        NodeMessage.parse("id", data, "shop.default")


@pytest.mark.parametrize("url", ["http://localhost", "redis://localhost:port", "localhost:6379", ""])
def test_a_malformed_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"redis://host"):
        NodeQueue(url, "shop")


def test_a_client_that_decodes_responses_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="decode_responses"):
        NodeQueue(Redis(decode_responses=True), "shop")


def test_a_redis_that_does_not_answer_is_named_without_its_password() -> None:
    queue = NodeQueue("redis://:secret@127.0.0.1:1/0", "shop")

    with pytest.raises(QueueUnavailable, match=r"redis://127.0.0.1:1/0") as refused:
        queue.push([job()])

    assert "secret" not in str(refused.value)
    queue.close()


def test_a_key_that_is_no_list_is_moved_aside_if_it_is_served_and_passed_over_else(queue: NodeQueue) -> None:
    queue.push([job()])
    for name in ("shop.default", "shop.other"):
        queue.redis.delete(f"rq:queue:{name}")
        queue.redis.set(f"rq:queue:{name}", "garbage")
        queue.redis.sadd("rq:queues", f"rq:queue:{name}")
    queue.redis.set("shop:epoch", "mark")

    assert queue.heads(["shop.default"]) == {}
    assert queue.heads(["shop.default"]) == {"default": None}

    assert queue.redis.get("shop:displaced:rq:queue:shop.default") == b"garbage"
    assert queue.redis.get("rq:queue:shop.other") == b"garbage"
    assert queue.redis.get("shop:epoch") is None  # the jobs of the list were lost
