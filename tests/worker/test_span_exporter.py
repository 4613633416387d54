"""The span exporter: when it begins, what it confirms, and what it exports of workers that are gone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from spanloom.engine.errors import StoreUnavailable
from spanloom.engine.store.requests import RecordResult, SpanLine
from spanloom.engine.telemetry.tracing import start_trace
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, single
from spanloom.worker.recording.recorder import Recorder
from spanloom.worker.service import WorkerState
from spanloom.worker.telemetry import span_exporter
from spanloom.worker.telemetry.span_exporter import SpanExporter

EXPORTED: Any = SimpleNamespace(exported=True)
UNSAMPLED: Any = SimpleNamespace(exported=False)


class Provider(TracerProvider):
    """A provider whose flushes are counted, and fail if they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.exporter = InMemorySpanExporter()
        self.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reaches_collector = True
        self.flushed: list[int] = []  # the number of spans that had been handed over

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        self.flushed.append(len(self.exporter.get_finished_spans()))
        return self.reaches_collector

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.exporter.get_finished_spans()]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    made = Provider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made)
    monkeypatch.setattr("spanloom.engine.telemetry.tracing._look_again_at", 0.0)  # a test before had none
    yield made
    made.shutdown()


@pytest.fixture
def store() -> InMemoryExecutionStore:
    return InMemoryExecutionStore()


class Worker:
    """A worker of a store, with a recorder and an exporter, and a list of the calls that they make."""

    def __init__(self, store: InMemoryExecutionStore, name: str = "worker") -> None:
        self.driver = StoreDriver(store)
        self.driver.worker_id = f"{name}:1"
        store.register_worker(f"{name}:1", name=name, host="host", pid=1, queues=["default"], lease_seconds=60)
        self.calls: list[str] = []
        self.confirmed: list[datetime | None] = []
        self.lost_acks = 0
        noting: Any = SimpleNamespace(
            ack_exports=self._ack, record=self._record, claim_exports=store.claim_exports,
            release_exports=store.release_exports, get_execution=store.get_execution, iter_trace=store.iter_trace,
        )  # fmt: skip
        queue: Any = None
        self.exporter = SpanExporter(noting, queue, lambda: self.driver.worker_id)
        self.recorder = Recorder(noting, lambda: 0, WorkerState(), before=self.exporter.begin)

    def _ack(self, worker_id: str, until: datetime | None = None) -> datetime | None:
        if self.lost_acks:
            self.lost_acks -= 1
            raise StoreUnavailable("away")
        self.calls.append("begin" if until is None else "confirm")
        self.confirmed.append(until)
        return self.driver.store.ack_exports(worker_id, until)

    def _record(self, *args: Any, **options: Any) -> Any:
        self.calls.append("record")
        return self.driver.store.record(*args, **options)

    def run(self, execution: str, node: str, span: Any = EXPORTED, **fields: Any) -> RecordResult:
        record = self.driver.outcome(execution, self.driver.claim(execution, node), **fields)
        with self.exporter.recording([span], self.driver.worker_id):
            return self.recorder.record(record)

    def kill(self) -> None:
        """Have its claims moved and its lease released; nothing of it stops in order."""
        self.driver.store.unregister_worker(self.driver.worker_id)


def left(store: InMemoryExecutionStore) -> list[str]:
    """Take over all that workers that are gone have left, and return the executions."""
    executions: list[str] = []
    while (found := store.claim_exports("taker:1")) is not None:
        executions += found.execution_ids
        store.release_exports("taker:1", found.worker_id, found.cursor)
    return executions


def traced(execution: str, number: int, name: str) -> SpanLine:
    """Return the span of an attempt that a worker of this name made."""
    return SpanLine(
        "1" * 32, f"{number:016x}", None, f"run {number}", "consumer", "unset", number, number + 1,
        attributes=f'{{"spanloom.worker":"{name}"}}',
    )  # fmt: skip


def test_the_store_knows_who_exports_before_its_first_record(store: InMemoryExecutionStore) -> None:
    worker = Worker(store)
    execution = worker.driver.start(chain(3))

    worker.run(execution, "n1", UNSAMPLED)
    assert worker.calls == ["record"]
    worker.run(execution, "n2")
    worker.run(execution, "n3")
    assert worker.calls == ["record", "begin", "record", "record"]

    worker.kill()
    assert left(store) == [execution]


def test_a_store_that_is_away_gets_no_record_before_it_knows(store: InMemoryExecutionStore) -> None:
    worker = Worker(store)
    execution = worker.driver.start(chain(2))
    worker.lost_acks = 2

    assert worker.run(execution, "n1").recorded
    assert worker.calls == ["begin", "record"]
    worker.kill()
    assert left(store) == [execution]


