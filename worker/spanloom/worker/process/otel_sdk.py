"""The set-up of an OpenTelemetry SDK, for the signals that the standard OTEL_* variables enable, and its timely end.

Packages are imported only for signals that are enabled. A provider that the application has set up is left alone.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import structlog
from opentelemetry import _logs, metrics, trace

from spanloom.engine.errors import ConfigurationError

__all__ = ["SIGNALS", "configure_sdk"]

_log = structlog.get_logger("spanloom.worker")
SIGNALS = ("traces", "metrics", "logs")
SHUTDOWN_SECONDS = 2.0  #: how long a collector that does not answer may keep a process that ends
LINKS = 1024  #: of one span, unless OTEL_SPAN_LINK_COUNT_LIMIT is set; a join has one for each parent
ATTRIBUTE_CHARACTERS = 10_000  #: of one attribute of a span; the SDK has no bound
_PROTOCOLS = {"http/protobuf": ("http", "otlp"), "grpc": ("grpc", "otlp-grpc")}  # a module's name, and our extra
_EXPORTERS = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}
_CONSOLE = {  # the first name that the SDK has: logs are not stable in it
    "traces": ("opentelemetry.sdk.trace.export", "ConsoleSpanExporter"),
    "metrics": ("opentelemetry.sdk.metrics.export", "ConsoleMetricExporter"),
    "logs": ("opentelemetry.sdk._logs.export", "ConsoleLogRecordExporter", "ConsoleLogExporter"),
}


def configure_sdk(
    service_name: str,
    *,
    instance_id: str | None = None,
    signals: Collection[str] = SIGNALS,
    prometheus: bool = False,
) -> Callable[[], None]:
    """Set up providers for those `signals` that the environment enables and that have none; return a shutdown function.

    A signal is enabled by OTEL_EXPORTER_OTLP_ENDPOINT or its own …_{SIGNAL}_ENDPOINT, or by OTEL_{SIGNAL}_EXPORTER:
    otlp, console or none, several with commas between. OTEL_EXPORTER_OTLP_PROTOCOL, or …_{SIGNAL}_PROTOCOL, is
    http/protobuf or grpc. `prometheus` adds the metrics to prometheus_client's registry. `service_name` is the default
    of OTEL_SERVICE_NAME. Samplers, limits, headers, time limits and intervals have the SDK's own variables.

    The shutdown function sends the remaining data, for SHUTDOWN_SECONDS at most. Call configure_sdk() in the process
    that does the work: threads do not outlive a fork. Raises ConfigurationError, before anything is set up, for an
    unknown name or a missing package.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return _nothing
    wanted = {
        signal: _exporters_of(signal, os.environ)
        for signal in SIGNALS
        if signal in signals and not _has_provider(signal)
    }
    exporters = {signal: [_exporter(signal, name) for name in names] for signal, names in wanted.items() if names}
    reader = _prometheus_reader() if prometheus and "metrics" in wanted else None
    if prometheus and reader is None:
        _log.warning(
            "metrics_are_the_apps_own", hint="give its MeterProvider a PrometheusMetricReader to serve ours, too"
        )
    if not exporters and reader is None:
        return _nothing
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource

    own = {SERVICE_NAME: service_name} | ({SERVICE_INSTANCE_ID: instance_id} if instance_id else {})
    resource = Resource.create(own).merge(OTELResourceDetector().detect())  # the user's variables come first
    ends: list[Callable[[], object]] = []
    if made := exporters.get("traces"):
        ends.append(_set_up_traces(made, resource))
    if (made := exporters.get("metrics", [])) or reader is not None:
        ends.append(_set_up_metrics(made, reader, resource))
    if made := exporters.get("logs"):
        ends.append(_set_up_logs(made, resource))
    return lambda: _end(ends)


def _has_provider(signal: str) -> bool:
    """Return whether a provider of that signal is set up; the API's own placeholders do not count."""
    provider: object
    if signal == "traces":
        provider = trace.get_tracer_provider()
    elif signal == "metrics":
        provider = metrics.get_meter_provider()
    else:
        provider = _logs.get_logger_provider()
    return not type(provider).__module__.startswith(
        ("opentelemetry.trace", "opentelemetry.metrics", "opentelemetry._logs")
    )


def _exporters_of(signal: str, environment: Mapping[str, str]) -> list[str]:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    endpoints = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    given = environment.get(variable, "").strip()
    if not given:
        return ["otlp"] if any(environment.get(variable, "").strip() for variable in endpoints) else []
    names = list(dict.fromkeys(name.strip().lower() for name in given.split(",") if name.strip()))
    if unknown := set(names) - {"otlp", "console", "none"}:
        hint = (
            "; metrics for Prometheus are served by `spanloom worker --metrics-port`" if "prometheus" in names else ""
        )
        raise ConfigurationError(
            f"{variable}={given!r} names the exporter {min(unknown)!r}; set it to otlp, console or none{hint}"
        )
    return [name for name in names if name != "none"]


def _exporter(signal: str, name: str) -> Any:
    if name == "console":
        module, *kinds = _CONSOLE[signal]
        console = importlib.import_module(module)
        # Standard error, like log lines: a command's output is on standard output.
        return next(getattr(console, kind) for kind in kinds if hasattr(console, kind))(out=sys.stderr)
    own, general = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    variable = own if os.environ.get(own, "").strip() else general
    protocol = os.environ.get(variable, "").strip() or "http/protobuf"
    if protocol not in _PROTOCOLS:
        raise ConfigurationError(f"{variable}={protocol!r} is no protocol we speak; set it to http/protobuf or grpc")
    package, extra = _PROTOCOLS[protocol]
    module, kind = _EXPORTERS[signal]
    try:
        found = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{package}.{module}")
    except ImportError as error:
        raise ConfigurationError(
            f"{signal} are to be exported by OTLP over {protocol}, but its exporter is not installed: "
            f"pip install 'spanloom[{extra}]'"
        ) from error
    return getattr(found, kind)()


def _prometheus_reader() -> Any:
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
    except ImportError as error:
        raise ConfigurationError(
            "--metrics-port serves Prometheus, but its exporter is not installed: pip install 'spanloom[prometheus]'"
        ) from error
    return PrometheusMetricReader()


def _is_set(*names: str) -> bool:
    return any(os.environ.get(name, "").strip() for name in names)


def _set_up_traces(exporters: list[Any], resource: Any) -> Callable[[], object]:
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    limits: dict[str, int] = {}  # our own defaults, where the standard variables are not set
    if not _is_set("OTEL_SPAN_LINK_COUNT_LIMIT"):
        limits["max_links"] = LINKS
    if not _is_set("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT"):
        limits["max_span_attribute_length"] = ATTRIBUTE_CHARACTERS
    provider = TracerProvider(resource=resource, span_limits=SpanLimits(**limits), shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _set_up_metrics(exporters: list[Any], reader: Any, resource: Any) -> Callable[[], object]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    readers = [PeriodicExportingMetricReader(exporter) for exporter in exporters]
    readers += [] if reader is None else [reader]
    provider = MeterProvider(readers, resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown


def _set_up_logs(exporters: list[Any], resource: Any) -> Callable[[], object]:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider = LoggerProvider(resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    _logs.set_logger_provider(provider)
    return provider.shutdown


def _end(ends: Collection[Callable[[], object]]) -> None:
    """Shut all providers down at once, and wait SHUTDOWN_SECONDS at most: the exporters retry for longer."""
    threads = [threading.Thread(target=end, name="spanloom-export", daemon=True) for end in ends]
    until = time.monotonic() + SHUTDOWN_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _nothing() -> None:
    return None
