"""The spans that an engine makes: one when an execution is started, and the execution's own when it has ended.

docs/observability.md lists every span with its attributes; a test compares the list with the emitted spans.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from spanloom.engine.store.models import Execution, SpanRecord
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import StartRequest
from spanloom.engine.store.states import ExecutionStatus
from spanloom.engine.telemetry.tracing import Own, Sdk, below, execution_span, new_span_id, sdk

__all__ = [
    "PROCESSING",
    "SENDING",
    "EndedExecution",
    "export_ended",
    "export_execution",
    "export_span",
    "export_start",
    "links_to",
    "nanoseconds",
]

#: The attributes of the messaging conventions, for spans that send and for spans that process.
SENDING, PROCESSING = (
    {"messaging.system": "rq", "messaging.operation.name": name, "messaging.operation.type": kind}
    for name, kind in (("enqueue", "send"), ("run", "process"))
)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


@dataclass(frozen=True, slots=True)
class EndedExecution:
    """The data of an ended execution that its own span contains."""

    id: str
    workflow_id: str
    version: int
    status: ExecutionStatus
    created_at: datetime
    ended_at: datetime
    trace_parent: str | None
    trace_state: str | None
    caller_span_id: str | None
    parent_execution_id: str | None
    error_type: str | None = None

    @classmethod
    def of(cls, execution: Execution) -> EndedExecution | None:
        """Return the data of an execution's span; None if it has not ended."""
        if execution.ended_at is None:
            return None
        return cls(
            id=execution.id,
            workflow_id=execution.workflow_id,
            version=execution.version,
            status=execution.status,
            created_at=execution.created_at,
            ended_at=execution.ended_at,
            trace_parent=execution.trace_parent,
            trace_state=execution.trace_state,
            caller_span_id=execution.caller_span_id,
            parent_execution_id=execution.parent_execution_id,
            error_type=None if execution.error is None else str(execution.error.get("type")),
        )


def nanoseconds(at: datetime) -> int:
    """Return a time as Unix nanoseconds, rounded to the microsecond."""
    return round(at.timestamp() * 1_000_000) * 1000


def export_start(request: StartRequest, created_at: datetime | None, *, lists: Iterable[str], end_ns: int) -> None:
    """Export the start of an execution: a short span below its own, so that a trace is visible at once.

    `created_at` is the store's time of the start, `lists` are the RQ queues of its first node jobs.
    """
    here, own = _sampled(request.trace_parent, request.trace_state)
    if here is None or own is None or created_at is None:
        return
    names = list(lists)
    attributes: dict[str, Any] = {
        **SENDING,
        "spanloom.execution.id": request.execution_id,
        "spanloom.workflow.id": request.workflow_id,
    }
    if names:
        attributes["messaging.destination.name"] = names[0]
        attributes["messaging.batch.message_count"] = len(names)
    start_ns = nanoseconds(created_at)
    span = here.start(
        f"enqueue {request.workflow_id}", SpanKind.PRODUCER, trace_id=own.span.trace_id, span_id=int(new_span_id(), 16),
        above=own.context, attributes=attributes, start_ns=start_ns,
    )  # fmt: skip
    span.end(max(end_ns, start_ns))


def export_execution(ended: EndedExecution) -> None:
    """Export an ended execution's own span, with the id that was allocated at its start."""
    here, own = _sampled(ended.trace_parent, ended.trace_state)
    if here is None or own is None:
        return
    attributes: dict[str, Any] = {
        "spanloom.execution.id": ended.id,
        "spanloom.workflow.id": ended.workflow_id,
        "spanloom.workflow.version": ended.version,
        "spanloom.execution.status": ended.status.value,
    }
    if ended.parent_execution_id is not None:
        attributes["spanloom.execution.parent_id"] = ended.parent_execution_id
    if ended.status is ExecutionStatus.FAILED:
        attributes["error.type"] = ended.error_type or "unknown"
    span = here.start(
        ended.workflow_id, SpanKind.INTERNAL, trace_id=own.span.trace_id, span_id=own.span.span_id,
        above=_above(own, ended.caller_span_id), attributes=attributes, start_ns=nanoseconds(ended.created_at),
        decided=ended.caller_span_id is None,
    )  # fmt: skip
    if ended.status is ExecutionStatus.FAILED:
        span.set_status(Status(StatusCode.ERROR, ended.error_type))
    span.end(nanoseconds(ended.ended_at))


def export_ended(store: ExecutionStore, execution_ids: Iterable[str], *, own: bool = True) -> None:
    """Export the spans of nodes that still waited when their executions ended; with `own` also the executions' spans.

    In a trace, a waiting node ends with its execution. Raises StoreUnavailable.
    """
    if sdk() is None:
        return
    for execution_id in execution_ids:
        execution = store.get_execution(execution_id, data_limit=0)
        ended = None if execution is None else EndedExecution.of(execution)
        if execution is None or ended is None or _sampled(ended.trace_parent, ended.trace_state)[0] is None:
            continue
        for span in store.iter_trace(execution_id):
            if span.end_ns is None:
                export_span(span, execution, end_ns=max(nanoseconds(ended.ended_at), span.start_ns))
        if own:
            export_execution(ended)


def export_span(span: SpanRecord, execution: Execution, *, end_ns: int | None = None) -> None:
    """Export a stored span, if its execution is sampled."""
    here, own = _sampled(execution.trace_parent, execution.trace_state)
    if here is None or own is None:
        return
    attributes = span.attributes
    if span.kind == "consumer":  # attributes that all of them share are not stored
        attributes = {**PROCESSING, **attributes}
    exported: Span = here.start(
        span.name, SpanKind[span.kind.upper()], trace_id=int(span.trace_id, 16), span_id=int(span.span_id, 16),
        above=_above(own, span.parent_span_id), attributes=attributes, start_ns=span.start_ns,
        links=links_to((link["trace_id"], link["span_id"], link.get("kind", "parent")) for link in span.links),
        decided=True,
    )  # fmt: skip
    if span.status == "error":
        exported.set_status(Status(StatusCode.ERROR))
    exported.end(end_ns or span.end_ns)


def links_to(spans: Iterable[tuple[str, str, str]]) -> list[Link]:
    """Return links to spans, given as (trace id, span id, kind of link); the ids are in hex."""
    return [
        Link(SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=_SAMPLED), {"spanloom.link": kind})
        for trace, span, kind in spans
    ]


def _sampled(trace_parent: str | None, trace_state: str | None) -> tuple[Sdk | None, Own | None]:
    """Return the SDK and the execution's span, if both exist and the span is sampled."""
    here = sdk()
    own = None if here is None else execution_span(trace_parent, trace_state)
    return (here, own) if own is not None and own.span.trace_flags.sampled else (None, None)


def _above(own: Own, span_id: str | None) -> Context:
    """Return the context below another span of an execution's trace."""
    if span_id is None:
        return below(None)
    flags, state = own.span.trace_flags, own.span.trace_state
    return below(SpanContext(own.span.trace_id, int(span_id, 16), is_remote=True, trace_flags=flags, trace_state=state))
