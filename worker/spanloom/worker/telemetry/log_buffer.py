"""The log buffer of one attempt: the lines of its handler, bounded, and kept until they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from structlog.contextvars import bind_contextvars

from spanloom.engine.errors import NodeTimeout
from spanloom.engine.limits import MAX_ATTEMPT_CHARACTERS, MAX_LINE_CHARACTERS, MAX_LINES, shortened
from spanloom.engine.store.requests import Claim, LogLine, NodeLines
from spanloom.engine.store.texts import storable
from spanloom.worker.error_text import exception_text, main_error, message_of, text_of, traceback_of
from spanloom.worker.telemetry.log_export import LogExport

__all__ = ["CURRENT", "LogBuffer", "as_json"]

_NEVER_WRITTEN = 20 * MAX_LINE_CHARACTERS  #: characters of fields that are left out without writing them as JSON
_BATCH = 500  #: lines that are sent at once

#: The lines of the attempt that runs in this context; None outside of handlers.
CURRENT: ContextVar[LogBuffer | None] = ContextVar("spanloom_lines", default=None)
# The variables of structlog.contextvars by name: setting them costs a third of bind_contextvars() for each node.
_IDS: dict[str, ContextVar[Any]] = {
    name: token.var
    for name, token in copy_context()
    .run(bind_contextvars, **dict.fromkeys(("execution_id", "node_id", "item", "attempt", "trace_id", "span_id")))
    .items()
}


class LogBuffer:
    """The log lines of an attempt, and the number of them that are stored.

    Adding a line takes no lock and never waits: a time limit may interrupt a handler between any two bytecodes. It
    raises only interruptions of the handler itself, such as NodeTimeout. `owner` is the worker's LogCapture.
    """

    def __init__(
        self,
        claim: Claim,
        trace_id: str,
        span_id: str,
        context: Callable[[], Context],
        export: LogExport | None = None,
        owner: object = None,
    ) -> None:
        self.owner = owner
        self.unended: dict[tuple[str, int], str] = {}  # printed parts of a line without its end, by stream and thread
        self._claim = claim
        self._trace_id = trace_id
        self._span_id = span_id
        self._context = context
        self._export = export
        self._lines: list[LogLine] = []  # not confirmed as stored
        self._stored = 0
        self._left_out = 0
        self._characters = 0  # of all lines, also of those that are stored
        self._ended = False
        self._sent = 0  # how many of the first were sent to the store without a response yet
        self._last_id = 0  # of those that are stored
        self._refused = self._closed = False
        self._logger: Any = None

    @property
    def logger(self) -> Any:
        """A structlog logger, configured as in this process; its lines are kept as well."""
        if self._logger is None:
            config = structlog.get_config()
            self._logger = structlog.wrap_logger(
                config["logger_factory"]("spanloom.node"),
                processors=[partial(self._process, config["processors"])],
                wrapper_class=config["wrapper_class"],
                **self.ids(),
            )
        return self._logger

    @property
    def workflow_id(self) -> str:
        """The workflow of its execution."""
        return self._claim.header.workflow_id

    def ids(self) -> dict[str, Any]:
        """Return the ids that every line of this attempt carries, except the span id."""
        node = self._claim.node
        ids: dict[str, Any] = {"execution_id": self._claim.header.execution_id, "node_id": node.node_id}
        if node.item:
            ids["item"] = node.item
        return {**ids, "attempt": node.attempt, "trace_id": self._trace_id}

    def bind(self) -> None:
        """Add the attempt's ids, with its own span's, to every line that is written in this context."""
        node = self._claim.node
        _IDS["execution_id"].set(self._claim.header.execution_id)
        _IDS["node_id"].set(node.node_id)
        if node.item:
            _IDS["item"].set(node.item)
        _IDS["attempt"].set(node.attempt)
        _IDS["trace_id"].set(self._trace_id)
        _IDS["span_id"].set(self._span_id)

    @property
    def unstored(self) -> Sequence[LogLine]:
        """The lines that are not stored yet, in order."""
        return self._lines

    def add(self, level: str, message: str, fields: Mapping[str, Any] | None = None, *, exported: bool = False) -> None:
        """Keep one line, and export it unless it is `exported` already. Does nothing once the attempt has ended."""
        if self._ended:
            return
        if self._stored + len(self._lines) >= MAX_LINES or self._characters >= MAX_ATTEMPT_CHARACTERS:
            self._left_out += 1
            return
        self._append(level, message, fields, exported=exported)

    def take_line(self, line: LogLine) -> None:
        """Keep a line that another process has made for this attempt."""
        if not self._ended and self._stored + len(self._lines) < MAX_LINES:
            self._keep(line, json.loads(line.fields))
        else:
            self._left_out += 1

    def add_event(self, method: str, event: Mapping[str, Any]) -> None:
        """Keep a line in structlog's form: the name of the method that was called, and the event's fields."""
        own = self.ids()  # the handler's fields may have such names, too: an order's item
        fields = {
            key: value
            for key, value in event.items()
            if key not in _STAMPS and not (key in own and type(value) is type(own[key]) and value == own[key])
        }
        if raised := fields.pop("exc_info", None):
            fields["exception"] = exception_text(raised)
        self.add(_LEVELS.get(method, method), text_of(fields.pop("event", "")), fields)

    def exclude(self) -> None:
        """Count a span of this attempt that is beyond the limit."""
        self._left_out += 1

    def end(self, error: BaseException | None, *, final: bool) -> None:
        """Add the error, a warning if it is not `final`, and the number of excluded lines; then take no more."""
        if self.unended:
            for (stream, _), text in tuple(self.unended.items()):
                self.add("warning" if stream == "stderr" else "info", text, {"stream": stream})
        self._ended = True
        if error is not None:
            fields = {"exception": traceback_of(error, limit=20)}
            self._append(
                "error" if final else "warning", f"{type(main_error(error)).__name__}: {message_of(error)}", fields
            )
        if self._left_out:
            self._append("warning", f"{self._left_out} more lines or spans of this attempt were not kept", None)

    # ---- only the flusher calls these, under locks of its own ----

    def take_batch(self) -> NodeLines | None:
        """Return the next lines for the store. They are uncertain until `mark_stored` receives the store's response."""
        again = self._sent > 0
        if not again and not self._refused and not self._closed:
            self._sent = min(len(self._lines), _BATCH)
        if not self._sent:
            return None
        node, execution_id = self._claim.node, self._claim.header.execution_id
        lines = self._lines[: self._sent]
        return NodeLines(execution_id, node.node_id, node.item, node.fence, lines, self._last_id, again)

    def mark_stored(self, last_id: int | None) -> bool:
        """Take the store's response (None: it refused the lines), and return whether more may be sent at once."""
        if last_id is None:
            self._refused = True  # the claim is lost: the record decides whether the lines are kept
            more = False
        else:
            more = self._sent == _BATCH
            self._stored += self._sent
            self._last_id = last_id
            del self._lines[: self._sent]
        self._sent = 0
        return more

    def mark_unsent(self) -> None:
        """Note that nothing of the last batch was stored: it is sent again, or carried by the record."""
        self._sent = 0

    @property
    def uncertain(self) -> bool:
        """Whether lines were sent to the store that it has not confirmed yet."""
        return self._sent > 0

    def close(self) -> bool:
        """Take no new batch from now on; return whether lines are uncertain."""
        self._closed = True
        return self._sent > 0

    # ---- one line ----

    def _append(self, level: str, message: str, fields: Mapping[str, Any] | None, *, exported: bool = False) -> None:
        self._keep(self._line(level, message, fields), fields, exported=exported)

    def _keep(self, line: LogLine, fields: Mapping[str, Any] | None, *, exported: bool = False) -> None:
        self._lines.append(line)
        self._characters += len(line.message) + len(line.fields)
        if self._export is None or exported:
            return
        previous = CURRENT.set(None)  # lines that the exporter writes are not the handler's
        try:
            inner = None if line.span_id == self._span_id else trace.get_current_span()
            context = self._context() if inner is None else trace.set_span_in_context(inner)
            self._export.emit(self._claim, line, fields or {}, context)
        except NodeTimeout:
            raise
        except Exception:  # noqa: S110  an exporter's error is not the handler's, and the store gets the line
            pass
        finally:
            CURRENT.reset(previous)

    def _line(self, level: str, message: str, fields: Mapping[str, Any] | None) -> LogLine:
        return LogLine(
            level=level,
            message=storable(shortened(message, MAX_LINE_CHARACTERS)),
            at=datetime.now(UTC),
            fields=as_json(fields) if fields else "{}",
            attempt=self._claim.node.attempt,
            trace_id=self._trace_id,
            span_id=self._open_span_id(),
        )

    def _process(self, processors: Sequence[Any], logger: Any, method: str, event: Any) -> Any:
        """Keep a line of ctx.log, and pass it through the configured processors to the logger."""
        self.add_event(method, event)
        event["span_id"] = self._open_span_id()
        try:
            for processor in processors:
                event = processor(logger, method, event)
        except (structlog.DropEvent, NodeTimeout):
            raise
        except Exception:  # the line is kept; a failing processor must not fail its node
            raise structlog.DropEvent from None
        return event

    def _open_span_id(self) -> str:
        inner = trace.get_current_span().get_span_context()
        # No match in a thread that the handler started itself, and in a trace of the handler's own.
        return f"{inner.span_id:016x}" if f"{inner.trace_id:032x}" == self._trace_id else self._span_id


