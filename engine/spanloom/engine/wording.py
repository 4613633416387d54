"""Messages about wrong data or names, which never show the data."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from pydantic import ValidationError

__all__ = ["did_you_mean", "problem_sentences", "quoted_list", "size_text"]

_LONGEST_COMPARED = 200  # comparing takes time by the product of two lengths


def problem_sentences(error: ValidationError) -> list[str]:
    """Return each of pydantic's errors as `location: message`, without the input value."""
    found: list[str] = []
    for problem in error.errors(include_url=False, include_input=False):
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if problem["type"] == "extra_forbidden":  # "Extra inputs are not permitted": inputs are something else here
            message = "is not a known key"
        elif problem["type"] == "union_tag_invalid":  # its message quotes the data
            message = f"the tag must be one of {problem.get('ctx', {}).get('expected_tags')}"
        where = location(problem["loc"])
        found.append(f"{where}: {message}" if where else message)
    return found


def location(parts: Iterable[int | str]) -> str:
    """Return pydantic's location as a path: nodes[3].inputs."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return ` (did you mean 'x'?)` with the closest known word, or an empty text."""
    if len(word) > _LONGEST_COMPARED:
        return ""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def quoted_list(words: Collection[str], limit: int = 5) -> str:
    """Return the first words quoted, with the number of the others."""
    shown = ", ".join(repr(word) for word in list(words)[:limit])
    return f"{shown} and {len(words) - limit} more" if len(words) > limit else shown


def size_text(size: int) -> str:
    """Return a number of bytes in the unit that reads best.

    >>> size_text(64 * 1024 * 1024)
    '64 MiB'
    """
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size:,} bytes" if unit == "bytes" else f"{value:.4g} {unit}"
