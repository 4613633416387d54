"""The rest of a record that the store refuses: in ASCII, and then without its lines and spans."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from spanloom.engine.store.requests import LogLine, RecordRequest
from spanloom.worker.error_text import message_of

__all__ = ["lesser_records"]

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_MAX_REASON = 1_000


def lesser_records(record: RecordRequest, attempt: int, refused: Exception) -> Iterator[RecordRequest]:
    """Yield records of the same outcome that the store may keep instead, the most complete first.

    A database whose encoding is not UTF-8 can't keep each character, and no line of a log is worth a node's result.
    """
    own = record.own_span
    plain = record._replace(
        data=None if record.data is None else _as_ascii(record.data),
        logs=[line._replace(message=_as_ascii(line.message), fields=_as_ascii(line.fields)) for line in record.logs],
        spans=[
            span._replace(name=_as_ascii(span.name), attributes=_as_ascii(span.attributes), links=_as_ascii(span.links))
            for span in record.spans
        ],
        own_span=None if own is None else own._replace(attributes=_as_ascii(own.attributes)),
    )
    if plain != record._replace(logs=list(record.logs), spans=list(record.spans)):
        yield plain
    if record.logs or record.spans or own is not None:
        why = _as_ascii(message_of(refused).replace("\0", "\\0"))[:_MAX_REASON]
        spans = len(record.spans) + (own is not None)
        lost = f"{len(record.logs)} lines and {spans} spans can't be kept: {why}"
        line = LogLine("warning", lost, datetime.now(UTC), attempt=attempt)
        yield plain._replace(logs=[line], spans=(), own_span=None)
        yield plain._replace(logs=(), spans=(), own_span=None)


def _as_ascii(text: str) -> str:
    """Escape all characters beyond ASCII as JSON does: of JSON text the value stays the same."""
    return text if text.isascii() else _BEYOND_ASCII.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
