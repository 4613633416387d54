"""Behaviour 20: what control of one execution costs is that of the execution, whatever else waits in the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from redis import Redis

from spanloom.engine import NodeRegistry, Workflow, WorkflowEngine
from support.stores import count_work

FEW, MANY = 10, 500
NODES = 5
#: Of Redis: they look through a list, a set or all keys, so that one command costs by what is queued.
SEARCHING = {"lrem", "lpos", "lrange", "linsert", "smembers", "keys", "scan", "sscan", "hgetall", "sort"}

registry = NodeRegistry()


@registry.node("work")
def work() -> None:
    """Never called: there is no worker."""


@pytest.fixture
def engine(store_url: str, redis_url: str) -> Iterator[WorkflowEngine]:
    nodes = [{"id": f"n{number}", "type": "work"} for number in range(NODES)]
    with WorkflowEngine(registry, store_url, redis_url) as made:
        made.register_workflow(Workflow.model_validate({"id": "w", "nodes": nodes}))
        yield made


def test_pause_resume_and_cancel_cost_the_same_whatever_else_is_queued(
    engine: WorkflowEngine, store_url: str, redis_url: str
) -> None:
    found: dict[int, list[tuple[Counter[str], int]]] = {}
    queued = 0
    for others in (FEW, MANY):
        engine.enqueue_workflows("w", [None] * (others - queued))
        queued = others
        execution_id = engine.enqueue_workflow("w")
        found[others] = [
            _cost(engine, store_url, redis_url, partial(control, execution_id))
            for control in (engine.pause_execution, engine.resume_execution, engine.cancel_execution)
        ]

    for (commands_few, work_few), (commands_many, work_many) in zip(found[FEW], found[MANY], strict=True):
        assert commands_many == commands_few
        assert not SEARCHING & commands_many.keys()
        assert 0 < work_many < work_few * 1.5 + 50, found


def _cost(
    engine: WorkflowEngine, store_url: str, redis_url: str, control: Callable[[], Any]
) -> tuple[Counter[str], int]:
    """Return the commands that Redis ran, and the store's work."""
    engine.epoch.check()  # or the control would, if it comes so late that this is due
    with Redis.from_url(redis_url) as redis:
        redis.config_resetstat()
        with count_work(engine.store, store_url) as work:
            assert control() is True
        stats = redis.info("commandstats")
    commands = {name.removeprefix("cmdstat_"): int(told["calls"]) for name, told in stats.items()}
    ours = {"config|resetstat", "info", "client|setinfo", "hello", "select", "client|maint_notifications"}
    return Counter({name: calls for name, calls in commands.items() if name not in ours}), work()
