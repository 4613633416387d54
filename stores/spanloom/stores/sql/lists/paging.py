"""The paging of lists: an opaque cursor with the last row's sort key, and a limit that is checked."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from spanloom.engine.arguments import is_text
from spanloom.engine.errors import ConfigurationError, InvalidArgument
from spanloom.engine.escaping import shown
from spanloom.engine.store.models import Page

__all__ = ["bad_cursor", "check_limit", "page", "sort_key"]

MAX_LIMIT = 1000
LARGEST = 2**53  # as microseconds still a date, and an integer to every database

T = TypeVar("T")


def check_limit(limit: int) -> int:
    """Return `limit`, or raise InvalidArgument unless it is from 1 to 1000."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidArgument("limit", limit, f"from 1 to {MAX_LIMIT}")
    return limit


def bad_cursor(cursor: str) -> ConfigurationError:
    """Return the error for a cursor that no list of this kind has returned."""
    return ConfigurationError(
        f"cursor {shown(cursor)} was not given out by this list; pass what the page before it returned, or none"
    )


def sort_key(cursor: str, *kinds: type[int] | type[str]) -> list[Any]:
    """Return the sort key inside `cursor`, whose parts must be of `kinds`; raise ConfigurationError otherwise."""
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
    except (ValueError, RecursionError):
        raise bad_cursor(cursor) from None
    if not isinstance(key, list) or [type(part) for part in key] != list(kinds):
        raise bad_cursor(cursor)
    if not all(abs(part) <= LARGEST if isinstance(part, int) else is_text(part) for part in key):
        raise bad_cursor(cursor)
    return key


def page(rows: Sequence[Any], limit: int, read: Callable[[Any], T], key: Callable[[Any], Sequence[Any]]) -> Page[T]:
    """Return a page of up to `limit` rows. It has a successor if there are more rows than that."""
    shown = rows[:limit]
    more = len(rows) > limit
    return Page(items=[read(row) for row in shown], next_cursor=_cursor(key(shown[-1])) if more else None)


def _cursor(key: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(key)).encode()).decode("ascii")
