"""The span of one attempt at a node run, with links to the spans it depends on; see docs/observability.md."""

from __future__ import annotations

import functools
import json
import secrets
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode

from spanloom.engine.limits import MAX_STATUS_CHARACTERS, shortened
from spanloom.engine.store.requests import AttemptSpan, Claim, Outcome, SpanLine
from spanloom.engine.telemetry.spans import PROCESSING, links_to
from spanloom.engine.telemetry.tracing import below, execution_span, new_span_id, sdk
from spanloom.worker.error_text import main_error, message_of, traceback_of, type_of

__all__ = ["NodeSpan", "record_error"]

_encoded = json.JSONEncoder(separators=(",", ":")).encode
_ENDS = (Outcome.COMPLETED, Outcome.FAILED, Outcome.SKIPPED)

#: The attributes that reads derive for a span that a result keeps.
_OF_THE_RESULT = frozenset(
    {
        "spanloom.workflow.id",
        "spanloom.workflow.version",
        "spanloom.execution.id",
        "spanloom.node.id",
        "spanloom.node.item",
        "spanloom.node.attempt",
        "spanloom.node.outcome",
    }
)


class NodeSpan:
    """The span of an attempt. It has an id and a start time at once; an SDK's span is made when it begins or ends.

    A run that waits keeps its span until it goes on. The span is not open in between: it is exported once, at its end,
    with its original start time. The next attempt after any other end has a span of its own, linked to this one.
    """

    def __init__(self, claim: Claim, *, worker: str, destination: str, message_id: str | None) -> None:
        header, node = claim.header, claim.node
        self._claim = claim
        own = self._own = execution_span(header.trace_parent, header.trace_state)
        self._trace_id = secrets.randbits(128) if own is None else own.span.trace_id
        latest, _, begun = (node.span or "").partition(":")
        self.goes_on = bool(begun) and node.woken is not None  #: a woken run continues the span it waited with
        self.span_id = latest if self.goes_on else new_span_id()
        self.start_ns = int(begun) if self.goes_on else time.time_ns()
        self.exported = False  #: an SDK holds the span and will export it
        self._span: Span | None = None
        self._links = [("parent", span_id) for span_id in node.parent_spans.values()]
        if latest and not self.goes_on:
            self._links.append(("attempt", latest))
        self._constant = _constant(
            header.workflow_id, header.version, node.node_id, node.node_type, worker, destination
        )
        self._varying: dict[str, Any] = {
            "spanloom.execution.id": header.execution_id,
            "spanloom.node.attempt": node.attempt,
        }
        if node.item:
            self._varying["spanloom.node.item"] = node.item
        if message_id is not None:
            self._varying["messaging.message.id"] = message_id
        self._identity: Context | None = None

    @property
    def trace_id(self) -> str:
        """The id of its trace, 32 hex digits."""
        return f"{self._trace_id:032x}"

    @property
    def reference(self) -> str:
        """The span's id and start time, which are recorded with a run that waits."""
        return f"{self.span_id}:{self.start_ns}"

    def identity(self) -> Context:
        """Return a context with the ids of this span, for callers that need no more."""
        if self._identity is None:
            above = None if self._own is None else self._own.span
            own = SpanContext(
                self._trace_id,
                int(self.span_id, 16),
                is_remote=False,
                trace_flags=trace.DEFAULT_TRACE_OPTIONS if above is None else above.trace_flags,
                trace_state=trace.DEFAULT_TRACE_STATE if above is None else above.trace_state,
            )
            self._identity = trace.set_span_in_context(NonRecordingSpan(own), otel_context.get_current())
        return self._identity

    def begin(self) -> Context:
        """Begin the span, and return the context for a handler: the handler's spans are children of this one."""
        span = self._begun()
        return self.identity() if span is None else trace.set_span_in_context(span, otel_context.get_current())

    def link_items(self, span_ids: Iterable[str]) -> None:
        """Link to the spans of a mapped node's items. Call it before the span has begun."""
        self._links += [("item", span_id) for span_id in span_ids]

    def wait(self) -> SpanLine:
        """Return the span in the form that is stored while its run waits."""
        return self._line("unset", None)

    def end(self, outcome: Outcome, error: BaseException | None) -> SpanLine | AttemptSpan:
        """End the span, and return it in its stored form: the short one, if a result of the run is to keep it."""
        ended: dict[str, Any] = {"spanloom.node.outcome": outcome.value}
        if error is not None:
            ended["error.type"] = type_of(error)
        self._varying |= ended
        end_ns = time.time_ns()
        span = self._begun()
        if span is not None:
            if self.exported:
                span.set_attributes(ended)
                if error is not None:
                    record_error(span, error)
            span.end(end_ns)
        if self._own is None or self.goes_on or outcome not in _ENDS:
            return self._line("unset" if error is None else "error", end_ns)
        attributes = {name: value for name, value in self._varying.items() if name not in _OF_THE_RESULT}
        return AttemptSpan(self.start_ns, end_ns, self._constant.own_json + _rest(attributes), _encoded(self._links))

    def _begun(self) -> Span | None:
        here = sdk() if self._span is None else None
        if here is not None:
            kept = self._links[: here.max_links]
            if left_out := len(self._links) - len(kept):
                self._varying["spanloom.links.left_out"] = left_out
            self._span = here.start(
                self._constant.name,
                SpanKind.CONSUMER,
                trace_id=self._trace_id,
                span_id=int(self.span_id, 16),
                above=below(None) if self._own is None else self._own.context,
                attributes={**self._constant.attributes, **self._varying},
                start_ns=self.start_ns,
                links=links_to((self.trace_id, span_id, kind) for kind, span_id in kept),
            )
            self.exported = self._span.is_recording()
        return self._span

    def _line(self, status: str, end_ns: int | None) -> SpanLine:
        node, trace_id = self._claim.node, self.trace_id
        links = [f'{{"trace_id":"{trace_id}","span_id":"{span_id}","kind":"{kind}"}}' for kind, span_id in self._links]
        return SpanLine(
            trace_id=trace_id,
            span_id=self.span_id,
            parent_span_id=None if self._own is None else f"{self._own.span.span_id:016x}",
            name=self._constant.name,
            kind="consumer",
            status=status,
            start_ns=self.start_ns,
            end_ns=end_ns,
            node_id=node.node_id,
            item=node.item,
            attempt=node.attempt,
            attributes=self._constant.json + _rest(self._varying),
            links=f"[{','.join(links)}]",
        )


