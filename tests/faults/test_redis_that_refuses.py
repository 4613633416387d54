"""A Redis that answers with errors is away: once it does its work again, the next sweep pushes all that waits."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from redis import Redis
from structlog.testing import capture_logs

from spanloom.engine import ExecutionFailed, Node, NodeRegistry, QueueUnavailable, Workflow, WorkflowEngine
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.testing.servers import RedisServer
from spanloom.testing.servers import redis_server as new_redis_server
from spanloom.worker import WorkerOptions
from spanloom.worker.worker import Worker

Refusal = Callable[[Redis], Callable[[], object]]
DOCS = Path(__file__).parents[2] / "docs" / "redis.md"
FORBIDDEN = ("-@scripting", "-rpush -lpush", "-hset", "-publish", "-@all")


def out_of_memory(admin: Redis) -> Callable[[], object]:
    admin.config_set("maxmemory", "1")
    return lambda: admin.config_set("maxmemory", "0")


def replica(admin: Redis) -> Callable[[], object]:
    # Of nothing: a primary that is never found, so that its data stays.
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    return lambda: admin.execute_command("REPLICAOF", "NO", "ONE")


def without(rules: str) -> Refusal:
    def refuse(admin: Redis) -> Callable[[], object]:
        admin.execute_command("ACL", "SETUSER", "worker", *rules.split())
        return lambda: admin.execute_command("ACL", "SETUSER", "worker", "+@all")

    return refuse


def wrong_password(admin: Redis) -> Callable[[], object]:
    admin.execute_command("ACL", "SETUSER", "worker", "resetpass", ">other")
    admin.execute_command("CLIENT", "KILL", "USER", "worker")
    return lambda: admin.execute_command("ACL", "SETUSER", "worker", "resetpass", ">word")


REFUSALS: dict[str, Refusal] = {
    "out of memory": out_of_memory,
    "a replica": replica,
    "another password": wrong_password,
    **{rules: without(rules) for rules in FORBIDDEN},
}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with new_redis_server() as made:
        yield made


@pytest.fixture
def admin(server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as made:
        made.config_set("maxmemory-policy", "noeviction")
        made.execute_command("ACL", "SETUSER", "worker", "on", ">word", "~*", "&*", "+@all")
        yield made


@pytest.fixture
def engine(server: RedisServer, admin: Redis, store_url: str) -> Iterator[WorkflowEngine]:
    with Redis(unix_socket_path=str(server.socket_path), username="worker", password="word") as client:
        made = WorkflowEngine(registry(), store_url, client)
        made.register_workflow(
            Workflow(id="flow", nodes=[Node(id="a", type="pass"), Node(id="b", type="pass", inputs=["a"])])
        )
        yield made
        made.close()


def registry() -> NodeRegistry:
    made = NodeRegistry()
    made.register("pass", lambda: 1)

    @made.node("fail")
    def fail() -> None:
        raise ValueError("no")

    return made


@contextmanager
def refusing(admin: Redis, kind: str) -> Iterator[None]:
    heal = REFUSALS[kind](admin)
    try:
        yield
    finally:
        heal()


@pytest.mark.one_store
@pytest.mark.parametrize("kind", REFUSALS)
def test_what_was_started_while_redis_refused_runs_once_it_does_not(
    kind: str, engine: WorkflowEngine, admin: Redis
) -> None:
    with ExitStack() as stack:
        stack.enter_context(engine.start_workers(2, lost_job_after_seconds=3600))  # the search for lost jobs is no help
        assert engine.run("flow", timeout=20) == 1
        with capture_logs() as lines, refusing(admin, kind):
            started = [engine.enqueue_workflow("flow") for _ in range(20)]
            until(lambda: engine.queue.breaker.is_open)
            started += [engine.enqueue_workflow("flow") for _ in range(20)]
        ended = [engine.wait(one, timeout=30) for one in started]

    assert {one.status.value for one in ended} == {"completed"}
    assert any("refuses" in str(line.get("error")) for line in lines)


@pytest.mark.one_store
def test_jobs_that_fill_redis_are_run_though_it_is_out_of_memory(engine: WorkflowEngine, admin: Redis) -> None:
    started = [engine.enqueue_workflow("flow") for _ in range(30)]
    with refusing(admin, "out of memory"), engine.start_workers(1, concurrency=2, sweep_seconds=0.05):
        ended = [engine.wait(one, timeout=30) for one in started]
        assert {one.status.value for one in ended} == {"completed"}
        until(lambda: admin.llen("rq:queue:spanloom.default") == 0)
        later = engine.enqueue_workflow("flow")
        until(lambda: engine.queue.breaker.is_refusing)
        assert engine.store.get_execution(later).status == "running"  # type: ignore[union-attr]


@pytest.mark.one_store
def test_a_push_that_fails_alone_counts_as_not_made(engine: WorkflowEngine, admin: Redis) -> None:
    engine.open()
    with refusing(admin, "-hset"):  # nobody knows of it yet
        started = engine.enqueue_workflow("flow")
    with engine.start_workers(1, lost_job_after_seconds=3600):
        assert engine.wait(started, timeout=20).status == "completed"


@pytest.mark.one_store
@pytest.mark.parametrize(
    ("rules", "names"), [("-@scripting", "EVAL"), ("-blpop", "BLPOP"), ("-zadd -publish", "PUBLISH")]
)
def test_a_worker_does_not_start_without_a_right_that_it_needs(
    rules: str, names: str, engine: WorkflowEngine, admin: Redis
) -> None:
    with (
        refusing(admin, rules) if rules in REFUSALS else without_(admin, rules),
        pytest.raises(QueueUnavailable) as refused,
    ):
        Worker(engine, WorkerOptions()).run()
    assert names in str(refused.value)
    assert "docs/redis.md" in str(refused.value)


@contextmanager
def without_(admin: Redis, rules: str) -> Iterator[None]:
    heal = without(rules)(admin)
    try:
        yield
    finally:
        heal()


@pytest.mark.one_store
def test_a_worker_needs_no_info_and_no_script_commands(engine: WorkflowEngine, admin: Redis) -> None:
    with without_(admin, "-info -script -subscribe"), engine.start_workers(1):
        assert engine.run("flow", timeout=20) == 1


@pytest.mark.one_store
@pytest.mark.parametrize("optional", ["", "+info"])
def test_the_documented_rights_are_all_that_is_needed(
    optional: str, engine: WorkflowEngine, server: RedisServer, admin: Redis
) -> None:
    block = re.search(r"ACL SETUSER spanloom on >password (.*?)```", DOCS.read_text(), re.DOTALL)
    assert block is not None
    admin.execute_command(
        "ACL", "SETUSER", "worker", "resetkeys", "resetchannels", *block[1].split(), *optional.split()
    )
    admin.config_set("acllog-max-len", 128)
    engine.register_workflow(Workflow(id="fails", nodes=[Node(id="a", type="fail")]))
    engine.store.save_workflow(Workflow(id="strange", nodes=[Node(id="a", type="nobody has it")]))
    with engine.start_workers(1):
        strange = engine.enqueue_workflow("strange")
        with pytest.raises(ExecutionFailed):
            engine.run("fails", timeout=20)
        assert engine.run("flow", timeout=20) == 1
        engine.cancel_execution(strange)
        until(lambda: admin.exists("rq:queue:spanloom.default@nobody%20has%20it"))
    refused = {str(entry["object"]) for entry in admin.acl_log()}
    assert refused <= {"info", "client|setinfo", "client|maint_notifications"}


def test_no_error_of_redis_repeats_the_password(server: RedisServer, admin: Redis) -> None:
    with Redis(unix_socket_path=str(server.socket_path), username="worker", password="wrong-s3cret") as client:
        queue = NodeQueue(client, "shop")
        with pytest.raises(QueueUnavailable, match="user and password") as refused:
            queue.ping()
    assert "s3cret" not in str(refused.value)
    assert "refuses" in str(refused.value)


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    give_up, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < give_up
        pause.wait(0.01)