_SCALARS = frozenset({int, float, bool, type(None)})
_STAMPS = frozenset({"span_id", "level", "timestamp"})
_LEVELS = {"exception": "error", "warn": "warning", "fatal": "critical", "msg": "info"}


def as_json(fields: Mapping[str, Any]) -> str:
    """Return a handler's fields as JSON, bounded; values that JSON can't carry become text."""
    least = _least_size(fields)
    if least > _NEVER_WRITTEN and not _holds_itself(fields):
        return _summary(fields, least)
    try:
        text = json.dumps(fields, default=text_of)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, a value that holds itself
        text = json.dumps({text_of(key): text_of(value) for key, value in fields.items()})
    return text if len(text) <= MAX_LINE_CHARACTERS else _summary(fields, len(text))


def _summary(fields: Mapping[str, Any], size: int) -> str:
    summary = {"left_out": [text_of(name)[:100] for name in list(fields)[:50]], "bytes": size}
    if "exception" in fields:
        with_trace = json.dumps({**summary, "exception": fields.get("exception")}, default=text_of)
        if len(with_trace) <= MAX_LINE_CHARACTERS:
            return with_trace
    return json.dumps(summary)


def _least_size(fields: Mapping[str, Any]) -> int:
    """Return the number of characters that fields take at least as JSON, as far as it is of interest."""
    texts = 0
    for value in fields.values():
        if type(value) is str:
            texts += len(value)
        elif type(value) not in _SCALARS:
            break
    else:
        return texts
    size = 0
    pending: list[Any] = [fields]
    while pending and size <= _NEVER_WRITTEN:
        value = pending.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, Mapping):
            size += 4 * len(value)
            if size <= _NEVER_WRITTEN:
                pending.extend(value.values())
        elif isinstance(value, list | tuple):
            size += 2 * len(value)
            if size <= _NEVER_WRITTEN:
                pending.extend(value)
        else:
            size += 1
    return size


def _holds_itself(value: Any) -> bool:
    """Return whether a container stands in itself, which JSON refuses at once. Visits each one once."""
    around: set[int] = set()
    done: set[int] = set()
    pending: list[tuple[Any, bool]] = [(value, False)]
    while pending:
        current, left = pending.pop()
        if left:
            around.discard(id(current))
            done.add(id(current))
        elif id(current) in around:
            return True
        elif isinstance(current, Mapping | list | tuple) and id(current) not in done:
            around.add(id(current))
            pending.append((current, True))
            pending.extend((child, False) for child in (current.values() if isinstance(current, Mapping) else current))
    return False