def record_error(span: Span, error: BaseException) -> None:
    """Mark a recording span as failed, with the bounded text of the exception."""
    message, kind = message_of(error), type(main_error(error))
    attributes = {  # as record_exception() adds them, which fails if the exception's own methods do
        "exception.type": kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}",
        "exception.message": message,
        "exception.stacktrace": traceback_of(error),
        "exception.escaped": "False",
    }
    span.add_event("exception", attributes)
    span.set_status(Status(StatusCode.ERROR, shortened(f"{kind.__name__}: {message}", MAX_STATUS_CHARACTERS)))


def _rest(attributes: dict[str, Any]) -> str:
    """Return the end of a JSON object to which these are added."""
    return f",{_encoded(attributes)[1:]}" if attributes else "}"


class _Constant(NamedTuple):
    """The attributes that all runs of a node share in one worker: for an SDK, and as the start of the stored JSON."""

    name: str
    attributes: dict[str, Any]
    json: str
    own_json: str  # without those that the result and the execution have


@functools.lru_cache(maxsize=4096)
def _constant(workflow_id: str, version: int, node_id: str, node_type: str, worker: str, destination: str) -> _Constant:
    stored = {
        "spanloom.workflow.id": workflow_id,
        "spanloom.workflow.version": version,
        "spanloom.node.id": node_id,
        "spanloom.node.type": node_type,
        "spanloom.worker": worker,
        "messaging.destination.name": destination,
    }
    own = {name: value for name, value in stored.items() if name not in _OF_THE_RESULT}
    return _Constant(f"run {node_id}", {**PROCESSING, **stored}, _encoded(stored)[:-1], _encoded(own)[:-1])
