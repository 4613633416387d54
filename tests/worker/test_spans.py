"""The spans that an engine and its workers make in a process whose own code has set up an SDK."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from spanloom.engine import Node, NodeContext, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.store.states import ExecutionStatus


class Exported(InMemorySpanExporter):
    """The spans that were exported; waiting until one is among them."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def export(self, spans: Any) -> Any:
        with self._changed:
            answer = super().export(spans)
            self._changed.notify_all()
        return answer

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.get_finished_spans() if span.name == name]

    def wait(self, name: str, found: Callable[[ReadableSpan], bool] = lambda span: True) -> ReadableSpan:
        """Wait for a span of that name, and return the latest."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(found, self.named(name))), 30), self.get_finished_spans()
            return next(span for span in reversed(self.named(name)) if found(span))


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    made = TracerProvider()
    yield made
    made.shutdown()


@pytest.fixture
def exported(provider: TracerProvider, monkeypatch: pytest.MonkeyPatch) -> Exported:
    exporter = Exported()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr("spanloom.engine.telemetry.tracing._look_again_at", 0.0)  # a test before had none
    return exporter


@pytest.fixture
def engine(exported: Exported, store_url: str, redis_url: str) -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()
    registry.register("echo", lambda ctx: ctx.input)

    @registry.node("own")
    def own(ctx: NodeContext) -> str:
        with trace.get_tracer("a library").start_as_current_span("below"), ctx.span("inner", size=3):
            return f"{trace.get_current_span().get_span_context().span_id:016x}"

    @registry.node("fails")
    def fails(ctx: NodeContext) -> None:
        raise ValueError("no")

    with WorkflowEngine(registry, store_url, redis_url) as made:
        yield made


def register(engine: WorkflowEngine, *nodes: dict[str, Any], name: str = "flow") -> str:
    engine.register_workflow(Workflow(id=name, nodes=tuple(Node.model_validate(node) for node in nodes)))
    return name


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_start_is_seen_at_once_below_the_execution_and_that_below_the_caller(
    engine: WorkflowEngine, exported: Exported, provider: TracerProvider
) -> None:
    register(engine, {"id": "a", "type": "echo"})
    with provider.get_tracer("app").start_as_current_span("request") as request:
        execution_id = engine.enqueue_workflow("flow", priority="high")

    (enqueue,) = exported.named("enqueue flow")
    found = engine.store.get_execution(execution_id)
    assert found is not None
    own = int(str(found.trace_parent).split("-")[2], 16)
    assert (enqueue.kind, parent_id(enqueue)) == (SpanKind.PRODUCER, own)
    told = attributes(enqueue)
    assert told["messaging.destination.name"] == "spanloom.default.high"
    assert told["messaging.batch.message_count"] == 1
    assert exported.named("flow") == []

    with engine.start_workers():
        engine.wait(execution_id, timeout=30)
        ended = exported.wait("flow")
    assert (span_id(ended), parent_id(ended)) == (own, request.get_span_context().span_id)


def test_a_start_that_was_made_before_is_not_told_again(engine: WorkflowEngine, exported: Exported) -> None:
    register(engine, {"id": "a", "type": "echo"})
    for _ in range(2):
        engine.enqueue_workflow("flow", idempotency_key="once")
    engine.enqueue_workflow("flow", delay=3600)

    assert len(exported.named("enqueue flow")) == 2


def test_spans_of_libraries_and_of_handlers_nest_where_they_were_opened(
    engine: WorkflowEngine, exported: Exported
) -> None:
    register(engine, {"id": "a", "type": "own"})
    with engine.start_workers():
        seen = engine.run("flow", timeout=30)
        node = exported.wait("run a")

    (below,), (inner,) = exported.named("below"), exported.named("inner")
    assert (parent_id(below), parent_id(inner)) == (span_id(node), span_id(below))
    assert f"{span_id(inner):016x}" == seen
    stored = {span.name: span for span in engine.store.get_trace(engine.store.list_executions().items[0].id)}
    assert set(stored) == {"run a", "inner"}  # what libraries open is theirs to export
    assert stored["inner"].span_id == seen


def test_a_cancelled_execution_ends_in_its_trace_with_what_it_waited_for(
    engine: WorkflowEngine, exported: Exported
) -> None:
    register(engine, {"id": "deep", "type": "delay", "config": {"seconds": 3600}}, name="child")
    register(engine, {"id": "call", "type": "workflow", "config": {"workflow": "child"}})
    with engine.start_workers():
        execution_id = engine.enqueue_workflow("flow")
        exported.wait("enqueue child")
        (child,) = engine.store.get_child_executions(execution_id)
        wait_until_waiting(engine, child.id)
        engine.cancel_execution(execution_id)

    flow, call, below, deep = (exported.wait(name) for name in ("flow", "run call", "child", "run deep"))
    assert [parent_id(span) for span in (flow, call, below, deep)] == [
        None, span_id(flow), span_id(call), span_id(below),
    ]  # fmt: skip
    assert (
        attributes(flow)["spanloom.execution.status"] == attributes(below)["spanloom.execution.status"] == "cancelled"
    )
    assert {span.end_time for span in (flow, call)} == {flow.end_time}


def waited(engine: WorkflowEngine, execution_id: str) -> bool:
    return any(event.kind == "node.waiting" for event in engine.store.get_events(execution_id))


def wait_until_waiting(engine: WorkflowEngine, execution_id: str) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if waited(engine, execution_id):
            return
        pause.wait(0.02)
    raise AssertionError(f"{execution_id} does not wait")


def test_a_deadline_ends_the_trace_of_its_execution(engine: WorkflowEngine, exported: Exported) -> None:
    register(engine, {"id": "wait", "type": "delay", "config": {"seconds": 3600}})
    with engine.start_workers():
        for deadline in (0.2, 2.0, 20.0):  # until it comes after the node has begun to wait
            execution_id = engine.enqueue_workflow("flow", deadline=deadline)
            engine.wait(execution_id, timeout=30)
            if waited(engine, execution_id):
                break
        own, node = (
            exported.wait(name, lambda span: attributes(span)["spanloom.execution.id"] == execution_id)
            for name in ("flow", "run wait")
        )

    assert attributes(own)["error.type"] == "DeadlineExceeded"
    assert (parent_id(node), node.end_time) == (span_id(own), own.end_time)


def test_what_an_operator_ends_ends_in_its_trace(engine: WorkflowEngine, exported: Exported) -> None:
    register(engine, {"id": "a", "type": "echo"})
    by_hand, failed = engine.enqueue_workflow("flow"), engine.enqueue_workflow("flow")
    engine.update_node_result(by_hand, "a", data=1)
    engine.set_execution_status(failed, ExecutionStatus.FAILED, error="no more")

    own = {attributes(span)["spanloom.execution.id"]: span for span in exported.named("flow")}
    assert attributes(own[by_hand])["spanloom.execution.status"] == "completed"
    assert attributes(own[failed])["error.type"] == "EndedByHand"


def test_a_node_that_runs_again_after_a_retry_of_its_execution_links_to_the_attempt_that_failed(
    engine: WorkflowEngine, exported: Exported
) -> None:
    register(engine, {"id": "a", "type": "fails"})
    with engine.start_workers():
        execution_id = engine.enqueue_workflow("flow")
        engine.wait(execution_id, timeout=30)
        first = exported.wait("run a")
        engine.retry_execution(execution_id)
        again = exported.wait("run a", lambda span: bool(span.links))

    assert [link.context.span_id for link in again.links] == [span_id(first)]


def test_nothing_is_made_where_no_sdk_is_set_up(store_url: str, redis_url: str) -> None:
    registry = NodeRegistry()
    registry.register("echo", lambda ctx: trace.get_current_span().is_recording())
    with WorkflowEngine(registry, store_url, redis_url) as engine, engine.start_workers():
        register(engine, {"id": "a", "type": "echo"})
        assert engine.run("flow", timeout=30) is False
        (execution,) = engine.store.list_executions().items
        (span,) = engine.store.get_trace(execution.id)
    assert execution.trace_state == "spanloom=undecided"
    assert span.parent_span_id == str(execution.trace_parent).split("-")[2]
