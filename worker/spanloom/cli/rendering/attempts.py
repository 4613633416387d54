"""The attempts at one node run, as `spanloom show --attempts` prints them: worker, times, end and error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from spanloom.cli.rendering.values import (
    GLYPHS,
    STYLES,
    cell,
    duration,
    error_sentence,
    instant,
    seconds_between,
)
from spanloom.engine.escaping import escaped
from spanloom.engine.store.models import Attempt

__all__ = ["attempt_lines", "attempts_text"]

_INDENT = "    "


def attempts_text(attempts: Sequence[Attempt], now: datetime) -> RenderableType:
    """Draw attempts for a terminal, each with its error and traceback below it."""
    if not attempts:
        return Text("it has not been started", "bright_black")
    parts: list[Text] = []
    for attempt in attempts:
        ended_as = attempt.ended_as or "running"
        took = seconds_between(attempt.started_at, attempt.ended_at or now)
        head = Text.assemble(
            f"#{attempt.attempt}  ", (f"{GLYPHS.get(ended_as, ' ')} {ended_as}", STYLES.get(ended_as, ""))
        )
        head.append("" if took is None else f"  {duration(took)}")
        head.append(f"  {instant(attempt.started_at)}", "bright_black")
        head.append(f"  {attempt.worker_id}" if attempt.worker_id else "", "bright_black")
        parts.append(head)
        if attempt.error is not None:
            parts.append(_indented(error_sentence(attempt.error), "red"))
            if trace := str(attempt.error.get("traceback") or "").rstrip():
                parts.append(_indented(trace, "bright_black"))
    return Group(*parts)


def attempt_lines(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Yield a tab-separated line for each attempt: number, end, seconds, started, ended, worker, error, traceback."""
    for attempt in attempts:
        values = (
            attempt.attempt,
            attempt.ended_as or "running",
            seconds_between(attempt.started_at, attempt.ended_at),
            attempt.started_at,
            attempt.ended_at,
            attempt.worker_id,
            error_sentence(attempt.error),
            (attempt.error or {}).get("traceback"),
        )
        yield "\t".join(map(cell, values))


def _indented(text: str, style: str) -> Text:
    lines = escaped(text, keep="\n").split("\n")
    return Text("\n".join(_INDENT + line for line in lines), style, overflow="fold")
