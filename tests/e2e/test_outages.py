"""Redis or the store away when work is started or due: what was told to have started runs once they are back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from structlog.testing import capture_logs

from e2e.support.harness import System, worker_processes
from e2e.support.harness import system as new_system
from spanloom.engine import ExecutionStatus, StoreUnavailable
from spanloom.testing.servers import PostgresServer, RedisServer
from spanloom.testing.servers import redis_server as new_redis_server

pytestmark = pytest.mark.every_store

SLOTS = 4
BACKLOG = 20


@pytest.fixture
def lost_redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis that a test may end; it keeps its data if the test says so."""
    with new_redis_server(persist=getattr(request, "param", False)) as server:
        yield server


@pytest.fixture
def system(shared_store_url: str, lost_redis: RedisServer, own_redis_url: str) -> Iterator[System]:
    """A system without workers, whose handlers have a Redis that stays."""
    kind = shared_store_url.partition(":")[0].removesuffix("ql")
    with new_system(kind, shared_store_url, lost_redis.url, workers=0, handlers_redis_url=own_redis_url) as made:
        yield made


def test_a_start_while_redis_is_away_succeeds_and_says_so_and_runs_when_it_is_back(
    system: System, lost_redis: RedisServer
) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]})
    system.engine.epoch.check()  # anew only in seconds: the push is what finds Redis away
    lost_redis.stop()

    with capture_logs() as told:
        ids = system.engine.enqueue_workflows(workflow_id, range(5))

    assert {system.engine.store.get_execution(one).status for one in ids} == {ExecutionStatus.RUNNING}  # type: ignore[union-attr]
    deferred = [line for line in told if line["event"] == "push_deferred"]
    assert [(line["jobs"], line["log_level"]) for line in deferred] == [(5, "warning")]
    assert lost_redis.url.removeprefix("unix://") in deferred[0]["error"]
    lost_redis.start()
    with worker_processes(1, system.store_url, system.redis_url, handlers_redis_url=_traces(system)):
        assert [system.engine.wait(one, timeout=30).output for one in ids] == list(range(5))


def test_an_engine_that_opens_while_redis_is_away_says_so_and_starts_work(
    system: System, lost_redis: RedisServer
) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"})
    system.engine.close()
    lost_redis.stop()

    with capture_logs() as told:
        execution_id = system.engine.enqueue_workflow(workflow_id, 1)

    assert {"queue_unavailable", "push_deferred"} <= {line["event"] for line in told}
    execution = system.engine.store.get_execution(execution_id)
    assert execution is not None
    assert execution.status is ExecutionStatus.RUNNING
    lost_redis.start()


@pytest.mark.stores("postgres", why="a file is not away")
def test_a_start_while_the_store_is_away_fails_and_leaves_nothing(
    system: System, lost_redis: RedisServer, request: pytest.FixtureRequest
) -> None:
    server: PostgresServer = request.getfixturevalue("postgres_server")
    workflow_id = system.register({"id": "a", "type": "echo"})
    server.stop()

    with pytest.raises(StoreUnavailable, match=r"Postgres at .* did not answer"):
        system.engine.enqueue_workflow(workflow_id, 1, idempotency_key="once")

    server.start()
    assert system.engine.store.get_execution_count() == 0
    assert not any(system.engine.store.stats().open_node_runs.values())
    with Redis.from_url(lost_redis.url) as redis:
        assert redis.keys("rq:*") == []
    first = system.engine.enqueue_workflow(workflow_id, 1, idempotency_key="once")
    assert system.engine.enqueue_workflow(workflow_id, 1, idempotency_key="once") == first
    assert system.engine.store.get_execution_count() == 1


@pytest.mark.parametrize("lost_redis", [True, False], ids=["with its data", "empty"], indirect=True)
def test_a_redis_that_is_killed_and_comes_back_loses_nothing_and_runs_nothing_twice(
    system: System, lost_redis: RedisServer
) -> None:
    gate = f"outage-{system.kind}-{lost_redis.persist}"
    echo = {"id": "b", "type": "echo", "inputs": ["a"]}
    running = system.register({"id": "a", "type": "gate", "config": {"gate": gate}}, echo)
    plain = system.register({"id": "a", "type": "echo"}, echo)
    timer = system.register({"id": "a", "type": "echo"}, {"id": "w", "type": "delay", "config": {"seconds": 1.5},
                            "inputs": ["a"]}, {**echo, "inputs": ["w"]})  # fmt: skip
    retried = system.register(
        {"id": "a", "type": "flaky", "config": {"succeeds_at": 2}, "retry": {"max_attempts": 2, "delay": 1.5}}, echo
    )
    options = ("--concurrency", str(SLOTS))
    with worker_processes(1, system.store_url, system.redis_url, *options, handlers_redis_url=_traces(system)) as [one]:
        # given executions that wait for a time, some that run, and a backlog behind them
        waiting = {system.engine.enqueue_workflow(timer, 5): 5, system.engine.enqueue_workflow(retried): 2}
        for execution_id, kind in zip(waiting, ("node.waiting", "node.retrying"), strict=True):
            system.until(execution_id, kind)
        held = system.engine.enqueue_workflows(running, range(SLOTS))
        for _ in held:
            system.arrived(gate)
        delayed = system.engine.enqueue_workflow(plain, 7, delay=1.0)
        backlog = system.engine.enqueue_workflows(plain, range(BACKLOG))
        epoch = system.engine.store.get_epoch().epoch
        if lost_redis.persist:
            with Redis.from_url(lost_redis.url) as redis:
                redis.config_set("appendfsync", "always")  # a write is answered once it is in the file, …
                redis.set("mark", "the last that was written")  # … and with it all before it

        lost_redis.kill()
        lost_redis.start()

        if lost_redis.persist:
            with Redis.from_url(lost_redis.url) as redis:
                assert redis.llen("rq:queue:spanloom.default") >= BACKLOG
        system.open_gate(gate, times=SLOTS)
        expected = {
            **waiting,
            delayed: 7,
            **dict.fromkeys(held, "a"),
            **dict(zip(backlog, range(BACKLOG), strict=True)),
        }
        ended = {one: system.engine.wait(one, timeout=30).output for one in expected}
        assert one.process.poll() is None

    assert ended == expected
    assert system.engine.store.get_epoch().epoch > epoch
    for execution_id in expected:
        assert system.ran(execution_id) == (["a", "a", "b"] if execution_id == list(waiting)[1] else ["a", "b"])
        assert {run.recovery_attempts for run in system.engine.store.get_node_results(execution_id)} == {0}


def _traces(system: System) -> str:
    """Return the URL of the Redis in which the handlers leave their traces."""
    return f"unix://{system.redis.connection_pool.connection_kwargs['path']}"
