"""One attempt at one node run: its span, and the logs and spans its handler makes, kept until they are recorded."""

from __future__ import annotations

import json
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from spanloom.engine.errors import LeaseLost
from spanloom.engine.records import Claim, LogLine, SpanLine
from spanloom.engine.tracing import SCOPE, new_span_id, remote_parent
from spanloom.worker.outcomes import message_of
from spanloom.worker.telemetry import as_printed

__all__ = ["Attempt"]

_MAX_LINES = 5_000
_MAX_MESSAGE = 10_000
_tracer = trace.get_tracer(SCOPE)


class Attempt:
    """What a handler's `ctx` reaches into while it runs (NodeRuntime), and what is recorded of it afterwards."""

    def __init__(
        self, claim: Claim, worker_name: str, is_lost: Callable[[], bool], is_stopping: Callable[[], bool]
    ) -> None:
        self.claim = claim
        self.logs: list[LogLine] = []
        self.spans: list[SpanLine] = []
        self._is_lost = is_lost
        self._is_stopping = is_stopping
        self._logger: Any = None
        self._dropped = 0
        self._revoking = threading.Lock()
        self._revoked = False
        self._interrupt: Callable[[], object] | None = None
        header, node = claim.header, claim.node
        self._open = _OpenSpan(
            f"run {node.node_id}",
            SpanKind.CONSUMER,
            remote_parent(header.trace_parent, header.trace_state),
            {
                "spanloom.workflow.id": header.workflow_id,
                "spanloom.workflow.version": header.version,
                "spanloom.execution.id": header.execution_id,
                "spanloom.node.id": node.node_id,
                "spanloom.node.type": node.node_type,
                "spanloom.node.item": node.item,
                "spanloom.node.attempt": node.attempt,
                "spanloom.worker": worker_name,
            },
        )
        self.context = self._open.context

    @property
    def trace_id(self) -> str:
        """The trace that this attempt is part of, 32 hex digits."""
        return self._open.trace_id

    @property
    def span_id(self) -> str:
        """The attempt's own span, 16 hex digits."""
        return self._open.span_id

    @property
    def log(self) -> Any:
        """A structlog logger whose lines are stored with the node run as well."""
        if self._logger is None:
            config = structlog.get_config()
            self._logger = structlog.wrap_logger(
                config["logger_factory"]("spanloom.node"),
                processors=[self._keep_line, *config["processors"]],
                wrapper_class=config["wrapper_class"],
                execution_id=self.claim.header.execution_id,
                node_id=self.claim.node.node_id,
                attempt=self.claim.node.attempt,
                trace_id=self._open.trace_id,
            )
        return self._logger

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Any]) -> Generator[Span]:
        """Open a span below the innermost open one, in OTel and in the store."""
        opened = _OpenSpan(_message(name), SpanKind.INTERNAL, trace.get_current_span(), dict(attributes))
        token = otel_context.attach(opened.context)
        error: BaseException | None = None
        try:
            yield opened.span
        except BaseException as raised:
            error = raised
            raise
        finally:
            otel_context.detach(token)
            self._keep_span(opened.close(error))

    def heartbeat(self) -> None:
        """Raise LeaseLost if this claim is no longer this worker's, or the worker stops and its grace is over."""
        if self.cancelled:
            node = self.claim.node
            raise LeaseLost(self.claim.header.execution_id, node.node_id, node.fence)

    @property
    def cancelled(self) -> bool:
        """Whether the handler should end early: its claim is gone, or the worker stops and its grace is over."""
        return self._revoked or self._is_lost() or self._is_stopping()

    def on_revoke(self, interrupt: Callable[[], object]) -> None:
        """Have `interrupt` called once if the claim goes while the handler runs, at once if it has gone already."""
        with self._revoking:
            self._interrupt = interrupt
            revoked = self._revoked
        if revoked:
            interrupt()

    def revoke(self) -> bool:
        """Tell the handler that its claim is gone; False if it was told before."""
        with self._revoking:
            if self._revoked:
                return False
            self._revoked = True
            interrupt = self._interrupt
        if interrupt is not None:
            interrupt()
        return True

    def close(self, error: BaseException | None, *, final: bool = True) -> None:
        """End the attempt's own span; an error becomes its last log line, a warning if it is not the `final` one."""
        self._keep_span(self._open.close(error))
        if error is not None:
            self.logs.append(
                LogLine(
                    level="error" if final else "warning",
                    message=f"{type(error).__name__}: {message_of(error)}"[:_MAX_MESSAGE],
                    at=datetime.now(UTC),
                    fields=_as_json({"exception": "".join(traceback.format_exception(error, limit=-20))[-8_000:]}),
                    attempt=self.claim.node.attempt,
                    trace_id=self._open.trace_id,
                    span_id=self._open.span_id,
                )
            )
        if self._dropped:
            self.logs.append(
                LogLine(
                    "warning", f"{self._dropped} more lines or spans of this attempt were not kept", datetime.now(UTC)
                )
            )

    def _keep_span(self, line: SpanLine) -> None:
        if len(self.spans) >= _MAX_LINES:
            self._dropped += 1
            return
        node = self.claim.node
        self.spans.append(
            SpanLine(
                trace_id=line.trace_id,
                span_id=line.span_id,
                parent_span_id=line.parent_span_id,
                name=line.name,
                kind=line.kind,
                status=line.status,
                start_ns=line.start_ns,
                end_ns=line.end_ns,
                node_id=node.node_id,
                item=node.item,
                attempt=node.attempt,
                attributes=line.attributes,
            )
        )

    def _keep_line(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if len(self.logs) >= _MAX_LINES:
            self._dropped += 1
            return event
        event["event"] = _message(event.get("event", ""))
        fields = {key: value for key, value in event.items() if key not in _BOUND}
        if (raised := fields.pop("exc_info", None)) is not None and raised is not False:
            fields["exception"] = traceback.format_exc(limit=50)
        self.logs.append(
            LogLine(
                level="error" if method == "exception" else method,
                message=fields.pop("event")[:_MAX_MESSAGE],
                at=datetime.now(UTC),
                fields=_as_json(fields),
                attempt=self.claim.node.attempt,
                trace_id=self._open.trace_id,
                span_id=f"{trace.get_current_span().get_span_context().span_id:016x}",
            )
        )
        return event


_BOUND = frozenset({"execution_id", "node_id", "attempt", "trace_id", "level", "timestamp"})


def _message(event: object) -> str:
    """Return what a handler named or said as text: it may have given anything."""
    return event if isinstance(event, str) else as_printed(event)


def _as_json(fields: dict[str, Any]) -> str:
    text = _dumped(fields) if fields else "{}"
    return text if len(text) <= _MAX_MESSAGE else json.dumps({"left_out": sorted(fields)[:100], "bytes": len(text)})


def _dumped(told: Mapping[str, Any]) -> str:
    """Write what a handler tells of itself; what JSON can't carry is told as printed, and never fails the handler."""
    try:
        return json.dumps(told, default=as_printed)
    except (TypeError, ValueError, RecursionError):  # a key that is no string, a circle, too many levels
        return json.dumps({str(key): as_printed(value) for key, value in told.items()})


class _OpenSpan:
    """A span that OTel knows if an SDK is set up, and that has ids of its own if not."""

    __slots__ = ("_attributes", "_kind", "_name", "_parent_id", "_start_ns", "context", "span", "span_id", "trace_id")

    def __init__(self, name: str, kind: SpanKind, parent: Span | None, attributes: dict[str, Any]) -> None:
        self._name = name
        self._kind = kind
        self._attributes = attributes
        self._start_ns = time.time_ns()
        above = parent.get_span_context() if parent is not None else trace.INVALID_SPAN_CONTEXT
        context = trace.set_span_in_context(parent) if parent is not None else otel_context.Context()
        span = _tracer.start_span(name, context, kind, attributes, start_time=self._start_ns)
        own = span.get_span_context()
        if own.span_id == above.span_id:  # the API alone hands the parent back: no SDK is set up
            own = SpanContext(
                above.trace_id or secrets.randbits(128),
                int(new_span_id(), 16),
                False,
                TraceFlags(above.trace_flags),
                above.trace_state,
            )
            span = NonRecordingSpan(own)
        self.span = span
        self.trace_id = f"{own.trace_id:032x}"
        self.span_id = f"{own.span_id:016x}"
        self._parent_id = f"{above.span_id:016x}" if above.is_valid else None
        self.context = trace.set_span_in_context(span, otel_context.get_current())

    def close(self, error: BaseException | None) -> SpanLine:
        end_ns = time.time_ns()
        if error is not None and self.span.is_recording():
            said = message_of(error)
            self.span.record_exception(error, {"exception.message": said})
            self.span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {said}"[:500]))
        self.span.end(end_ns)
        return SpanLine(
            trace_id=self.trace_id,
            span_id=self.span_id,
            parent_span_id=self._parent_id,
            name=self._name,
            kind=self._kind.name.lower(),
            status="unset" if error is None else "error",
            start_ns=self._start_ns,
            end_ns=end_ns,
            attributes=_dumped(self._attributes),
        )
