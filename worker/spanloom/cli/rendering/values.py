"""The forms of single values: durations and times for people, plain cells for pipes, and one colour per state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from spanloom.engine.escaping import escaped, escaped_json

__all__ = [
    "GLYPHS",
    "STYLES",
    "ago",
    "cell",
    "duration",
    "error_kind",
    "error_sentence",
    "instant",
    "seconds_between",
]

#: Styles of execution, node, attempt and span states and of log levels; the rest has the terminal's own colour.
STYLES: Mapping[str, str] = {
    "completed": "green",
    "ok": "green",
    "running": "cyan",
    "failed": "red",
    "error": "red",
    "critical": "bold red",
    "warning": "yellow",
    "waiting": "yellow",
    "held": "yellow",
    "paused": "yellow",
    "pending": "bright_black",
    "queued": "blue",
    "skipped": "bright_black",
    "cancelled": "bright_black",
    "retrying": "yellow",
    "lost": "yellow",
    "released": "bright_black",
    "reset": "bright_black",
    "debug": "bright_black",
}

GLYPHS: Mapping[str, str] = {
    "completed": "✓",
    "failed": "✗",
    "running": "●",
    "waiting": "◔",
    "held": "‖",
    "paused": "‖",
    "queued": "○",
    "pending": "·",
    "skipped": "↷",
    "cancelled": "⊘",
    "retrying": "↻",
    "reset": "↺",
    "released": "○",
    "lost": "✗",
}


def duration(seconds: float) -> str:
    """Return a duration as people write it: `870 µs`, `12 ms`, `1.24 s`, `2 m 05 s`, `3 h 12 m`, `4 d 03 h`."""
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def ago(at: datetime, now: datetime) -> str:
    """Return the distance of a time from `now` as text: `just now`, `42 s ago`, `3 min ago`, `in 5 min`."""
    seconds = (now - at).total_seconds()
    size = abs(seconds)
    if size < 1:
        return "just now"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if size >= length:
            text = f"{size // length:.0f} {unit}"
            return f"{text} ago" if seconds > 0 else f"in {text}"
    raise AssertionError(size)


def instant(at: datetime | None) -> str:
    """Return a time as ISO 8601 in UTC with milliseconds; an empty text for None."""
    return "" if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    """Return the seconds from `start` to `end`, None while one of them is open; at least 0, as clocks may differ."""
    return None if start is None or end is None else max(0.0, (end - start).total_seconds())


def cell(value: Any) -> str:
    """Return one column of a piped line: empty for None, seconds with microseconds, JSON for mappings and lists."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, Mapping | list | tuple):
        return escaped_json(json.dumps(value, ensure_ascii=False)) if value else ""
    return escaped(str(value))


def error_sentence(error: Mapping[str, Any] | None) -> str:
    """Return a stored error as `Type: message`, the type without its module; an empty text for None."""
    if error is None:
        return ""
    kind, message = error_kind(error), str(error.get("message", ""))
    return f"{kind}: {message}" if message else kind


def error_kind(error: Mapping[str, Any]) -> str:
    """Return the type of a stored error, without its module."""
    return str(error.get("type", "Error")).rpartition(".")[2]
