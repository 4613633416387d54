"""W3C trace context: an execution's trace and its own span's id, made when it starts and kept in the store.

Spanloom sets the ids and times of its spans. An OpenTelemetry SDK, where one is set up, samples and exports them.
"""

from __future__ import annotations

import copy
import functools
import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, TraceState

__all__ = [
    "Own",
    "Sdk",
    "TraceStart",
    "below",
    "execution_span",
    "nest_trace",
    "new_span_id",
    "parse_trace_parent",
    "sdk",
    "start_trace",
]

SCOPE = "spanloom"  #: the instrumentation scope of every span that Spanloom makes
#: Between two looks for an SDK: OpenTelemetry reads the environment for each, which takes longer than a span's ids.
LOOK_AGAIN_SECONDS = 0.1
_UNDECIDED = ("spanloom", "undecided")  # a member of tracestate: the first exporting process decides on sampling


@dataclass(frozen=True, slots=True)
class TraceStart:
    """The start of an execution's trace. The span id of `trace_parent` is that of the execution's own future span."""

    trace_parent: str
    trace_state: str | None
    caller_span_id: str | None


class _GivenIds(threading.local):
    """An id generator for an SDK that returns the ids that were set on it."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def is_trace_id_random(self) -> bool:
        return False


class Sdk:
    """The SDK that is set up in this process, as a maker of spans with given ids."""

    def __init__(self, tracer: Any) -> None:
        self._sampler = tracer.sampler
        self._ids = _GivenIds()
        self._tracer = copy.copy(tracer)
        self._tracer.id_generator = self._ids
        limits = getattr(tracer, "_span_limits", None)
        self.max_links: int = getattr(limits, "max_links", None) or 128  #: of one span; the SDK drops further links
        self._decided: Any = None  # the same, for spans of traces that are known to be sampled

    def samples(self, trace_id: int, name: str) -> bool:
        """Decide whether a trace without a parent is sampled."""
        result = self._sampler.should_sample(None, trace_id, name, SpanKind.INTERNAL, {}, ())
        return bool(result.decision.is_sampled())

    def start(
        self,
        name: str,
        kind: SpanKind,
        *,
        trace_id: int,
        span_id: int,
        above: Context,
        attributes: Mapping[str, Any],
        start_ns: int,
        links: Sequence[Link] = (),
        decided: bool = False,
    ) -> Span:
        """Start a span with these ids below the context `above`. The sampler is skipped if sampling is `decided`."""
        self._ids.trace_id, self._ids.span_id = trace_id, span_id
        tracer = self._always() if decided else self._tracer
        started: Span = tracer.start_span(name, above, kind, attributes, links, start_ns)
        return started

    def _always(self) -> Any:
        if self._decided is None:
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON

            self._decided = copy.copy(self._tracer)
            self._decided.sampler = ALWAYS_ON
        return self._decided


_seen: tuple[Any, Sdk | None] = (None, None)
_look_again_at = 0.0


def sdk() -> Sdk | None:
    """Return the SDK that is set up now, by any code of this process.

    None without one, for up to 0.1 s after one is set, or if it is disabled.
    """
    global _seen, _look_again_at
    if _seen[1] is None and time.monotonic() < _look_again_at:
        return None
    provider = trace.get_tracer_provider()
    if provider is not _seen[0]:
        tracer = provider.get_tracer(SCOPE)
        usable = hasattr(tracer, "id_generator") and hasattr(tracer, "sampler")
        _seen = (provider, Sdk(tracer) if usable else None)
    if _seen[1] is None:
        _look_again_at = time.monotonic() + LOOK_AGAIN_SECONDS
    return _seen[1]


def new_span_id() -> str:
    """Return a random, non-zero span id: 16 lower-case hex digits."""
    return f"{random.getrandbits(64) or 1:016x}"


def start_trace(name: str) -> TraceStart:
    """Join the trace of the caller's active span, or begin a new one for an execution of the workflow `name`.

    The SDK of this process decides whether a new trace is sampled; without one, the first SDK that meets the trace.
    """
    caller = trace.get_current_span().get_span_context()
    span_id = new_span_id()
    if caller.is_valid:
        parent = f"00-{caller.trace_id:032x}-{span_id}-{int(caller.trace_flags):02x}"
        return TraceStart(parent, caller.trace_state.to_header() or None, f"{caller.span_id:016x}")
    trace_id, here = secrets.randbits(128) or 1, sdk()
    flags = 1 if here is None or here.samples(trace_id, name) else 0
    return TraceStart(f"00-{trace_id:032x}-{span_id}-{flags:02x}", "=".join(_UNDECIDED) if here is None else None, None)


def nest_trace(trace_id: str, span_id: str, above: str | None, trace_state: str | None) -> TraceStart:
    """Begin a child's part of a trace below the span `span_id`, with the flags of its parent's traceparent `above`."""
    flags = above[-2:] if parse_trace_parent(above) and above else "01"
    return TraceStart(f"00-{trace_id}-{new_span_id()}-{flags}", trace_state, span_id)


def parse_trace_parent(trace_parent: str | None) -> tuple[str, str] | None:
    """Return (trace id, span id) of a traceparent in hex; None if it is absent or malformed."""
    parts = (trace_parent or "").split("-")
    return (parts[1], parts[2]) if len(parts) == 4 and len(parts[1]) == 32 and len(parts[2]) == 16 else None


def below(parent: SpanContext | None) -> Context:
    """Return the context for spans below `parent`; None: for a root."""
    return Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())


class Own(NamedTuple):
    """An execution's own span, and the context for spans below it."""

    span: SpanContext
    context: Context


def execution_span(trace_parent: str | None, trace_state: str | None) -> Own | None:
    """Return an execution's own span, the parent of its nodes' spans; None if it has none.

    Sampling was decided at its start, or is decided here by the trace id alone, so that all processes agree.
    """
    return _execution_span(trace_parent, trace_state, sdk())


@functools.lru_cache(maxsize=1024)  # the nodes of one execution follow each other
def _execution_span(trace_parent: str | None, trace_state: str | None, here: Sdk | None) -> Own | None:
    ids = parse_trace_parent(trace_parent)
    if ids is None or trace_parent is None:
        return None
    trace_id, span_id, flags = int(ids[0], 16), int(ids[1], 16), int(trace_parent[-2:], 16)
    state, decided = _state(trace_state)
    if not decided and here is not None and not here.samples(trace_id, ""):
        flags &= ~TraceFlags.SAMPLED
    own = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)
    return Own(own, below(own))


@functools.lru_cache(maxsize=256)  # without a caller's span it is the same for all executions
def _state(trace_state: str | None) -> tuple[TraceState, bool]:
    """Return a trace state without our mark, and whether sampling was decided at the start."""
    state = TraceState.from_header([trace_state]) if trace_state else TraceState()
    if _UNDECIDED in state.items():
        return state.delete(_UNDECIDED[0]), False
    return state, True
