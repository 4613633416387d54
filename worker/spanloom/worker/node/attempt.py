"""One attempt at one node run: its span, and its handler's log lines and spans, kept until they are recorded."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

from spanloom.engine.errors import LeaseLost, NodeTimeout
from spanloom.engine.limits import MAX_ATTEMPT_CHARACTERS, MAX_LINES, MAX_SPAN_NAME, shortened
from spanloom.engine.store.requests import AttemptSpan, Claim, Outcome, SpanLine
from spanloom.engine.telemetry.tracing import SCOPE, new_span_id
from spanloom.engine.workflow.definitions import Node
from spanloom.engine.workflow.evaluation import EvaluationBudget
from spanloom.worker.error_text import text_of
from spanloom.worker.telemetry.log_buffer import LogBuffer, as_json
from spanloom.worker.telemetry.log_capture import LogCapture
from spanloom.worker.telemetry.node_span import NodeSpan, record_error

__all__ = ["RunningAttempt", "open_span"]


class RunningAttempt:
    """An attempt while its handler runs: the runtime behind `ctx` (NodeRuntime), and the telemetry to record."""

    starting = False  #: it waits for a handler process; its timeout begins after that

    def __init__(
        self,
        claim: Claim,
        worker_name: str,
        destination: str,
        message_id: str | None,
        is_lost: Callable[[], bool],
        is_stopping: Callable[[], bool],
        log_capture: LogCapture | None = None,
    ) -> None:
        self.claim = claim
        self.spans: list[SpanLine] = []
        self._span_characters = 0
        self.reference: str | None = None  #: its span, as the store keeps it; set by close()
        self.own_span: AttemptSpan | None = None  #: its span, if its run's result keeps it; set by close()
        self.entered = False  #: its handler was called
        self.waited = 0.0  #: seconds in which its handler waited for its turn on the event loop
        self._is_lost = is_lost
        self._is_stopping = is_stopping
        self._revoking = threading.Lock()
        self._revoked = False
        self._interrupt: Callable[[], object] | None = None
        self._budget: EvaluationBudget | None = None
        self.own = NodeSpan(claim, worker=worker_name, destination=destination, message_id=message_id)
        export = None if log_capture is None else log_capture.export
        self.log_buffer = LogBuffer(claim, self.own.trace_id, self.own.span_id, self.own.identity, export, log_capture)

    @property
    def log(self) -> Any:
        """A structlog logger; its lines are stored with the node run as well."""
        return self.log_buffer.logger

    def span(self, name: str, attributes: Mapping[str, Any]) -> AbstractContextManager[Span]:
        """Open a span below the innermost open one, in OTel and in the store."""
        return open_span(name, attributes, self.keep_span)

    def keep_span(self, line: SpanLine) -> None:
        """Keep a span that the handler has closed."""
        node = self.claim.node
        if len(self.spans) >= MAX_LINES or self._span_characters >= MAX_ATTEMPT_CHARACTERS:
            self.log_buffer.exclude()
            return
        self._span_characters += len(line.name) + len(line.attributes)
        self.spans.append(line._replace(node_id=node.node_id, item=node.item, attempt=node.attempt))

    def heartbeat(self) -> None:
        """Raise LeaseLost if this worker no longer holds the claim, or if it stops and its grace is over."""
        if self.cancelled:
            node = self.claim.node
            raise LeaseLost(self.claim.header.execution_id, node.node_id, node.fence)

    @property
    def cancelled(self) -> bool:
        """Whether the handler should end early: its claim is lost, or the worker stops and its grace is over."""
        return self._revoked or self._is_lost() or self._is_stopping()

    def budget(self, node: Node) -> EvaluationBudget:
        """Return the budget of the node's expressions, which ends with the node's timeout and with `heartbeat`."""
        if self._budget is None:
            until = None if node.timeout is None else time.monotonic() + node.timeout

            def check() -> None:
                self.heartbeat()
                if node.timeout is not None and until is not None and time.monotonic() > until:
                    raise NodeTimeout(node.id, node.timeout)

            self._budget = EvaluationBudget(check)
        return self._budget

    def on_revoke(self, interrupt: Callable[[], object]) -> None:
        """Call `interrupt` once when the claim is revoked, at once if it was revoked before."""
        self.entered = True
        with self._revoking:
            self._interrupt = interrupt
            revoked = self._revoked
        if revoked:
            interrupt()

    def revoke(self) -> bool:
        """Mark the claim as lost and interrupt the handler; return False if it was revoked before."""
        with self._revoking:
            if self._revoked:
                return False
            self._revoked = True
            interrupt = self._interrupt
        if interrupt is not None:
            interrupt()
        return True

    def close(self, outcome: Outcome, error: BaseException | None) -> None:
        """End the attempt. An error becomes its last log line, a warning unless the attempt failed for good.

        A run that waits keeps its span, also if it was woken and is given back unchanged.
        """
        waits = outcome is Outcome.WAITING or (outcome is Outcome.RELEASED and self.own.goes_on)
        self.reference = self.own.reference if waits else self.own.span_id
        line = self.own.wait() if waits else self.own.end(outcome, error)
        if isinstance(line, AttemptSpan):
            self.own_span = line
        else:
            self.spans.append(line)
        self.log_buffer.end(error, final=outcome is Outcome.FAILED)


@contextmanager
def open_span(name: str, attributes: Mapping[str, Any], keep: Callable[[SpanLine], object]) -> Generator[Span]:
    """Open a span below the innermost open one while the block lasts, then call `keep` with its line."""
    opened = _OpenSpan(shortened(text_of(name), MAX_SPAN_NAME), trace.get_current_span(), dict(attributes))
    token = otel_context.attach(opened.context)
    error: BaseException | None = None
    try:
        yield opened.span
    except BaseException as raised:
        error = raised
        raise
    finally:
        otel_context.detach(token)
        keep(opened.close(error))


class _OpenSpan:
    """A span that a handler opened: OTel's where an SDK is set up, otherwise one with ids of its own."""

    __slots__ = ("_attributes", "_name", "_parent_id", "_start_ns", "context", "span", "span_id", "trace_id")

    def __init__(self, name: str, parent: Span, attributes: dict[str, Any]) -> None:
        self._name = name
        self._attributes = attributes
        self._start_ns = time.time_ns()
        above = parent.get_span_context()
        span = trace.get_tracer(SCOPE).start_span(name, attributes=attributes, start_time=self._start_ns)
        own = span.get_span_context()
        if own.span_id == above.span_id:  # the API without an SDK returns the parent
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
            record_error(self.span, error)
        self.span.end(end_ns)
        return SpanLine(
            trace_id=self.trace_id,
            span_id=self.span_id,
            parent_span_id=self._parent_id,
            name=self._name,
            kind="internal",
            status="unset" if error is None else "error",
            start_ns=self._start_ns,
            end_ns=end_ns,
            attributes=as_json(self._attributes),
        )
