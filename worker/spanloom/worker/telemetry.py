"""Sets up an OpenTelemetry SDK in a worker process, if the standard OTEL_* variables ask for it."""

from __future__ import annotations

import os
from collections.abc import Callable

from opentelemetry import trace

from spanloom.engine.errors import ConfigurationError
from spanloom.worker.process_log import configure_logging

__all__ = ["configure_logging", "configure_tracing"]


def configure_tracing() -> Callable[[], None]:
    """Export spans by OTLP if OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) is set and no SDK is set up yet.

    Returns what to call at the end: it sends what is left. Raises ConfigurationError if the exporter is not installed.
    """
    wanted = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not wanted or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return _nothing
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return _nothing
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set but no exporter is installed: pip install 'spanloom[otlp]'"
        ) from error
    resource = Resource.create({SERVICE_NAME: "spanloom-worker"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _nothing() -> None:
    return None
