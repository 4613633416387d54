"""The log lines of one attempt: made of what its handler says, bounded, and kept until they are stored."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import structlog
from opentelemetry import trace

from spanloom.engine.errors import NodeTimeout
from spanloom.engine.records import Claim, LogLine
from spanloom.worker.outcomes import message_of

__all__ = ["MAX_CHARACTERS", "MAX_LINES", "Lines"]

MAX_LINES = 5_000  #: of one attempt; the same number of its spans is kept
MAX_CHARACTERS = 10_000  #: of one line's message, and of its fields as JSON
_MAX_TRACEBACK = 8_000


class Lines:
    """Collect what an attempt says.

    Adding takes no lock and never waits: the watchdog may interrupt a handler between any two bytecodes. It raises
    nothing but what interrupts the handler itself.
    """

    def __init__(self, claim: Claim, trace_id: str, span_id: str) -> None:
        self._claim = claim
        self._trace_id = trace_id
        self._span_id = span_id
        self._lines: list[LogLine] = []
        self._left_out = 0
        self._logger: Any = None

    @property
    def logger(self) -> Any:
        """A structlog logger, as it is configured in this process, whose lines are kept as well."""
        if self._logger is None:
            config = structlog.get_config()
            self._logger = structlog.wrap_logger(
                config["logger_factory"]("spanloom.node"),
                processors=[self._keep_event, *config["processors"]],
                wrapper_class=config["wrapper_class"],
                **self.ids(),
            )
        return self._logger

    def ids(self) -> dict[str, Any]:
        """Return what every line of this attempt carries, but its span."""
        node = self._claim.node
        ids: dict[str, Any] = {"execution_id": self._claim.header.execution_id, "node_id": node.node_id}
        if node.item:
            ids["item"] = node.item
        return {**ids, "attempt": node.attempt, "trace_id": self._trace_id}

    @property
    def rest(self) -> Sequence[LogLine]:
        """The lines that are not stored yet, in order."""
        return self._lines

    def add(self, level: str, message: str, fields: Mapping[str, Any] | None = None) -> None:
        """Keep one line."""
        if len(self._lines) >= MAX_LINES:
            self._left_out += 1
            return
        self._lines.append(self._line(level, message, fields))

    def leave_out(self) -> None:
        """Count a span of this attempt that was one too many."""
        self._left_out += 1

    def end(self, error: BaseException | None, *, final: bool) -> None:
        """Add what the attempt failed of, a warning if it is not `final`, and what was left out. Nothing follows."""
        if error is not None:
            told = {"exception": traceback_of(error, limit=20)}
            self._lines.append(
                self._line("error" if final else "warning", f"{type(error).__name__}: {message_of(error)}", told)
            )
        if self._left_out:
            said = f"{self._left_out} more lines or spans of this attempt were not kept"
            self._lines.append(self._line("warning", said, None))

    def _line(self, level: str, message: str, fields: Mapping[str, Any] | None) -> LogLine:
        inner = trace.get_current_span().get_span_context()
        within = f"{inner.trace_id:032x}" == self._trace_id  # not so in a thread that the handler started itself
        return LogLine(
            level=level,
            message=storable(message),
            at=datetime.now(UTC),
            fields=_as_json(fields) if fields else "{}",
            attempt=self._claim.node.attempt,
            trace_id=self._trace_id,
            span_id=f"{inner.span_id:016x}" if within else self._span_id,
        )

    def _keep_event(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        fields = {key: value for key, value in event.items() if key not in _BOUND}
        if raised := fields.pop("exc_info", None):
            fields["exception"] = exception_text(raised)
        self.add(_LEVELS.get(method, method), text_of(fields.pop("event", "")), fields)
        return event


_BOUND = frozenset({"execution_id", "node_id", "item", "attempt", "trace_id", "level", "timestamp"})
_LEVELS = {"exception": "error", "warn": "warning", "fatal": "critical", "msg": "info"}


def text_of(value: Any) -> str:
    """Return a value as text, also one whose own `__str__` fails."""
    try:
        return str(value)
    except NodeTimeout:  # the watchdog's, which came just then
        raise
    except Exception as failed:
        return f"(it can't be read: {type(failed).__name__})"


def storable(text: str) -> str:
    """Cut a text to its bound, without what no database keeps as text."""
    text = text[:MAX_CHARACTERS].replace("\x00", "\ufffd")
    return text if text.isascii() else text.encode(errors="replace").decode()


def exception_text(
    raised: bool | BaseException | tuple[type[BaseException] | None, BaseException | None, TracebackType | None],
) -> str:
    """Return the traceback that an `exc_info` stands for."""
    if isinstance(raised, BaseException):
        return traceback_of(raised)
    if isinstance(raised, tuple):
        return "" if raised[1] is None else traceback_of(raised[1])
    return text_of(traceback.format_exc(limit=-50))[-_MAX_TRACEBACK:]


def traceback_of(error: BaseException, *, limit: int = 50) -> str:
    """Return an exception's traceback, bounded at its older end."""
    try:
        return "".join(traceback.format_exception(error, limit=-limit))[-_MAX_TRACEBACK:]
    except NodeTimeout:
        raise
    except Exception as failed:
        return f"{type(error).__name__} (its traceback can't be read: {type(failed).__name__})"


def _as_json(fields: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(fields, default=text_of)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, a value that holds itself
        text = json.dumps({text_of(key): text_of(value) for key, value in fields.items()})
    if len(text) <= MAX_CHARACTERS:
        return text
    kept = {"exception": fields["exception"]} if "exception" in fields else {}
    return json.dumps({**kept, "left_out": sorted(map(text_of, fields))[:100], "bytes": len(text)})
