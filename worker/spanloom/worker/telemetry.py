"""Sets up logging and, if the standard OTEL_* variables ask for it, an OpenTelemetry SDK in a worker process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import structlog
from opentelemetry import trace

from spanloom.engine.errors import ConfigurationError

__all__ = ["configure_logging", "configure_tracing"]


def configure_logging(log_format: str, level: int = logging.INFO) -> None:
    """Log to stderr: JSON lines, or readable ones in a terminal (`auto` looks whether it is one)."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if as_json else _unchanged,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


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


def _unchanged(_logger: Any, _method: str, event: Any) -> Any:
    return event


def _nothing() -> None:
    return None
