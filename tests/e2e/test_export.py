"""With OTEL_EXPORTER_OTLP_ENDPOINT set, workers export what the store keeps: the same trace, ids, times and status."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from harness import System, worker_processes
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Receiver:
    """An OTLP/HTTP receiver; `wait` returns once a trace has so many spans."""

    def __init__(self) -> None:
        self._spans: list[Any] = []
        self._services: set[str] = set()
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def _take(self, request: ExportTraceServiceRequest) -> None:
        with self._changed:
            for resource in request.resource_spans:
                self._services |= {
                    attribute.value.string_value
                    for attribute in resource.resource.attributes
                    if attribute.key == "service.name"
                }
                for scope in resource.scope_spans:
                    self._spans.extend(scope.spans)
            self._changed.notify_all()

    def wait(self, trace_id: str, count: int, timeout: float = 30) -> list[Any]:
        def found() -> list[Any]:
            return [span for span in self._spans if span.trace_id.hex() == trace_id]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, timeout), found()
            return found()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_exported_spans_are_the_stored_spans(
    idle_system: System, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = idle_system
    if system.kind == "memory":
        pytest.skip("an in-memory store has no worker processes that set up an exporter")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
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
        exported = receiver.wait(trace_id, 9)

    stored = {span.span_id: span for span in system.engine.store.get_trace(execution.id)}
    assert {span.span_id.hex() for span in exported} == set(stored)
    for span in exported:
        kept = stored[span.span_id.hex()]
        assert (span.name, span.parent_span_id.hex()) == (kept.name, kept.parent_span_id)
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (kept.start_ns, kept.end_ns)
        assert {0: "unset", 1: "ok", 2: "error"}[span.status.code] == kept.status
    assert receiver._services == {"orders"}


def test_a_callers_span_is_the_beginning_of_the_trace(system: System) -> None:
    from opentelemetry import trace
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    caller = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(caller):
        execution = system.run(system.register({"id": "a", "type": "echo"}), 1)

    (span,) = system.engine.store.get_trace(execution.id)
    assert span.trace_id == f"{0xABC:032x}"
    assert span.parent_span_id == str(execution.trace_parent).split("-")[2]
