"""Sets up logging and, if the standard OTEL_* variables ask for it, an OpenTelemetry SDK in a worker process."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import structlog
from opentelemetry import trace

from spanloom.engine.errors import ConfigurationError

__all__ = ["as_printed", "configure_logging", "configure_tracing"]

_MAX_PRINTED = 1_000


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
            _Renderer(renderer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Printer(sys.stderr),
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


def as_printed(value: object) -> str:
    """Return a value of any kind as text, shortened; one that can't be printed says why."""
    try:
        return str(value)[:_MAX_PRINTED]
    except Exception as error:
        return f"(a {type(value).__name__} that can't be printed: {type(error).__name__})"


class _Renderer:
    """Render a line in any case: what a renderer can't write, such as a circle in a field, is told as printed."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def __call__(self, logger: Any, method: str, event: Any) -> Any:
        try:
            return self._renderer(logger, method, event)
        except Exception:
            return self._renderer(logger, method, {key: as_printed(value) for key, value in event.items()})


class _Printer(structlog.PrintLogger):
    """Print lines. One that can't be written (a full disk, a reader that is gone) is lost: it must not end the work."""

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file was closed
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def _unchanged(_logger: Any, _method: str, event: Any) -> Any:
    return event


def _nothing() -> None:
    return None
