"""The forms of option values: JSON, durations, times, `key=value` pairs, and parts of execution ids."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from pydantic import ByteSize, TypeAdapter, ValidationError

from spanloom.engine.errors import UnknownExecution, UserError
from spanloom.engine.escaping import shown
from spanloom.engine.limits import MAX_GIVEN_CHARACTERS
from spanloom.engine.store.models import Execution
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.wording import size_text

__all__ = [
    "duration",
    "find_execution",
    "json_option",
    "json_value",
    "moment",
    "node_and_item",
    "page_options",
    "pair",
    "size",
]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_SECONDS = 9e9
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SIZE = TypeAdapter(ByteSize)
_WHOLE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHORTEST_PART = 6
_RECENT, _PAGE = 1000, 200  # how many executions a part of an id is searched in, and the size of a page
_NODE_RUN = re.compile(r"([^:\[\]]+)(?::([1-9][0-9]{0,8})|\[([1-9][0-9]{0,8})\])?")


def duration(text: str) -> float:
    """Read seconds, or a number with a unit (500ms, 30s, 5m, 2h, 1d), as seconds."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{shown(text)} is no duration; write seconds, or 500ms, 30s, 5m, 2h, 1d")
    seconds = float(found[1]) * _UNITS[found[2] or "s"]
    if seconds > _LONGEST_SECONDS:
        raise click.BadParameter(f"{shown(text)} is more than three centuries")
    return seconds


def size(text: str) -> int:
    """Read bytes, or a number with a unit (500MB, 1GiB), as bytes."""
    try:
        return int(_SIZE.validate_python(text.strip()))
    except ValidationError:
        raise click.BadParameter(f"{shown(text)} is no size; write bytes, or 500MB, 512MiB, 1GiB") from None


def moment(text: str) -> datetime:
    """Read an ISO 8601 time, or a duration before now."""
    try:
        if _DURATION.fullmatch(text.strip()):
            return datetime.now(UTC) - timedelta(seconds=duration(text))
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, click.BadParameter):  # OverflowError before the year 1, or after 9999
        raise click.BadParameter(f"{shown(text)} is no time; write how long ago (30m, 2h, 1d) or an ISO time") from None


def json_value(text: str) -> Any:
    """Read JSON text, `@file` with such text, or `-` for standard input."""
    content, source = text, ""
    try:
        if text == "-":
            content, source = sys.stdin.read(MAX_GIVEN_CHARACTERS + 1), " from standard input"
        elif text.startswith("@"):
            with Path(text[1:]).open(encoding="utf-8") as file:
                content, source = file.read(MAX_GIVEN_CHARACTERS + 1), f" in {text[1:]}"
        if len(content) > MAX_GIVEN_CHARACTERS:
            raise click.BadParameter(f"the JSON{source} is larger than {size_text(MAX_GIVEN_CHARACTERS)}")
        return json.loads(content, parse_constant=_refuse)
    except OSError as error:
        raise click.BadParameter(f"can't read {text[1:]}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also of text that is not UTF-8, or that is nested too deep
        hint = "" if source else "; quote it for the shell, such as '{\"id\": 7}', or use @FILE or -"
        raise click.BadParameter(f"the JSON{source} is not valid: {error}{hint}") from error


def pair(text: str) -> tuple[str, str]:
    """Read `key=value`."""
    key, equals, content = text.partition("=")
    if not (key and equals):
        raise click.BadParameter(f"{shown(text)} is not KEY=VALUE")
    return key, content


def node_and_item(text: str) -> tuple[str, int]:
    """Read `NODE`, or `NODE:ITEM` for an item of a mapped node, counted from 1; or `NODE[ITEM]`, as it is shown."""
    read = _NODE_RUN.fullmatch(text)
    if read is None:
        raise click.BadParameter(f"{shown(text)} is no node run; write NODE, or NODE:ITEM with an item from 1")
    return read[1], int(read[2] or read[3] or 0)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json` to a command, as its argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def page_options(limit: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--limit`, with this default, and `--cursor` to a command, as its arguments of these names."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option("--cursor", metavar="CURSOR", help="Go on where an earlier page ended.")(command)
        sizes = click.IntRange(1, 1000)
        return click.option(
            "--limit", type=sizes, default=limit, show_default=True, metavar="N", help="At most so many."
        )(command)

    return decorate


def find_execution(store: ExecutionStore, given: str, *, data_limit: int = 0) -> Execution:
    """Return the execution of an id, or of the first or last six or more characters of a recent execution's id.

    Its output is read if it takes no more bytes than `data_limit`.

    Raises UnknownExecution, UserError if several recent ids match or the part is too short, and StoreUnavailable.
    """
    wanted = given.strip().lower()
    if _WHOLE_ID.fullmatch(wanted):
        execution = store.get_execution(wanted, data_limit=data_limit)
        if execution is None:
            raise UnknownExecution(given)
        return execution
    if len(wanted) < _SHORTEST_PART:
        raise UserError(
            f"{given!r} is too short; give an execution's id, or at least {_SHORTEST_PART} characters of it"
        )
    matches = _matches(store, wanted)
    if not matches:
        raise UserError(
            f"none of the {_RECENT:,} latest executions in {store.url} has an id that begins or ends with {given!r}; "
            f"`spanloom list` shows them, older ones need the whole id"
        )
    if len(matches) > 1:
        listed = ", ".join(matches[:5]) + (" …" if len(matches) > 5 else "")
        raise UserError(
            f"{given!r} fits {len(matches)} executions; give more of it (the last characters differ most): {listed}"
        )
    execution = store.get_execution(matches[0], data_limit=data_limit)  # lists come without output
    if execution is None:
        raise UnknownExecution(matches[0])
    return execution


def _matches(store: ExecutionStore, part: str) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    for _ in range(_RECENT // _PAGE):
        page = store.list_executions(limit=_PAGE, cursor=cursor, data_limit=0)
        found += [
            execution.id for execution in page.items if execution.id.startswith(part) or execution.id.endswith(part)
        ]
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON value")
