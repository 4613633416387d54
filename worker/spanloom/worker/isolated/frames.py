"""The frames on the connection between a worker and a handler process: a mark, a length, and one pickled message."""

from __future__ import annotations

import pickle
import struct
from typing import Any

__all__ = ["CHUNK", "FrameBuffer", "MalformedFrame", "frame_of"]

CHUNK = 1 << 16  #: bytes to read at once
_HEADER = struct.Struct("!4sQ")
_MARK = b"slm1"  #: so that bytes that somebody else has written are seen at once, and not awaited as a length


class MalformedFrame(Exception):
    """Raised when the bytes on the connection are no message of the other side."""


def frame_of(message: object) -> bytes:
    """Return the bytes of a message."""
    text = pickle.dumps(message)
    return _HEADER.pack(_MARK, len(text)) + text


class FrameBuffer:
    """The bytes that have come and are not taken yet as messages, each of `most` bytes at most."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes that have come."""
        self._bytes += data

    def take(self) -> Any:
        """Return the next message, None if it has not come whole. Raises MalformedFrame."""
        if len(self._bytes) < _HEADER.size:
            return None
        mark, length = _HEADER.unpack_from(self._bytes)
        if mark != _MARK:
            raise MalformedFrame("it wrote bytes to it that are no message")
        if self._most is not None and length > self._most:
            raise MalformedFrame(f"it sent a message of {length:,} bytes, more than {self._most:,}")
        end = _HEADER.size + length
        if len(self._bytes) < end:
            return None
        text = bytes(self._bytes[_HEADER.size : end])
        del self._bytes[:end]
        try:
            return pickle.loads(text)  # noqa: S301  of the other side, which is this program as well
        except Exception as error:
            raise MalformedFrame(f"it sent a message that can't be unpickled ({type(error).__name__})") from error
