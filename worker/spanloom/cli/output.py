"""The output of commands: drawn in a terminal, plain lines in a pipe, JSON with `--json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from spanloom.engine.store.port import ExecutionStore

__all__ = ["console", "in_terminal", "note_write_problem", "print_json", "show"]


def in_terminal() -> bool:
    """Return whether standard output is a terminal that can show drawings."""
    return sys.stdout.isatty() and (sys.stdout.encoding or "").lower().startswith("utf")


def console(*, stderr: bool = False) -> Console:
    """Return rich's console; the package is imported here because pipes and JSON do without it."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def show(drawn: Callable[[Console], RenderableType], lines: Callable[[], Iterable[str]]) -> None:
    """Print `drawn` in a terminal, `lines` otherwise; only one of them is called."""
    if in_terminal():
        screen = console()
        screen.print(drawn(screen))
        return
    for line in lines():
        click.echo(line)


def note_write_problem(store: ExecutionStore) -> None:
    """Print on standard error why a store that can be read takes no writes, if that is so."""
    if (problem := store.write_problem()) is not None:
        click.echo(f"spanloom: {store.url} takes no writes now: {problem}; workers wait until it does", err=True)


def print_json(document: Any) -> None:
    """Print one JSON document on one line; models by their fields."""
    if isinstance(document, BaseModel):
        document = document.model_dump(mode="json")
    click.echo(json.dumps(document, ensure_ascii=False))
