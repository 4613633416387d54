"""W3C trace context: an execution's trace and its own span's id, made when it starts and kept in the store."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

__all__ = ["TraceStart", "nest_trace", "new_span_id", "parse_trace_parent", "remote_parent", "start_trace"]

SCOPE = "spanloom"  #: the instrumentation scope of every span we make


@dataclass(frozen=True, slots=True)
class TraceStart:
    """Where an execution's trace begins: its `traceparent`, whose span id is the execution's own pre-allocated span."""

    trace_parent: str
    trace_state: str | None
    caller_span_id: str | None


def new_span_id() -> str:
    """Return a random, non-zero span id: 16 lower-case hex digits."""
    return f"{secrets.randbits(64) or 1:016x}"


def start_trace() -> TraceStart:
    """Join the caller's active span's trace, or begin a new one."""
    caller = trace.get_current_span().get_span_context()
    span_id = new_span_id()
    if caller.is_valid:
        parent = f"00-{caller.trace_id:032x}-{span_id}-{int(caller.trace_flags):02x}"
        return TraceStart(parent, caller.trace_state.to_header() or None, f"{caller.span_id:016x}")
    return TraceStart(f"00-{secrets.randbits(128) or 1:032x}-{span_id}-01", None, None)


def nest_trace(trace_id: str, span_id: str, above: str | None, trace_state: str | None) -> TraceStart:
    """Begin a child's part of a trace below the span `span_id`, with the flags of its parent's traceparent `above`."""
    flags = above[-2:] if parse_trace_parent(above) and above else "01"
    return TraceStart(f"00-{trace_id}-{new_span_id()}-{flags}", trace_state, span_id)


def parse_trace_parent(trace_parent: str | None) -> tuple[str, str] | None:
    """Return (trace id, span id) of a traceparent in hex; None if it is absent or malformed."""
    parts = (trace_parent or "").split("-")
    return (parts[1], parts[2]) if len(parts) == 4 and len(parts[1]) == 32 and len(parts[2]) == 16 else None


@functools.lru_cache(maxsize=1024)  # the nodes of one execution follow each other
def remote_parent(trace_parent: str | None, trace_state: str | None) -> NonRecordingSpan | None:
    """Return a span to be the parent of an execution's node spans; None if there is no usable context."""
    ids = parse_trace_parent(trace_parent)
    if ids is None or trace_parent is None:
        return None
    state = TraceState.from_header([trace_state]) if trace_state else None
    flags = TraceFlags(int(trace_parent[-2:], 16))
    return NonRecordingSpan(
        SpanContext(int(ids[0], 16), int(ids[1], 16), is_remote=True, trace_flags=flags, trace_state=state)
    )
