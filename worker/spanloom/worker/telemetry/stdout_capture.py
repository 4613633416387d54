"""The capture of handlers' printed lines: written to their stream, and kept with the node."""

from __future__ import annotations

import inspect
import sys
import threading
from typing import Any, TextIO

from spanloom.engine.limits import MAX_LINE_CHARACTERS
from spanloom.worker.telemetry.log_buffer import CURRENT, LogBuffer

__all__ = ["StdoutCapture", "unwrapped"]

_LEVELS = {"stdout": "info", "stderr": "warning"}
_LOGGING = ("logging", "structlog._output", "structlog._native")  #: the lines of these were kept as log lines


class StdoutCapture:
    """A layer before sys.stdout and sys.stderr while a worker works. `owner` is the worker's LogCapture."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._tees: list[_Tee] = []

    def open(self) -> None:
        """Start capturing."""
        for name in _LEVELS:
            if getattr(sys, name) is None:  # it was closed before the process started
                continue
            tee = _Tee(self._owner, name, getattr(sys, name))
            self._tees.append(tee)
            setattr(sys, name, tee)

    def close(self) -> None:
        """Stop capturing, and restore the earlier streams, unless another layer lies above this one."""
        for tee in self._tees:
            tee.closed_by_worker = True
            stream = getattr(sys, tee.stream_name)
            while isinstance(stream, _Tee) and stream.closed_by_worker:
                stream = stream.unwrapped
            setattr(sys, tee.stream_name, stream)
        self._tees.clear()


class _Tee:
    """A stream that keeps the lines of one worker's handlers, and passes every call to the stream beneath."""

    def __init__(self, owner: object, name: str, stream: TextIO) -> None:
        self.stream_name = name
        self.unwrapped = stream
        self.closed_by_worker = False
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unwrapped, name)

    def write(self, text: str) -> int:
        written = self.unwrapped.write(text)
        lines = CURRENT.get()
        if lines is not None and lines.owner is self._owner and not self.closed_by_worker and not _is_logging():
            self._keep(lines, text)
        return written

    def writelines(self, texts: Any) -> None:
        for text in texts:
            self.write(text)

    def _keep(self, lines: LogBuffer, text: str) -> None:
        key = (self.stream_name, threading.get_ident())  # print() writes a line's end separately: threads would mix
        *whole, rest = (lines.unended.pop(key, "") + text).split("\n")
        for line in whole:
            self._add(lines, line)
        *full, rest = (rest[at : at + MAX_LINE_CHARACTERS] for at in range(0, len(rest) + 1, MAX_LINE_CHARACTERS))
        for line in full:
            self._add(lines, line)
        if rest:
            lines.unended[key] = rest

    def _add(self, lines: LogBuffer, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2]  # a progress bar overwrites itself
        if shown.strip():
            lines.add(_LEVELS[self.stream_name], shown, {"stream": self.stream_name})


def unwrapped(stream: TextIO) -> TextIO:
    """Return the stream below all captures: log lines go there, so that they are not kept as printed lines."""
    while isinstance(stream, _Tee):
        stream = stream.unwrapped
    return stream


def _is_logging() -> bool:
    """Return whether a logging library called write(), which only the stack frames show."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in _LOGGING
