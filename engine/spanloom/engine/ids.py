"""The ids of executions: UUIDs of version 7, which sort by the time at which they were made."""

from __future__ import annotations

import os
import threading
import time

__all__ = ["uuid7"]

_RANDOM_BITS = 74
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1
_LOW_MASK = (1 << 62) - 1


class _Sequence:
    """The last id of this process; the next one is greater, even if the clock goes back."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.lock = threading.Lock()
        self.last = 0

    def next(self) -> int:
        random = int.from_bytes(os.urandom(10))
        fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS | random & _RANDOM_MASK
        with self.lock:
            # Within one millisecond, or after the clock went back: a random step on, so that ids stay hard to guess.
            self.last = fresh if fresh > self.last else self.last + 1 + (random & 0xFFFFFFFF)
            return self.last


_sequence = _Sequence()
# A forked child must neither continue its parent's sequence nor inherit a lock that another thread held.
os.register_at_fork(after_in_child=_sequence.restart)


def uuid7(now_ms: int | None = None, rand: int | None = None) -> str:
    """Return a new UUIDv7 (RFC 9562) as text; later ids of this process are greater, from any thread and after a fork.

    With `now_ms` (Unix milliseconds) or `rand` (74 bits) the id depends on these, and not on earlier ids.
    """
    if now_ms is None and rand is None:
        value = _sequence.next()
    else:
        milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        bits = int.from_bytes(os.urandom(10)) if rand is None else rand
        value = milliseconds << _RANDOM_BITS | bits & _RANDOM_MASK
    high, low = value >> 62, value & _LOW_MASK
    text = f"{(high >> 12 << 16 | 0x7000 | high & 0xFFF) << 64 | 1 << 63 | low:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
