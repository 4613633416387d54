"""The output of commands: drawn in a terminal, plain lines in a pipe, JSON with `--json`.

Every command prints through this module, which escapes all text by the rule of engine/escaping.py. Characters that
the encoding of the stream lacks are escaped, too.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TextIO

import click

from spanloom.engine.escaping import escaped, escaped_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from spanloom.engine.store.port import ExecutionStore

__all__ = [
    "console",
    "draw",
    "in_terminal",
    "note_write_problem",
    "print_json",
    "print_line",
    "print_note",
    "print_text",
    "progress",
    "show",
]

_NOTE_STYLE = "bright_black"


def in_terminal() -> bool:
    """Return whether standard output is a terminal that can show drawings."""
    return sys.stdout is not None and sys.stdout.isatty() and _is_unicode(sys.stdout)


def print_line(line: str = "", *, stderr: bool = False, end: str = "\n") -> None:
    """Print one line; the tabs in it separate columns, everything else is escaped."""
    _write(escaped(line, keep="\t") + end, stderr=stderr)


def print_text(text: str, *, stderr: bool = False) -> None:
    """Print text of several lines, such as help."""
    _write(escaped(text, keep="\n\t") + "\n", stderr=stderr)


def print_note(text: str, *, stderr: bool = False) -> None:
    """Print a line in a subdued colour, for people."""
    _write(click.style(escaped(text), fg=_NOTE_STYLE) + "\n", stderr=stderr)


def print_json(document: Any, *, indent: int | None = None) -> None:
    """Print one JSON document on one line, or indented; models by their fields."""
    as_it_is = sys.stdout is not None and _is_unicode(sys.stdout)

    def dumps(value: Any) -> str:
        return json.dumps(value, ensure_ascii=not as_it_is, indent=indent, default=_content)

    text = dumps(document)
    if "NaN" in text or "Infinity" in text:  # numbers that JSON lacks, unless they are parts of strings
        text = dumps(json.loads(text, parse_constant=lambda _: None))
    _write(escaped_json(text) + "\n")


def show(drawn: Callable[[Console], RenderableType], lines: Callable[[], Iterable[str]]) -> None:
    """Print `drawn` in a terminal, `lines` otherwise; only one of them is called."""
    if in_terminal():
        screen = console()
        screen.print(drawn(screen))
        return
    for line in lines():
        print_line(line)


def note_write_problem(store: ExecutionStore) -> None:
    """Print on standard error why a store that can be read takes no writes, if that is so."""
    if (problem := store.write_problem()) is not None:
        why = f"spanloom: {store.url} takes no writes now: {problem}; workers wait until it does"
        print_line(why, stderr=True)


def draw(screen: Console, drawn: RenderableType) -> None:
    """Print a drawing without wrapping its lines."""
    screen.print(drawn, soft_wrap=True)


def console(*, stderr: bool = False) -> Console:
    """Return a screen to draw on; rich is imported here because pipes and JSON do without it."""
    from spanloom.cli.rendering.screen import Screen

    return Screen(stderr=stderr)


def progress(text: str) -> AbstractContextManager[object]:
    """Show a spinner with a text on standard error, a terminal, while the block lasts."""
    from rich.text import Text

    return console(stderr=True).status(Text(text, _NOTE_STYLE))


def _content(value: Any) -> Any:
    """Return a value that JSON has no form for as one that it has: a model as its fields.

    pydantic's own JSON mode is no choice for data of users: it changes keys that hold a lone surrogate, and refuses
    such values and deeply nested ones.
    """
    from pydantic import BaseModel
    from pydantic_core import to_jsonable_python

    if isinstance(value, BaseModel):
        return dict(value)
    return to_jsonable_python(value)


def _write(text: str, *, stderr: bool = False) -> None:
    stream = sys.stderr if stderr else sys.stdout
    if stream is not None:  # it is None if the process was started without it
        click.echo(_encodable(text, stream), file=stream, nl=False)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text if text.isascii() else text.encode(encoding, "backslashreplace").decode(encoding)


def _is_unicode(stream: TextIO) -> bool:
    return codecs.lookup(stream.encoding or "utf-8").name.startswith("utf")
