"""The log of a worker process: structlog's lines and those of the standard `logging`, to stderr in one format."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from opentelemetry import trace

from spanloom.engine.errors import NodeTimeout
from spanloom.engine.escaping import escaped_json
from spanloom.engine.logs import ConsoleLines
from spanloom.worker.error_text import text_of
from spanloom.worker.telemetry.log_capture import keep_event
from spanloom.worker.telemetry.stdout_capture import unwrapped

__all__ = ["configure_logging"]


def configure_logging(log_format: str, level: int = logging.INFO) -> None:
    """Log to stderr: JSON lines, or readable ones in a terminal (`auto` detects whether it is one).

    Lines that are written within a node carry its ids. Handlers that the application has added to the root logger stay,
    except those that write to standard output or standard error. The root level is set if the application has added no
    handler.
    """
    as_json = log_format == "json" or (log_format == "auto" and not (sys.stderr and sys.stderr.isatty()))
    renderer = _Renderer(_json_line if as_json else ConsoleLines())
    shared: list[Any] = [
        _innermost_span,
        structlog.contextvars.merge_contextvars,
    ]
    stamped: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, keep_event, *stamped, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_StderrLogger,
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder(), *shared, *stamped],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    root = logging.getLogger()
    stay = [handler for handler in root.handlers if not _is_replaced(handler)]
    if all(isinstance(handler, _StderrHandler) for handler in root.handlers):
        root.setLevel(level)
    root.handlers[:] = [*stay, _StderrHandler(formatter)]


def _innermost_span(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the ids of the innermost open span, which may lie below the node's own."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid and "span_id" not in event:
        event["trace_id"], event["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    return event


def _is_replaced(handler: logging.Handler) -> bool:
    if isinstance(handler, _StderrHandler):
        return True
    return type(handler) is logging.StreamHandler and handler.stream in (
        sys.stderr,
        sys.stdout,
        sys.__stderr__,
        sys.__stdout__,
    )


def _write(text: str) -> None:
    """Write a line in one piece, without a lock: a time limit may interrupt a thread that holds one."""
    if sys.stderr is None:  # it was closed before the process started
        return
    try:
        stream = unwrapped(sys.stderr)
        stream.write(text + "\n")
        stream.flush()
    except (OSError, ValueError):  # the reader is gone: that must end neither a handler nor its worker
        pass


def _json_line(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    return escaped_json(str(structlog.processors.JSONRenderer()(logger, method, event)))


class _Renderer:
    """A renderer that never fails: a line that its renderer can't write (a cycle in a field) is rendered as text."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def __call__(self, logger: Any, method: str, event: Any) -> Any:
        try:
            return self._renderer(logger, method, event)
        except NodeTimeout:
            raise
        except Exception:
            return self._renderer(logger, method, {text_of(key): text_of(value) for key, value in event.items()})


class _StderrLogger:
    """The logger that structlog passes rendered lines to."""

    def __init__(self, name: str = "", *_: Any) -> None:
        self.name = name

    def msg(self, message: str) -> None:
        _write(message)

    debug = info = warning = warn = error = err = critical = fatal = exception = failure = log = msg


class _StderrHandler(logging.Handler):
    """The handler that writes the records of `logging`. It has no lock."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.formatter = formatter

    def createLock(self) -> None:
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        if not self.filter(record):
            return False
        try:
            _write(self.format(record))
        except NodeTimeout:
            raise
        except Exception:
            self.handleError(record)
        return True
