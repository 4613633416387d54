"""With OTEL_EXPORTER_OTLP_ENDPOINT set, workers export what the store keeps: the same trace, ids, times and status."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import System, worker_processes
from receivers import PROTOCOLS, GrpcReceiver, HttpReceiver, otlp_receiver


@pytest.fixture(params=PROTOCOLS)
def receiver(request: pytest.FixtureRequest) -> Iterator[HttpReceiver | GrpcReceiver]:
    with otlp_receiver(request.param) as made:
        yield made


def test_exported_spans_are_the_stored_spans(
    idle_system: System, receiver: HttpReceiver | GrpcReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = idle_system
    if system.kind == "memory":
        pytest.skip("an in-memory store has no worker processes that set up an exporter")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", receiver.protocol)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "orders")
    retry = {"max_attempts": 2, "delay": 0.01}
    workflow_id = system.register(
        {"id": "t", "type": "telling", "retry": retry},
        {"id": "a", "type": "aecho", "inputs": ["t"]},
        {"id": "b", "type": "echo", "inputs": ["t"]},
    )
    with worker_processes(2, system.store_url, system.redis_url):
        execution = system.run(workflow_id)
        trace_id = str(execution.trace_parent).split("-")[1]
        exported = receiver.wait_spans(trace_id, 9)

    stored = {span.span_id: span for span in system.engine.store.get_trace(execution.id)}
    assert {span.span_id.hex() for span in exported} == set(stored)
    for span in exported:
        kept = stored[span.span_id.hex()]
        assert (span.name, span.parent_span_id.hex()) == (kept.name, kept.parent_span_id)
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (kept.start_ns, kept.end_ns)
        assert {0: "unset", 1: "ok", 2: "error"}[span.status.code] == kept.status
    assert receiver.services == {"orders"}


def test_a_callers_span_is_the_beginning_of_the_trace(system: System) -> None:
    from opentelemetry import trace
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    caller = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(caller):
        execution = system.run(system.register({"id": "a", "type": "echo"}), 1)

    (span,) = system.engine.store.get_trace(execution.id)
    assert span.trace_id == f"{0xABC:032x}"
    assert span.parent_span_id == str(execution.trace_parent).split("-")[2]
