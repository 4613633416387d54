"""What is counted and timed, by real workers over each store, as an OpenTelemetry SDK reads it."""

from __future__ import annotations

import threading
import timeit
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from spanloom.engine import (
    Node,
    NodeContext,
    NodeRegistry,
    PermanentError,
    RetryPolicy,
    StoreUnavailable,
    UnknownExecution,
    Workflow,
    WorkflowEngine,
)
from spanloom.engine.telemetry.instruments import instruments
from spanloom.engine.telemetry.metrics import METRICS, Kind
from spanloom.testing.servers import RedisServer
from spanloom.worker import Worker, WorkerOptions

LISTS = {"messaging.system": "rq", "messaging.destination.name": "spanloom.default"}
#: In a good run there is none of these.
MAY_BE_MISSING = {"spanloom.worker.leases.lost", "spanloom.worker.recycles", "spanloom.store.unavailable"}


class Seen:
    """What a collection finds; attributes are given as `{name: value}`."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def collect(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {one.name: one for resource in data.resource_metrics for one in resource.scope_metrics[0].metrics}

    def points(self, name: str) -> list[Any]:
        found = self.collect()
        return list(found[name].data.data_points) if name in found else []

    def value(self, name: str, /, **attributes: str) -> float:
        """The sum over the points that have these attributes, by the last part of their names; a histogram's count."""
        return sum(
            getattr(point, "count", None) or getattr(point, "value", 0)
            for point in self.points(name)
            if all(
                any(key.endswith(f".{part}") and told == value for key, told in point.attributes.items())
                for part, value in attributes.items()
            )
        )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """A MeterProvider that stands for the one of the process, which can be set only once."""
    made = Seen()
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: made.provider)
    monkeypatch.setattr("spanloom.engine.telemetry.instruments._look_again_at", 0.0)  # a test before had none
    yield made
    made.provider.shutdown()


@pytest.fixture
def engine(store_url: str, redis_url: str) -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()

    @registry.node("echo")
    def echo(data: Any) -> Any:
        return data

    @registry.node("flaky")
    def flaky(ctx: NodeContext) -> int:
        if ctx.attempt < 2:
            raise ConnectionError("not yet")
        return ctx.attempt

    @registry.node("bad")
    def bad(ctx: NodeContext) -> None:
        raise PermanentError("never")

    made = WorkflowEngine(registry, store_url, redis_url)
    made.open()
    yield made
    made.close()


def register(engine: WorkflowEngine, workflow_id: str, *nodes: Node) -> str:
    engine.register_workflow(Workflow(id=workflow_id, nodes=nodes))
    return workflow_id


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    pause, tries = threading.Event(), 0
    while not condition():
        tries += 1
        assert tries < timeout / 0.02, "it did not come to pass"
        pause.wait(0.02)


def good(engine: WorkflowEngine) -> str:
    """A retry, then two nodes that run side by side, then their join."""
    retry = RetryPolicy(max_attempts=2, delay=0.01)
    return register(
        engine,
        "good",
        Node(id="a", type="flaky", retry=retry),
        Node(id="b", type="echo", inputs=["a"]),
        Node(id="c", type="echo", inputs=["a"]),
        Node(id="d", type="echo", inputs=["b", "c"]),
    )


def test_runs_and_ends_are_counted_by_what_came_of_them(seen: Seen, engine: WorkflowEngine) -> None:
    good(engine)
    register(engine, "failing", Node(id="a", type="bad"))
    register(engine, "parent", Node(id="child", type="workflow", config={"workflow": "good"}))

    with engine.start_workers(2, sweep_seconds=0.05):
        ids = [engine.enqueue_workflow(one) for one in ("good", "good", "failing", "parent")]
        for one in ids:
            engine.wait(one, timeout=30)
        until(lambda: seen.value("spanloom.executions.ended") == 5)

    assert seen.value("spanloom.executions.started", id="good") == 3  # one of them as a child
    assert seen.value("spanloom.executions.started", id="parent") == 1
    assert seen.value("spanloom.executions.ended", id="good", status="completed") == 3
    assert seen.value("spanloom.executions.ended", id="failing", status="failed") == 1
    assert seen.value("spanloom.executions.ended", id="parent", status="completed") == 1
    assert seen.value("spanloom.node.runs", type="flaky", outcome="retry") == 3
    assert seen.value("spanloom.node.runs", type="flaky", outcome="completed") == 3
    assert seen.value("spanloom.node.runs", type="echo", outcome="completed") == 9
    assert seen.value("spanloom.node.runs", type="bad", outcome="failed") == 1
    assert seen.value("spanloom.node.runs", type="workflow", outcome="waiting") == 1
    assert seen.value("spanloom.node.runs") == seen.value("spanloom.node.duration") == 18
    errors = {
        point.attributes["error.type"] for point in seen.points("spanloom.node.runs") if len(point.attributes) > 2
    }
    assert errors == {"ConnectionError", "PermanentError"}


