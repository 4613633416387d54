"""Exceptions as text: their type, message and traceback, bounded, even if their own methods raise."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Any

from spanloom.engine.errors import NodeTimeout, SpanloomError
from spanloom.engine.limits import MAX_ERROR_CHARACTERS, MAX_NAME, end_of, shortened

__all__ = [
    "exception_text",
    "exceptions_of",
    "full_name",
    "log_failure",
    "main_error",
    "members_of",
    "message_of",
    "text_of",
    "traceback_of",
    "type_of",
]

_OF_A_LINE = 8_000  #: characters of a traceback among the fields of a log line
_EXCEPTIONS: Any = vars(BaseExceptionGroup)["exceptions"]
_MAX_MEMBERS = 10_000
_MAX_LEAVES, _MAX_LEAF = 10, 1_000  # of a group's message


def exceptions_of(error: BaseException) -> tuple[BaseException, ...]:
    """Return the exceptions in a group, whatever its class makes of the attribute; none of another exception."""
    if not issubclass(type(error), BaseExceptionGroup):
        return ()
    found: tuple[BaseException, ...] = _EXCEPTIONS.__get__(error)
    return found


def members_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and, of a group, all exceptions within, also of groups in it; some thousands at most."""
    pending = [error]
    for _ in range(_MAX_MEMBERS):
        if not pending:
            return
        found = pending.pop()
        yield found
        pending.extend(reversed(exceptions_of(found)))


def main_error(error: BaseException) -> BaseException:
    """Return the only exception in a group, such as that of a TaskGroup; the group itself if it holds several."""
    while len(within := exceptions_of(error)) == 1:
        (error,) = within
    return error


def message_of(error: BaseException) -> str:
    """Return the message of an exception, or of the exceptions in a group, shortened.

    It is a placeholder if its own `__str__` fails, which must not fail its node.
    """
    error = main_error(error)
    if issubclass(type(error), BaseExceptionGroup):
        leaves = (one for one in members_of(error) if not issubclass(type(one), BaseExceptionGroup))
        shown = [f"{full_name(type(leaf))}: {_text_of(leaf)}" for leaf in islice(leaves, _MAX_LEAVES)]
        texts = (_text_of(error), *(shortened(text, _MAX_LEAF) for text in shown))
        return shortened("; ".join(texts), MAX_ERROR_CHARACTERS)
    return _text_of(error)


def _text_of(error: BaseException) -> str:
    try:
        return shortened(str(error), MAX_ERROR_CHARACTERS)
    except BaseException as failed:  # it may raise SystemExit as well, which would end the slot
        return f"(its message can't be read: {type(failed).__name__})"


def type_of(error: BaseException) -> str:
    """Return the name of an exception's class, as error records and a span's `error.type` have it.

    For a group of one exception it is the class of that exception.
    """
    return full_name(type(main_error(error)))


def full_name(kind: type) -> str:
    """Return the name of a class, with its module unless that is `builtins` or Spanloom's own."""
    plain = kind.__module__ in ("builtins", SpanloomError.__module__)
    return shortened(kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}", MAX_NAME)


def text_of(value: Any) -> str:
    """Return a value as text; a placeholder if its own `__str__` fails."""
    try:
        return str(value)
    except NodeTimeout:  # raised by a time limit at this moment
        raise
    except Exception as failed:
        return f"(it can't be read: {type(failed).__name__})"


def exception_text(
    raised: bool | BaseException | tuple[type[BaseException] | None, BaseException | None, TracebackType | None],
) -> str:
    """Return the traceback of an `exc_info` argument: True, an exception or a triple."""
    if isinstance(raised, BaseException):
        return traceback_of(raised)
    if isinstance(raised, tuple):
        return "" if raised[1] is None else traceback_of(raised[1])
    return end_of(text_of(traceback.format_exc(limit=-50)), _OF_A_LINE)


def traceback_of(error: BaseException, *, limit: int = 50, size: int = _OF_A_LINE) -> str:
    """Return an exception's traceback of `limit` frames; one that is too long is cut at its older end."""
    try:
        # Part by part, as a message may be longer than all the rest.
        parts = [shortened(part, MAX_ERROR_CHARACTERS) for part in traceback.format_exception(error, limit=-limit)]
        return end_of("".join(part if part.endswith("\n") else f"{part}\n" for part in parts), size)
    except NodeTimeout:
        raise
    except Exception as failed:
        return f"{type(error).__name__} (its traceback can't be read: {type(failed).__name__})"


def log_failure(log: Any, event: str, **fields: Any) -> None:
    """Log the exception that is being handled; without its traceback if that can't be written."""
    error = sys.exc_info()[1]
    try:
        log.exception(event, **fields)
    except NodeTimeout:
        raise
    except BaseException:  # of the exception's own methods: whoever logs it must go on
        with suppress(Exception):
            log.error(event, **fields, error=None if error is None else type_of(error))  # noqa: TRY400 - without it