def test_a_record_costs_no_statement_more_where_spans_are_exported(store: InMemoryExecutionStore) -> None:
    worker = Worker(store)
    first, *others = (worker.driver.start(chain(20)) for _ in range(3))
    worker.run(first, "n1")  # which begins
    statements: list[str] = []
    store._live().raw_writer.set_trace_callback(statements.append)
    numbers = []
    for execution, span in zip(others, (UNSAMPLED, EXPORTED), strict=True):
        for number in range(1, 21):
            worker.run(execution, f"n{number}", span, spans=[traced(execution, number, "worker")])
        numbers.append(len(statements))
        statements.clear()
    store._live().raw_writer.set_trace_callback(None)

    assert numbers[0] == numbers[1] > 20


def test_a_record_under_way_is_not_confirmed(store: InMemoryExecutionStore, provider: Provider) -> None:
    worker = Worker(store)
    execution = worker.driver.start(chain(3))
    worker.run(execution, "n1")
    worker.exporter.poll()
    worker.exporter.poll()
    before = worker.confirmed[-1]
    with worker.exporter.recording([EXPORTED], worker.driver.worker_id):
        since = worker.exporter._latest
        worker.exporter.poll()
        worker.exporter.poll()
        assert worker.confirmed[-2:] == [since, since]
        worker.recorder.record(worker.driver.outcome(execution, worker.driver.claim(execution, "n2")))
        worker.exporter.poll()
        worker.kill()
        assert left(store) == [execution]
    assert before is not None
    assert since is not None
    assert before < since


def test_what_was_flushed_is_confirmed_up_to_the_time_before(store: InMemoryExecutionStore, provider: Provider) -> None:
    worker = Worker(store)
    worker.run(worker.driver.start(single()), "only")
    for _ in range(3):
        worker.exporter.poll()
    assert worker.calls == ["begin", "record", "confirm", "confirm", "confirm"]
    times = [until for until in worker.confirmed if until is not None]
    assert times == sorted(set(times))
    worker.kill()
    assert left(store) == []


def test_what_a_flush_does_not_send_is_not_confirmed(store: InMemoryExecutionStore, provider: Provider) -> None:
    worker = Worker(store)
    worker.run(worker.driver.start(single()), "only")
    provider.reaches_collector = False
    worker.exporter.poll()
    assert worker.calls == ["begin", "record"]


def test_without_records_nothing_is_flushed_or_written(store: InMemoryExecutionStore, provider: Provider) -> None:
    worker = Worker(store)
    worker.run(worker.driver.start(single()), "only", UNSAMPLED)
    worker.exporter.poll()
    worker.exporter.start()
    worker.exporter.stop()
    assert worker.calls == ["record"]
    assert provider.flushed == []


@pytest.mark.parametrize("how", ["sends all", "collector away", "record under way"])
def test_a_worker_that_stops_leaves_what_it_could_not_send(
    store: InMemoryExecutionStore, provider: Provider, how: str
) -> None:
    worker = Worker(store)
    execution = worker.driver.start(chain(2))
    worker.run(execution, "n1")
    provider.reaches_collector = how != "collector away"
    worker.exporter.start()
    with worker.exporter.recording([EXPORTED if how == "record under way" else UNSAMPLED], worker.driver.worker_id):
        worker.exporter.stop()
    worker.kill()
    assert left(store) == ([] if how == "sends all" else [execution])


def test_after_a_lost_lease_it_begins_again(store: InMemoryExecutionStore, provider: Provider) -> None:
    worker = Worker(store)
    execution = worker.driver.start(chain(3))
    worker.run(execution, "n1")
    worker.kill()
    worker.driver.worker_id = "worker:2"
    store.register_worker("worker:2", name="worker", host="host", pid=1, queues=["default"], lease_seconds=60)
    worker.run(execution, "n2")
    assert worker.calls == ["begin", "record", "begin", "record"]

    worker.exporter.poll()  # and exports as well what it may have lost with the first
    assert left(store) == []
    worker.exporter.poll()
    assert worker.calls[-1] == "confirm"
    assert worker.exporter._exporting == {"worker:2"}
    worker.run(execution, "n3")
    worker.kill()
    assert left(store) == [execution]


def test_the_spans_of_a_worker_that_is_gone_are_exported_in_portions(
    store: InMemoryExecutionStore, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_exporter, "_UNSENT", 10)
    gone, taker = Worker(store, "gone"), Worker(store, "taker")
    begun = start_trace("single")
    execution = gone.driver.start(single(), trace_parent=begun.trace_parent, trace_state=begun.trace_state)
    spans = [traced(execution, number, "gone") for number in range(1, 26)]
    strange = traced(execution, 26, "another")
    gone.run(execution, "only", spans=[*spans, strange])
    gone.kill()

    provider.reaches_collector = False
    taker.exporter.poll()
    assert provider.flushed == [10]

    provider.reaches_collector = True
    provider.exporter.clear()
    provider.flushed.clear()
    taker.exporter.poll()
    assert provider.flushed == [10, 20, 26]
    assert provider.names == [*(span.name for span in spans), "single"]
    provider.exporter.clear()
    taker.exporter.poll()
    assert provider.names == []
