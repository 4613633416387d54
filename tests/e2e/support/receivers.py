"""Real OTLP receivers in the test's own process, over HTTP and over gRPC: what arrived, and waiting until it has."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

PROTOCOLS = ("http/protobuf", "grpc")


class Point(NamedTuple):
    """One data point of a metric: its attributes, and its value (of a histogram its count)."""

    name: str
    attributes: dict[str, Any]
    value: float
    resource: dict[str, Any]


class Received:
    """What a receiver was sent. Spans, logs and metrics are OTLP's messages; resources are plain dicts.

    `spans`, `logs` and `metrics` are copies of what is there now. `points` are the data points of the latest export of
    each process, by its service.instance.id: OTLP sends running totals.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._spans: list[Any] = []
        self._logs: list[Any] = []
        self._metrics: list[Any] = []
        self._points: dict[tuple[Any, ...], Point] = {}
        self.resources: dict[str, list[dict[str, Any]]] = {"traces": [], "metrics": [], "logs": []}
        self.headers: list[dict[str, str]] = []

    @property
    def spans(self) -> list[Any]:
        with self._changed:
            return list(self._spans)

    @property
    def logs(self) -> list[Any]:
        with self._changed:
            return list(self._logs)

    @property
    def metrics(self) -> list[Any]:
        with self._changed:
            return list(self._metrics)

    @property
    def points(self) -> list[Point]:
        with self._changed:
            return list(self._points.values())

    @property
    def services(self) -> set[str]:
        """The service names of all that arrived."""
        with self._changed:
            return {str(one.get("service.name")) for found in self.resources.values() for one in found}

    def spans_of(self, trace_id: str) -> list[Any]:
        """The spans of one trace, by its id in hex."""
        return [span for span in self.spans if span.trace_id.hex() == trace_id]

    def wait(self, found: Callable[[], Any], timeout: float = 30) -> Any:
        """Wait until `found()`, which is asked again whenever something arrives, is true; return it."""
        with self._changed:
            assert self._changed.wait_for(found, timeout), f"it did not arrive in {timeout:g} s; last: {found()!r}"
            return found()

    def wait_spans(self, trace_id: str, count: int, timeout: float = 30) -> list[Any]:
        """Wait until at least `count` spans of a trace have arrived, and return them."""
        self.wait(lambda: len(self.spans_of(trace_id)) >= count, timeout)
        return self.spans_of(trace_id)

    def wait_logs(self, body: str, count: int = 1, timeout: float = 30) -> list[Any]:
        """Wait until at least `count` log records whose body holds that text have arrived, and return them."""

        def found() -> list[Any]:
            return [record for record in self.logs if body in record.body.string_value]

        self.wait(lambda: len(found()) >= count, timeout)
        return found()

    def wait_metric(
        self, name: str, attributes: Mapping[str, Any] = MappingProxyType({}), timeout: float = 30
    ) -> list[Point]:
        """Wait until a metric has points with these attributes, and return them."""

        def found() -> list[Point]:
            return [one for one in self.points if one.name == name and attributes.items() <= one.attributes.items()]

        self.wait(found, timeout)
        return found()

    def take_traces(self, request: Any) -> None:
        with self._changed:
            for resource in request.resource_spans:
                self.resources["traces"].append(attributes_of(resource.resource))
                for scope in resource.scope_spans:
                    self._spans.extend(scope.spans)
            self._changed.notify_all()

    def take_logs(self, request: Any) -> None:
        with self._changed:
            for resource in request.resource_logs:
                self.resources["logs"].append(attributes_of(resource.resource))
                for scope in resource.scope_logs:
                    self._logs.extend(scope.log_records)
            self._changed.notify_all()

    def take_metrics(self, request: Any) -> None:
        with self._changed:
            for resource in request.resource_metrics:
                told = attributes_of(resource.resource)
                self.resources["metrics"].append(told)
                for scope in resource.scope_metrics:
                    self._metrics.extend(scope.metrics)
                    for metric in scope.metrics:
                        self._keep_points(metric, told)
            self._changed.notify_all()

    def _keep_points(self, metric: Any, resource: dict[str, Any]) -> None:
        kind = metric.WhichOneof("data")
        for point in getattr(metric, kind).data_points:
            attributes = attributes_of(point)
            if kind in ("histogram", "exponential_histogram"):
                value = float(point.count)
            else:
                value = float(getattr(point, point.WhichOneof("value")))
            key = (resource.get("service.instance.id"), metric.name, *sorted(attributes.items()))
            self._points[key] = Point(metric.name, attributes, value, resource)


class HttpReceiver(Received):
    """Receives OTLP over HTTP, binary protobuf, at `url`."""

    protocol = "http/protobuf"

    def __init__(self) -> None:
        super().__init__()
        requests = {
            "/v1/traces": (trace_service_pb2.ExportTraceServiceRequest, self.take_traces),
            "/v1/metrics": (metrics_service_pb2.ExportMetricsServiceRequest, self.take_metrics),
            "/v1/logs": (logs_service_pb2.ExportLogsServiceRequest, self.take_logs),
        }
        headers = self.headers

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                headers.append({key.lower(): value for key, value in self.headers.items()})
                known = requests.get(self.path)
                if known is not None:
                    message, take = known
                    take(message.FromString(body))
                self.send_response(404 if known is None else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="otlp-http")
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class GrpcReceiver(Received):
    """Receives OTLP over gRPC at `url`."""

    protocol = "grpc"

    def __init__(self) -> None:
        super().__init__()
        take_traces, take_metrics, take_logs, headers = (
            self.take_traces,
            self.take_metrics,
            self.take_logs,
            self.headers,
        )

        def noted(context: Any) -> None:
            headers.append({key: str(value) for key, value in context.invocation_metadata()})

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                noted(context)
                take_traces(request)
                return trace_service_pb2.ExportTraceServiceResponse()

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                noted(context)
                take_metrics(request)
                return metrics_service_pb2.ExportMetricsServiceResponse()

        class Logs(logs_service_pb2_grpc.LogsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                noted(context)
                take_logs(request)
                return logs_service_pb2.ExportLogsServiceResponse()

        self._pool = ThreadPoolExecutor(4, "otlp-grpc")
        self._server = grpc.server(self._pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), self._server)
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()


@contextmanager
def otlp_receiver(protocol: str = "http/protobuf") -> Iterator[HttpReceiver | GrpcReceiver]:
    """A receiver of one of PROTOCOLS, for a block; point OTEL_EXPORTER_OTLP_ENDPOINT at its `url`."""
    made = GrpcReceiver() if protocol == "grpc" else HttpReceiver()
    try:
        yield made
    finally:
        made.close()


def attributes_of(message: Any) -> dict[str, Any]:
    """The attributes of a resource, span, link, log record or data point, as a plain dict."""
    return {one.key: _value(one.value) for one in message.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
