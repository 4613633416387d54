"""Spanloom's own log lines, through structlog, which is imported with the first line because that takes long.

Lines for people are rendered here: escaped, with plain tracebacks. Those of structlog's default show the locals of
every frame, which are inputs and results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from functools import cache
from typing import Any

from spanloom.engine.escaping import escaped

__all__ = ["ConsoleLines", "Logger"]

_WORDS = ("event", "level", "timestamp", "logger", "logger_name")
_BLOCKS = ("exception", "stack")
_INDENT = "\n    "


class Logger:
    """A structlog logger by name; its methods are debug, info, warning, error and exception.

    In a process that has not configured structlog, its lines are ConsoleLines.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        import structlog

        if structlog.is_configured():
            return getattr(structlog.get_logger(self._name), method)
        return getattr(structlog.wrap_logger(structlog.PrintLogger(), processors=_unconfigured()), method)


class ConsoleLines:
    """The renderer of readable lines: keys, values and names are escaped, and tracebacks are text without locals.

    A line break in the text of an event is kept, and the next line is indented: it is no line of its own.
    """

    def __init__(self, *, colors: bool = True) -> None:
        from structlog.dev import ConsoleRenderer, plain_traceback

        self._render = ConsoleRenderer(colors=colors, exception_formatter=plain_traceback)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        return self._render(logger, method, {escaped(str(key)): _shown(key, value) for key, value in event.items()})


class _Shown:
    """A value of a field, whose representation is the text to print."""

    __slots__ = ("_text",)

    def __init__(self, value: object) -> None:
        plain = isinstance(value, str) and not set(value) & set(" \t=\r\n\"'")
        self._text = escaped(str(value) if plain else repr(value))

    def __repr__(self) -> str:
        return self._text


def _shown(key: object, value: Any) -> Any:
    if key in _BLOCKS and isinstance(value, str):
        return escaped(value, keep="\n\t")
    if key in _WORDS:
        return escaped(str(value), keep="\n\t").replace("\n", _INDENT)
    return _Shown(value)


@cache
def _unconfigured() -> list[Any]:
    """Return structlog's default processors with another renderer."""
    import structlog

    colors = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    lines = ConsoleLines(colors=colors)
    return [*structlog.get_config()["processors"][:-1], structlog.processors.format_exc_info, lines]
