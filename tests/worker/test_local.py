"""Workers in threads of this process, on a real Redis and on fakeredis, which blocks or waits but never spins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer
from redis import Redis

from spanloom.engine import ConfigurationError, Node, NodeContext, NodeRegistry, Workflow, WorkflowEngine
from spanloom.stores import InMemoryExecutionStore
from spanloom.worker.service import Phase


def registry() -> NodeRegistry:
    made = NodeRegistry()

    @made.node("double")
    def double(data: int) -> int:
        return data * 2

    @made.node("adouble")
    async def adouble(data: int) -> int:
        await asyncio.sleep(0)
        return data * 2

    @made.node("state")
    def state(ctx: NodeContext) -> Any:
        return ctx.state.value

    return made


def chain(length: int) -> Workflow:
    nodes = [
        Node(id=f"n{number}", type=("double", "adouble")[number % 2], inputs=[f"n{number - 1}"] if number else [])
        for number in range(length)
    ]
    return Workflow(id="chain", nodes=tuple(nodes))


def test_workers_run_on_fakeredis() -> None:
    engine = WorkflowEngine(registry(), InMemoryExecutionStore(), FakeRedis(server=FakeServer()))
    engine.register_workflow(chain(10))

    with engine, engine.start_workers(2):
        outputs = [engine.run("chain", number, timeout=30) for number in range(5)]

    assert outputs == [number * 1024 for number in range(5)]


def test_an_idle_worker_does_not_spin(redis_url: str) -> None:
    engine = WorkflowEngine(registry(), InMemoryExecutionStore(), redis_url)
    with engine, Redis.from_url(redis_url) as redis, engine.start_workers(1):
        before = redis.info("stats")["total_commands_processed"]
        threading.Event().wait(1.5)  # what is measured is what happens while nothing happens
        commands = redis.info("stats")["total_commands_processed"] - before

    assert commands < 60, commands


@pytest.mark.parametrize("kind", ["sync", "async", "no argument", "plain object"])
def test_a_lifespan_makes_the_state_once_per_worker_and_is_left_at_the_end(redis_url: str, kind: str) -> None:
    entered: list[str] = []

    @contextmanager
    def sync_clients(engine: WorkflowEngine) -> Iterator[dict[str, int]]:
        entered.append("enter")
        yield {"value": 7}
        entered.append("leave")

    @asynccontextmanager
    async def async_clients(engine: WorkflowEngine) -> AsyncIterator[dict[str, int]]:
        entered.append("enter")
        yield {"value": 7}
        entered.append("leave")

    @contextmanager
    def without_argument() -> Iterator[dict[str, int]]:
        entered.append("enter")
        yield {"value": 7}
        entered.append("leave")

    @contextmanager
    def plain_object(engine: WorkflowEngine) -> Iterator[SimpleNamespace]:
        entered.append("enter")
        yield SimpleNamespace(value=7)
        entered.append("leave")

    lifespan = {
        "sync": sync_clients,
        "async": async_clients,
        "no argument": without_argument,
        "plain object": plain_object,
    }[kind]
    engine = WorkflowEngine(registry(), InMemoryExecutionStore(), redis_url, lifespan=lifespan)
    engine.register_workflow(Workflow(id="s", nodes=(Node(id="a", type="state"),)))

    with engine, engine.start_workers(1):
        assert [engine.run("s", timeout=30) for _ in range(3)] == [7, 7, 7]
        assert entered == ["enter"]

    assert entered == ["enter", "leave"]


def test_a_lifespan_that_fails_is_raised_where_the_workers_were_started(redis_url: str) -> None:
    @contextmanager
    def broken(engine: WorkflowEngine) -> Iterator[None]:
        raise OSError("no bank today")
        yield

    engine = WorkflowEngine(registry(), InMemoryExecutionStore(), redis_url, lifespan=broken)

    with engine, pytest.raises(OSError, match="no bank today"), engine.start_workers(2):
        pytest.fail("the workers started")


def test_a_lifespan_that_is_no_context_manager_is_refused(redis_url: str) -> None:
    engine = WorkflowEngine(registry(), InMemoryExecutionStore(), redis_url, lifespan=lambda: 7)

    with engine, pytest.raises(ConfigurationError, match="contextmanager"), engine.start_workers(1):
        pytest.fail("the worker started")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"workers": 0}, "from 1 to"),
        ({"concurrency": 0}, "concurrency"),
        ({"slots": 4}, "slots"),
        ({"workers": 2, "name": "one"}, "name"),
        ({"lease_seconds": "long"}, "lease_seconds"),
        ({"lease_seconds": 1e11}, "lease_seconds"),
    ],
)
def test_wrong_options_are_refused_by_name(redis_url: str, arguments: dict[str, Any], why: str) -> None:
    engine = WorkflowEngine(registry(), InMemoryExecutionStore(), redis_url)

    with engine, pytest.raises(ConfigurationError, match=why), engine.start_workers(**arguments):
        pytest.fail("the workers started")


def test_two_applications_share_one_redis_under_their_namespaces(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = []
    for namespace in ("shop", "bank"):
        monkeypatch.setenv("SPANLOOM_NAMESPACE", namespace)
        engine = WorkflowEngine(registry(), InMemoryExecutionStore(), redis_url)
        engine.register_workflow(chain(3))
        engines.append(engine)
    shop, bank = engines

    with shop, bank, shop.start_workers(1), bank.start_workers(1):
        assert (shop.run("chain", 1, timeout=30), bank.run("chain", 10, timeout=30)) == (8, 80)


def test_a_running_worker_stops_when_its_redis_is_given_to_another_store(redis_url: str) -> None:
    first = WorkflowEngine(registry(), InMemoryExecutionStore(), redis_url)
    second = WorkflowEngine(registry(), InMemoryExecutionStore(), redis_url)
    with (
        first,
        Redis.from_url(redis_url) as redis,
        pytest.raises(ConfigurationError, match="another store"),
        first.start_workers(1, sweep_seconds=0.05) as (worker,),
    ):
        redis.set(first.queue.keys.epoch, f"{second.store.get_epoch().store_id} 1")

        assert worker.state.wait_for(Phase.DRAINING, 30)
    second.close()


@pytest.mark.parametrize("option", [{"max_nodes": 10}, {"max_memory": "1GiB"}])
def test_limits_that_end_a_process_are_refused_for_workers_in_threads(option: dict[str, Any]) -> None:
    engine = WorkflowEngine(registry(), InMemoryExecutionStore(), FakeRedis(server=FakeServer()))

    with (
        pytest.raises(ConfigurationError, match="end a worker's process, and start_workers"),
        engine.start_workers(1, **option),
    ):
        pass
