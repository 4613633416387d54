"""Events as the command prints them: a drawn line for a terminal, a tab-separated line for a pipe."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from spanloom.cli.rendering.values import GLYPHS, STYLES, cell, error_sentence
from spanloom.engine.escaping import escaped
from spanloom.engine.store.models import Event

__all__ = ["event_line", "event_text"]

_WORKER_WIDTH = 8  # the end of a worker's id distinguishes it from the others
#: Of events that are not named after the state they lead to.
_STATES = {"created": "pending", "started": "running", "resumed": "running", "retried": "retrying"}


def event_text(event: Event) -> Text:
    """Draw one event for a terminal: time, kind, node run and notes."""
    what = event.kind.partition(".")[2] or event.kind
    state = _STATES.get(what, what)
    clock = event.at.astimezone().strftime("%H:%M:%S.") + f"{event.at.microsecond // 1000:03}"
    text = Text.assemble((clock, "bright_black"))
    text.append(f"  {GLYPHS.get(state, '·')} {escaped(what):<10}", STYLES.get(state, ""))
    text.append(f"  {_where(event)}", "bold" if event.node_id else "bright_black")
    for note, style in _notes(event, what):
        text.append(f"  {note}", style)
    return text


def event_line(event: Event) -> str:
    """Return one event as a line for a pipe: time, event, node, item, attempt, worker, data as JSON, cursor."""
    values = (event.at, event.kind, event.node_id, event.item, event.attempt, event.worker_id, event.data, event.cursor)
    return "\t".join(map(cell, values))


def _where(event: Event) -> str:
    if event.node_id is None:
        return "execution"
    item = f"[{event.item}]" if event.item else ""
    return f"{event.node_id}{item}" + (f" #{event.attempt}" if (event.attempt or 1) > 1 else "")


def _notes(event: Event, what: str) -> Iterator[tuple[str, str]]:
    data = event.data
    if what == "started" and event.worker_id:
        yield event.worker_id[-_WORKER_WIDTH:], "bright_black"
    if kind := data.get("wait_kind"):
        yield f"for {escaped(str(kind))}", ""
    if data.get("wait_key"):
        yield escaped(str(data["wait_key"])), "bright_black"
    if "items" in data:
        yield f"{data['items']:,} of them", ""
    if because := data.get("because"):
        yield escaped(str(because)).replace("_", " "), "bright_black"
    if isinstance(error := data.get("error"), dict):
        at = f"{escaped(str(error['node_id']))}: " if error.get("node_id") else ""
        yield at + escaped(error_sentence(error)), STYLES.get(what, "")
