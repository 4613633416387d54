"""The frame and the handled exception of another thread, read so that Python can't deadlock."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

__all__ = ["frame_of", "handled_exception_of"]

T = TypeVar("T")

_reading = threading.Lock()  # several threads switch the collection off and on


def frame_of(thread_id: int) -> FrameType | None:
    """Return the innermost frame of a thread; None if it has ended."""
    frames: dict[int, FrameType] = _read(sys._current_frames)  # pyright: ignore[reportPrivateUsage]  documented
    return frames.get(thread_id)


def handled_exception_of(thread_id: int) -> BaseException | None:
    """Return the exception that a thread handles, in an except or a finally clause or an __exit__."""
    handled: Any = _read(sys._current_exceptions).get(thread_id)  # pyright: ignore[reportPrivateUsage]  documented
    error: BaseException | None = handled[1] if isinstance(handled, tuple) else handled  # a triple in Python 3.11
    return error


def _read(read: Callable[[], T]) -> T:
    """Call a function that lists all threads, and collect no garbage meanwhile.

    Before Python 3.12 a collection may begin inside such a call, under the interpreter's lock of its list of threads.
    If it frees a `threading.local`, that takes the same lock again, and the whole process stands still for ever.
    """
    with _reading:
        collects = gc.isenabled()
        gc.disable()
        try:
            return read()
        finally:
            if collects:
                gc.enable()
