"""What an engine makes of what it is given, before it connects to anything."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from redis import Redis

from spanloom.engine import (
    ConfigurationError,
    NodeRegistry,
    Settings,
    StoreUnavailable,
    WorkflowBuilder,
    WorkflowEngine,
)
from spanloom.engine.operations import start
from spanloom.stores import InMemoryExecutionStore

NOWHERE = "redis://127.0.0.1:1/0"


def test_the_constructor_connects_to_nothing() -> None:
    engine = WorkflowEngine(NodeRegistry(), "postgresql://nobody@127.0.0.1:1/none", NOWHERE)

    assert engine.store.url == "postgresql://nobody@127.0.0.1:1/none"
    assert engine.queue.location == NOWHERE
    engine.close()


def test_the_namespace_names_the_postgres_schema_and_the_queues() -> None:
    engine = WorkflowEngine(
        NodeRegistry(), "postgresql://nobody@127.0.0.1:1/none", NOWHERE, settings=Settings(namespace="shop")
    )

    assert engine.store.url == "postgresql://nobody@127.0.0.1:1/none?namespace=shop"
    assert engine.queue.list_name("default", "high") == "shop.default.high"
    engine.close()


def test_urls_come_from_the_environment_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLOOM_STORE_URL", "memory://")
    monkeypatch.setenv("SPANLOOM_REDIS_URL", NOWHERE)

    engine = WorkflowEngine(NodeRegistry())

    assert isinstance(engine.store, InMemoryExecutionStore)
    assert engine.queue.location == NOWHERE


def test_a_variable_that_is_set_to_nothing_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLOOM_REDIS_URL", "")

    assert Settings.from_environment().redis_url == "redis://localhost:6379/0"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"workflows": ["orders"]}, "workflows.0. must be a WorkflowBuilder, not 'orders'"),
        ({"workflows": [WorkflowBuilder("a"), WorkflowBuilder("a")]}, "two builders"),
        ({"store": None}, "SPANLOOM_STORE_URL"),
        ({"store": 7}, "a URL or None, not 7"),
        ({"store": "mysql://host/db"}, "mysql"),
        ({"redis": 7}, "not int"),
        ({"redis": "http://host"}, "redis://"),
        ({"redis": Redis(decode_responses=True)}, "decode_responses"),
    ],
)
def test_what_an_engine_can_not_use_is_refused_by_name(
    arguments: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPANLOOM_STORE_URL", raising=False)

    with pytest.raises(ConfigurationError, match=why):
        WorkflowEngine(**{"workflows": NodeRegistry(), "store": "memory://", "redis": NOWHERE, **arguments})


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLOOM_NAMESPACE", "Not A Name")

    with pytest.raises(ConfigurationError, match="SPANLOOM_NAMESPACE"):
        WorkflowEngine(NodeRegistry(), "memory://", NOWHERE)


def test_a_builder_that_was_not_given_to_the_engine_is_refused(redis_url: str) -> None:
    with WorkflowEngine([], "memory://", redis_url) as engine, pytest.raises(ConfigurationError, match="'stray'"):
        engine.start(WorkflowBuilder("stray"))


def test_bulk_starts_refuse_what_is_for_one(redis_url: str) -> None:
    with (
        WorkflowEngine([], "memory://", redis_url) as engine,
        pytest.raises(ConfigurationError, match="idempotency_key"),
    ):
        engine.enqueue_workflows("w", [1, 2], idempotency_key="k")


def test_the_engine_needs_no_worker_package_to_start_work() -> None:
    code = (
        "import sys; from spanloom.engine import WorkflowEngine, NodeRegistry;"
        " WorkflowEngine(NodeRegistry(), 'memory://', 'redis://127.0.0.1:1');"
        " sys.exit(any(name.startswith('spanloom.worker') for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class LosesAnswers(InMemoryExecutionStore):
    """A store whose first answers to a start do not arrive."""

    def __init__(self, lost: int) -> None:
        super().__init__()
        self.lost = lost

    def create_executions(self, *args: Any, **options: Any) -> list[Any]:
        answers = super().create_executions(*args, **options)
        self.lost -= 1
        if self.lost >= 0:
            raise StoreUnavailable("the connection broke")
        return answers


def started_on(store: InMemoryExecutionStore) -> WorkflowEngine:
    builder = WorkflowBuilder[Any]("one")
    builder.node(lambda: None, id="only")
    return WorkflowEngine([builder], store, NOWHERE)


def test_a_start_whose_answer_was_lost_is_one_start() -> None:
    engine = started_on(LosesAnswers(2))
    with engine:
        execution_id = engine.enqueue_workflow("one")

        assert engine.store.get_execution_count() == 1
        assert engine.store.get_execution(execution_id) is not None


def test_large_starts_in_bulk_are_sent_in_batches_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MAX_BATCH_BYTES", 1_000)
    engine = started_on(LosesAnswers(0))
    with engine:
        sizes: list[int] = []
        create = engine.store.create_executions

        def noted(requests: Any, **options: Any) -> list[Any]:
            sizes.append(len(requests))
            return create(requests, **options)

        monkeypatch.setattr(engine.store, "create_executions", noted)
        ids = engine.enqueue_workflows("one", ["x" * 398] * 5 + ["x" * 5_000] + [1] * 3)

        assert sizes == [2, 2, 1, 1, 3]
        assert len(set(ids)) == 9


def test_starts_in_bulk_that_fail_half_way_say_what_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_BATCH", 2)
    engine = started_on(LosesAnswers(0))
    with engine:
        first = engine.enqueue_workflows("one", [1, 2])
        create = engine.store.create_executions

        def away_at_the_second(requests: Any, **options: Any) -> list[Any]:
            if engine.store.get_execution_count() >= 4:
                raise StoreUnavailable("away")
            return create(requests, **options)

        monkeypatch.setattr(engine.store, "create_executions", away_at_the_second)
        with pytest.raises(StoreUnavailable) as caught:
            engine.enqueue_workflows("one", [3, 4, 5])

        (note,) = caught.value.__notes__
        new = {one.id for one in engine.store.list_executions().items} - set(first)
        assert len(new) == 2
        assert all(execution_id in note for execution_id in new)
