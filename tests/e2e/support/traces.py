"""What holds of every whole trace, whichever way it came: read from OTLP's spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from e2e.support.receivers import GrpcReceiver, HttpReceiver, attributes_of

__all__ = ["Trace", "whole_trace"]

INTERNAL, PRODUCER, CONSUMER = 1, 4, 5  # OTLP's span kinds


class Trace:
    """The spans of one trace, each once, with what is asked of them most."""

    def __init__(self, spans: Sequence[Any]) -> None:
        self.spans = {span.span_id.hex(): span for span in spans}

    @property
    def roots(self) -> list[Any]:
        """The spans without a parent."""
        return [span for span in self.spans.values() if not span.parent_span_id]

    @property
    def orphans(self) -> list[str]:
        """The names of spans whose parent is not there."""
        return [
            span.name
            for span in self.spans.values()
            if span.parent_span_id and span.parent_span_id.hex() not in self.spans
        ]

    @property
    def is_whole(self) -> bool:
        """Whether it has one root, and every parent."""
        return len(self.roots) == 1 and not self.orphans

    def named(self, name: str) -> list[Any]:
        """The spans of that name, by their beginning."""
        return sorted(
            (span for span in self.spans.values() if span.name == name), key=lambda span: span.start_time_unix_nano
        )

    def one(self, name: str) -> Any:
        """The only span of that name."""
        (span,) = self.named(name)
        return span

    def above(self, span: Any) -> Any:
        """The parent of a span."""
        return self.spans[span.parent_span_id.hex()]

    def linked(self, span: Any) -> list[tuple[str, str]]:
        """What a span links to: the kind of link and the name of the span, sorted."""
        return sorted(
            (attributes_of(link)["spanloom.link"], self.spans[link.span_id.hex()].name) for link in span.links
        )

    def not_nested(self) -> list[tuple[str, str]]:
        """Spans that reach out of the time of their parents, with these."""
        return [
            (span.name, self.above(span).name)
            for span in self.spans.values()
            if span.parent_span_id
            and not (
                self.above(span).start_time_unix_nano <= span.start_time_unix_nano
                and span.end_time_unix_nano <= self.above(span).end_time_unix_nano
            )
        ]


def whole_trace(
    receiver: HttpReceiver | GrpcReceiver,
    trace_id: str,
    found: Callable[[Trace], bool] = lambda trace: True,
    timeout: float = 30,
) -> Trace:
    """Wait until a trace has arrived with one root and every parent, and whatever else is asked of it."""

    def complete() -> Trace | None:
        trace = Trace(receiver.spans_of(trace_id))
        return trace if trace.spans and trace.is_whole and found(trace) else None

    trace: Trace = receiver.wait(complete, timeout)
    return trace
