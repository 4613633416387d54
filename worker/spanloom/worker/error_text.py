"""Exceptions as text: their type, message and traceback, bounded, even if their own methods raise."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

from spanloom.engine.errors import NodeTimeout, SpanloomError

__all__ = ["exception_text", "full_name", "message_of", "text_of", "traceback_of", "type_of"]

_MAX_TRACEBACK = 8_000


def message_of(error: BaseException) -> str:
    """Return the message of an exception; a placeholder if its own `__str__` fails, which must not fail its node."""
    try:
        return str(error)
    except BaseException as failed:  # it may raise SystemExit as well, which would end the slot
        return f"(its message can't be read: {type(failed).__name__})"


def type_of(error: BaseException) -> str:
    """Return the name of an exception's class, as error records and a span's `error.type` have it."""
    return full_name(type(error))


def full_name(kind: type) -> str:
    """Return the name of a class, with its module unless that is `builtins` or Spanloom's own."""
    plain = kind.__module__ in ("builtins", SpanloomError.__module__)
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


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
    return text_of(traceback.format_exc(limit=-50))[-_MAX_TRACEBACK:]


def traceback_of(error: BaseException, *, limit: int = 50) -> str:
    """Return an exception's traceback, cut at its older end."""
    try:
        return "".join(traceback.format_exception(error, limit=-limit))[-_MAX_TRACEBACK:]
    except NodeTimeout:
        raise
    except Exception as failed:
        return f"{type(error).__name__} (its traceback can't be read: {type(failed).__name__})"
