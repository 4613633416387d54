"""Exceptions as text: their type, message and traceback, bounded, whatever their own methods raise."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

from spanloom.engine.errors import NodeTimeout, SpanloomError

__all__ = ["exception_text", "full_name", "message_of", "text_of", "traceback_of", "type_of"]

_MAX_TRACEBACK = 8_000


def message_of(error: BaseException) -> str:
    """Return what an exception says; one whose own `__str__` fails must not take its node with it."""
    try:
        return str(error)
    except BaseException as failed:  # it may raise SystemExit as well, which would end the slot
        return f"(its message can't be read: {type(failed).__name__})"


def type_of(error: BaseException) -> str:
    """Return what an error record, and a span's `error.type`, call the class of an exception."""
    return full_name(type(error))


def full_name(kind: type) -> str:
    """Return the name of a class, with its module unless that is Python's or ours."""
    plain = kind.__module__ in ("builtins", SpanloomError.__module__)
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def text_of(value: Any) -> str:
    """Return a value as text, also one whose own `__str__` fails."""
    try:
        return str(value)
    except NodeTimeout:  # a time limit's, which came just then
        raise
    except Exception as failed:
        return f"(it can't be read: {type(failed).__name__})"


def exception_text(
    raised: bool | BaseException | tuple[type[BaseException] | None, BaseException | None, TracebackType | None],
) -> str:
    """Return the traceback that an `exc_info` stands for."""
    if isinstance(raised, BaseException):
        return traceback_of(raised)
    if isinstance(raised, tuple):
        return "" if raised[1] is None else traceback_of(raised[1])
    return text_of(traceback.format_exc(limit=-50))[-_MAX_TRACEBACK:]


def traceback_of(error: BaseException, *, limit: int = 50) -> str:
    """Return an exception's traceback, bounded at its older end."""
    try:
        return "".join(traceback.format_exception(error, limit=-limit))[-_MAX_TRACEBACK:]
    except NodeTimeout:
        raise
    except Exception as failed:
        return f"{type(error).__name__} (its traceback can't be read: {type(failed).__name__})"