def test_a_start_that_is_sent_again_because_its_answer_was_lost_is_counted_once(
    seen: Seen, engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(engine)
    create, calls = engine.store.create_executions, []

    def answer_lost(*args: Any, **kwargs: Any) -> Any:
        answers = create(*args, **kwargs)
        calls.append(answers)
        if len(calls) == 1:
            raise StoreUnavailable("gone before it could answer")
        return answers

    monkeypatch.setattr(engine.store, "create_executions", answer_lost)
    first = engine.enqueue_workflow("good", idempotency_key="key")

    assert engine.enqueue_workflow("good", idempotency_key="key") == first
    assert len(calls) == 3
    assert seen.value("spanloom.executions.started") == 1


def test_every_metric_is_made_as_the_table_says(seen: Seen, engine: WorkflowEngine) -> None:
    good(engine)
    register(engine, "failing", Node(id="a", type="bad"))
    with engine.start_workers(1, sweep_seconds=0.05):
        engine.run("good", timeout=30)
        engine.wait(engine.enqueue_workflow("failing"), timeout=30)
        until(lambda: seen.points("spanloom.queue.depth") and seen.points("spanloom.sweep.moved"))
        collected = seen.collect()

    table = {metric.name: metric for metric in METRICS}
    assert set(collected) == set(table) - MAY_BE_MISSING
    kinds = {
        "Histogram": {Kind.HISTOGRAM},
        "Gauge": {Kind.GAUGE},
        "Sum": {Kind.COUNTER, Kind.UP_DOWN_COUNTER, Kind.OBSERVED_COUNTER},
    }
    for name, found in collected.items():
        told = table[name]
        assert (found.unit, found.description) == (told.unit, told.description)
        assert told.kind in kinds[type(found.data).__name__]
        if told.kind in (Kind.COUNTER, Kind.OBSERVED_COUNTER, Kind.UP_DOWN_COUNTER):
            assert found.data.is_monotonic is (told.kind is not Kind.UP_DOWN_COUNTER)
        for point in found.data.data_points:
            assert set(point.attributes) | {"error.type"} >= set(told.attributes) >= set(point.attributes)
        if told.bounds:
            assert tuple(found.data.data_points[0].explicit_bounds) == told.bounds


def test_no_attribute_holds_an_execution_or_a_node(seen: Seen, engine: WorkflowEngine) -> None:
    good(engine)
    with engine.start_workers(1):
        execution_id = engine.enqueue_workflow("good")
        engine.wait(execution_id, timeout=30)

    told = {
        str(value) for metric in METRICS for point in seen.points(metric.name) for value in point.attributes.values()
    }
    assert not told & {execution_id, "a", "b", "c", "d"}


def test_jobs_are_timed_from_their_push_to_their_claim(seen: Seen, engine: WorkflowEngine) -> None:
    good(engine)
    engine.enqueue_workflow("good")
    threading.Event().wait(0.3)  # what is measured is how long it lies there

    with engine.start_workers(1):
        until(lambda: seen.value("spanloom.executions.ended") == 1)

    (waited,) = seen.points("spanloom.queue.wait_time")
    assert dict(waited.attributes) == LISTS
    assert waited.max >= 0.3
    assert waited.min >= 0
    assert waited.count < 5  # five runs: with some of them a worker went on at once


def test_a_clock_that_is_ahead_of_the_workers_makes_no_negative_wait(seen: Seen) -> None:
    found = instruments()
    assert found is not None

    found.job_waited("spanloom.default", -5.0)

    (waited,) = seen.points("spanloom.queue.wait_time")
    assert (waited.sum, waited.count) == (0, 1)


def test_lists_are_told_as_the_sweep_saw_them(seen: Seen, engine: WorkflowEngine) -> None:
    register(engine, "other", Node(id="a", type="echo", queue="elsewhere"))
    for _ in range(3):
        engine.enqueue_workflow("other")

    with engine.start_workers(1, sweep_seconds=0.05, concurrency=7):
        until(lambda: seen.value("spanloom.queue.depth", name="spanloom.elsewhere") == 3)
        (age,) = [
            point.value
            for point in seen.points("spanloom.queue.oldest_age")
            if point.attributes["messaging.destination.name"] == "spanloom.elsewhere"
        ]
        assert 0 < age < 20
        assert seen.value("spanloom.queue.oldest_age", name="spanloom.default") == 0
        assert seen.value("spanloom.worker.claims") == 0
        assert seen.value("spanloom.worker.slots") == 7

    assert seen.points("spanloom.worker.slots") == []  # who is gone tells nothing


def test_a_collection_waits_for_no_redis(seen: Seen, sqlite_url: str, own_redis: RedisServer) -> None:
    engine = WorkflowEngine(NodeRegistry(), sqlite_url, own_redis.url)
    with engine, engine.start_workers(1, sweep_seconds=0.05, lease_seconds=1):
        until(lambda: seen.points("spanloom.queue.depth"))
        own_redis.kill()
        until(lambda: [point for point in seen.points("spanloom.sweeps") if "error.type" in point.attributes])
        assert min(timeit.repeat(seen.collect, number=1, repeat=5)) < 1
        assert seen.points("spanloom.queue.depth")
        own_redis.start()


def test_calls_of_store_and_queue_are_timed_with_their_failures(seen: Seen, engine: WorkflowEngine) -> None:
    good(engine)
    with engine.start_workers(1):
        engine.run("good", timeout=30)
    with pytest.raises(UnknownExecution):
        engine.store.cancel_execution("019cb2f4-1111-7abc-8def-0123456789ab")

    calls = {
        (point.attributes["spanloom.store.operation"], point.attributes.get("error.type")): point
        for point in seen.points("spanloom.store.call.duration")
    }
    assert {("create_executions", None), ("claim", None), ("record", None), ("sweep", None)} <= set(calls)
    assert ("cancel_execution", "UnknownExecution") in calls
    assert calls["record", None].count >= 3
    queue = {point.attributes["messaging.operation.name"] for point in seen.points("spanloom.queue.call.duration")}
    assert {"push", "heads", "ping", "fetch"} <= queue


def test_without_an_sdk_nothing_is_put_around_the_store(engine: WorkflowEngine) -> None:
    with engine.start_workers(1):
        pass

    assert instruments() is None
    assert "claim" not in vars(engine.store)
    assert "push" not in vars(engine.queue)


def test_a_lost_lease_and_what_the_sweep_recovers_are_counted(seen: Seen, engine: WorkflowEngine) -> None:
    good(engine)
    with engine.start_workers(1, sweep_seconds=0.05, lease_seconds=0.6):

        def lost() -> bool:  # to one whose clock is ahead; it leaves out a lease that is being renewed
            engine.store.sweep(heads={}, epoch=engine.epoch.number, now=datetime.now(UTC) + timedelta(seconds=5))
            return seen.value("spanloom.worker.leases.lost") >= 1

        until(lost)
        engine.run("good", timeout=30)
        until(lambda: seen.value("spanloom.sweep.moved", cause="retry") >= 1)


def test_a_replacement_that_is_requested_is_counted(seen: Seen, engine: WorkflowEngine) -> None:
    register(engine, "good", Node(id="a", type="echo"))
    engine.enqueue_workflow("good")

    Worker(engine, WorkerOptions(max_nodes=1)).run()  # it stops by itself

    assert seen.value("spanloom.worker.recycles") == 1


def test_ends_by_hand_and_by_deadline_are_counted(seen: Seen, engine: WorkflowEngine) -> None:
    register(engine, "elsewhere", Node(id="a", type="echo", queue="elsewhere"))
    cancelled, failed, completed = (engine.enqueue_workflow("elsewhere") for _ in range(3))
    engine.cancel_execution(cancelled)
    engine.cancel_execution(cancelled)
    engine.set_execution_status(failed, "failed")
    engine.update_node_result(completed, "a", data=1)
    late = engine.enqueue_workflow("elsewhere", deadline=0.01)
    with engine.start_workers(1, sweep_seconds=0.05):
        engine.wait(late, timeout=30)
        until(lambda: seen.value("spanloom.executions.ended", status="failed") == 2)

    assert seen.value("spanloom.executions.ended", id="elsewhere", status="cancelled") == 1
    assert seen.value("spanloom.executions.ended", id="elsewhere", status="completed") == 1
    assert seen.value("spanloom.executions.ended", id="elsewhere") == 4


def test_looking_whether_there_is_an_sdk_takes_next_to_nothing() -> None:
    assert min(timeit.repeat(instruments, number=1000, repeat=20)) / 1000 < 10e-6  # it takes 1 µs, on a loaded machine
