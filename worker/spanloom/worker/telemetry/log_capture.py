"""Log capture: lines that handlers write without `ctx.log`, kept with their nodes.

Captured are the standard `logging`, structlog as worker processes configure it, and, if enabled, printed lines. The
context decides the node of a line: a line from outside of a handler, or from a thread that a handler started itself,
belongs to no node.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import MutableMapping
from typing import Any

from spanloom.engine.errors import NodeTimeout
from spanloom.worker.error_text import exception_text, text_of
from spanloom.worker.telemetry.log_buffer import CURRENT, LogBuffer
from spanloom.worker.telemetry.log_export import LogExport
from spanloom.worker.telemetry.stdout_capture import StdoutCapture

__all__ = ["LogCapture", "keep_event"]

_NOT_OF_HANDLERS = ("spanloom", "rq", "opentelemetry")  #: loggers, with all below them
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_captures: set[LogCapture] = set()
_installing = threading.Lock()  # the root logger and the streams belong to the whole process


class LogCapture:
    """The service that captures lines while one worker works, from the handlers of that worker only.

    The root logger belongs to the application, which may replace its handlers at any time, even within a node. So each
    record that is made adds ours again, before it is handled, if it is gone.
    """

    def __init__(self, level: str, *, capture_output: bool) -> None:
        self.export: LogExport | None = None
        self._handler = _NodeHandler(self, logging.getLevelNamesMapping()[level.upper()])
        self._output = StdoutCapture(self) if capture_output else None

    def start(self) -> None:
        """Start capturing, and detect whether lines are to be exported."""
        self.export = LogExport.configured()
        with _installing:
            logging.getLogger().addHandler(self._handler)
            _captures.add(self)
            _watch_root()
            if self._output is not None:
                self._output.open()

    def ensure(self) -> None:
        """Add the handler to the root logger again, if the application has removed it."""
        root = logging.root
        if self._handler not in root.handlers:
            root.handlers = [*root.handlers, self._handler]  # without logging's lock, which a time limit may interrupt
        if not isinstance(logging.getLogRecordFactory(), _RecordFactory):
            _watch_root()

    def stop(self) -> None:
        """Stop capturing; a second call does nothing."""
        with _installing:
            _captures.discard(self)
            logging.getLogger().removeHandler(self._handler)
            _watch_root()
            if self._output is not None:
                self._output.close()


class _RecordFactory:
    """The maker of records, over the one that was set before: each record of a node finds its handler in place."""

    def __init__(self, beneath: Any) -> None:
        self.beneath = beneath

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        lines = CURRENT.get()
        if lines is not None and isinstance(lines.owner, LogCapture) and lines.owner in _captures:
            lines.owner.ensure()
        made: logging.LogRecord = self.beneath(*args, **kwargs)
        return made


def _watch_root() -> None:
    """Have records made by our factory while a worker captures, unless it is beneath another one already."""
    current = logging.getLogRecordFactory()
    if _captures and not isinstance(current, _RecordFactory):
        logging.setLogRecordFactory(_RecordFactory(current))
    elif not _captures and isinstance(current, _RecordFactory):
        logging.setLogRecordFactory(current.beneath)


class _NodeHandler(logging.Handler):
    """The handler of `logging` that keeps a node's records. It has no lock: a time limit may interrupt its holder."""

    def __init__(self, capture: LogCapture, lowest: int) -> None:
        super().__init__()
        self._log_capture = capture
        self._lowest = lowest

    def createLock(self) -> None:
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        lines = CURRENT.get()
        ours = lines is not None and lines.owner is self._log_capture
        if lines is not None and ours and record.levelno >= self._lowest and not _is_ours(record.name):
            previous = CURRENT.set(None)  # lines written while a record is formatted are not kept: they may never end
            try:
                _keep(lines, record)
            except NodeTimeout:
                raise
            except Exception:
                self.handleError(record)
            finally:
                CURRENT.reset(previous)
        if record.levelno >= logging.WARNING and self._is_the_only_one(record.name):
            _last_resort(record)
        return True

    def _is_the_only_one(self, name: str) -> bool:
        """Return whether only log captures handle that logger, and this is the first of them."""
        heard_by = _handlers_of(name)
        return heard_by[:1] == [self] and all(isinstance(handler, _NodeHandler) for handler in heard_by)


def keep_event(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep a structlog line that is written within a handler. A structlog processor."""
    lines = CURRENT.get()
    if lines is not None and not _is_ours(getattr(logger, "name", None) or ""):
        lines.add_event(method, event)
    return event


def _keep(lines: LogBuffer, record: logging.LogRecord) -> None:
    fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    fields["logger"] = record.name
    if record.exc_info and record.exc_info[1] is not None:
        fields["exception"] = exception_text(record.exc_info)
    elif record.exc_text:
        fields["exception"] = record.exc_text[-8_000:]
    message = text_of(_Message(record))
    lines.add(_level(record.levelno), message, fields, exported=_is_exported(record.name))


class _Message:
    """A record's message as text, also if its arguments do not fit."""

    def __init__(self, record: logging.LogRecord) -> None:
        self._record = record

    def __str__(self) -> str:
        try:
            return self._record.getMessage()
        except (TypeError, ValueError, KeyError):
            return f"{self._record.msg} {self._record.args}"


def _level(number: int) -> str:
    for name in ("critical", "error", "warning", "info"):
        if number >= logging.getLevelNamesMapping()[name.upper()]:
            return name
    return "debug"


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in _NOT_OF_HANDLERS


def _is_exported(name: str) -> bool:
    """Return whether OpenTelemetry's own handler, which exports its records, is on that logger."""
    return any(type(handler).__module__.startswith("opentelemetry.") for handler in _handlers_of(name))


def _handlers_of(name: str) -> list[logging.Handler]:
    logger: logging.Logger | None = logging.getLogger(name)
    found: list[logging.Handler] = []
    while logger is not None:
        found += logger.handlers
        logger = logger.parent if logger.propagate else None
    return found


def _last_resort(record: logging.LogRecord) -> None:
    """Handle a record as `logging` does without any handler: our own handler must not silence it."""
    if logging.lastResort is not None:
        logging.lastResort.handle(record)
