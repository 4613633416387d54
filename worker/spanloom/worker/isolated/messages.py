"""The messages between a worker and its handler processes, pickled one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spanloom.engine.store.requests import LogLine, SpanLine
from spanloom.worker.node.outcomes import AttemptResult

__all__ = ["Call", "Cancel", "Ended", "Failed", "Line", "Ready", "SpanEnded", "Start", "Unable"]


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to a process: the engine that it imports, as `module:name`, and from where."""

    target: str
    path: list[str]
    log_level: str
    capture_output: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A node to run: its definition, the fields of its context, and its span.

    Its number is on all that belongs to it, in both directions: a message of another call is never taken for its own.
    """

    number: int
    node: str
    context: dict[str, Any]
    trace_id: str
    span_id: str
    trace_flags: int
    payload_limit_bytes: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The claim of the running node is lost, or the worker stops: an async handler is cancelled."""

    number: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The process has imported the engine and entered its lifespan."""


@dataclass(frozen=True, slots=True)
class Unable:
    """The process could not: the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Line:
    """A log line of the running node."""

    number: int
    line: LogLine


@dataclass(frozen=True, slots=True)
class SpanEnded:
    """A span that the handler has closed."""

    number: int
    span: SpanLine


@dataclass(frozen=True, slots=True)
class Ended:
    """The result of the handler, as its outcome."""

    number: int
    ending: AttemptResult


@dataclass(frozen=True, slots=True)
class Failed:
    """The exception of the handler, as far as it can be pickled, and its outcome by the node's policy."""

    number: int
    ending: AttemptResult
    error: bytes | None
    type: str
    message: str
    traceback: str
