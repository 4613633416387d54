"""Spanloom's own log lines, through structlog, which is imported with the first line because that takes long."""

from __future__ import annotations

from typing import Any

__all__ = ["Logger"]


class Logger:
    """A structlog logger by name; its methods are debug, info, warning, error and exception."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        import structlog

        return getattr(structlog.get_logger(self._name), method)
