"""Steps of the machine's clock: noticed by the next write transaction, which moves leases and retries along."""

from __future__ import annotations

import sqlite3
import time
import zlib
from pathlib import Path

from spanloom.engine.logs import Logger

__all__ = ["ClockSteps"]

_log = Logger("spanloom.stores")

STEP_SECONDS = 2  #: shorter ones are left alone: they harm no lease
_LARGEST = 2**31  # a number in the header of a file has 32 bits
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MICROSECONDS = 1_000_000
_AT_ONCE = 100_000_000  # nanoseconds
_ENOUGH = STEP_SECONDS * 1_000_000_000 // 2  # nanoseconds

# Not the times that users set: a delay, a deadline and a wait until a moment are read off the clock, whatever it shows.
_MOVED = (
    "UPDATE workers SET lease_until = lease_until + ?1, released_at = released_at + ?1",
    "UPDATE node_runs SET pushed_at = pushed_at + ?1 WHERE status = 'queued'",
    "UPDATE node_runs SET due_at = due_at + ?1 WHERE due_at IS NOT NULL "
    "AND (status = 'queued' OR (status = 'waiting' AND wait_kind <> 'timer'))",
)


class ClockSteps:
    """The watch of one process over the machine's clock, against one that counts from the boot and is never set.

    The difference of the two is kept in the file, in two numbers of its header that applications may use, so that the
    first process to write after a step moves the times, and no other. After a boot it is noted anew. Where a boot has
    no id (not on Linux) steps are not noticed.
    """

    def __init__(self) -> None:
        self._boot = _boot_number()
        self._quick: int | None = None  # the difference to a clock that is read faster, at the last comparison

    def settle(self, connection: sqlite3.Connection) -> None:
        """Move the times if the clock was set. The first statement of a write transaction that is not a nested one."""
        quick = time.time_ns() - time.monotonic_ns()
        if self._quick is not None and -_ENOUGH < quick - self._quick < _ENOUGH:
            return
        # After a sleep of the machine, too: then the slower clock, which counts on, shows that there was no step.
        if self._boot is None or self._is_noted(connection, self._boot):
            self._quick = quick

    def _is_noted(self, connection: sqlite3.Connection, boot: int) -> bool:
        """Compare with the file, and note the difference there. The answer is True if it was there before.

        Else the transaction may yet be rolled back, and the next one compares again.
        """
        offset = _offset_seconds()
        (of_boot,) = connection.execute("PRAGMA application_id").fetchone()
        (noted,) = connection.execute("PRAGMA user_version").fetchone()
        step = _signed(offset - noted)
        if of_boot == boot and abs(step) < STEP_SECONDS:
            return True
        if of_boot == boot:
            for statement in _MOVED:
                connection.execute(statement, (step * _MICROSECONDS,))
            _log.warning("clock_stepped", seconds=step)
        connection.execute(f"PRAGMA application_id = {boot}")
        connection.execute(f"PRAGMA user_version = {offset % _LARGEST}")
        return False


def _offset_seconds() -> int:
    """Return the difference of the two clocks, from readings between which this process did not stand still."""
    while True:
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        shown = time.time_ns()
        if time.clock_gettime_ns(time.CLOCK_BOOTTIME) - before < _AT_ONCE:
            return (shown - before) // 1_000_000_000


def _boot_number() -> int | None:
    """Return a number that is this boot's, None where a boot has no id."""
    try:
        return zlib.crc32(_BOOT_ID.read_bytes()) % _LARGEST
    except OSError:
        return None


def _signed(difference: int) -> int:
    """Return a difference of which the file keeps 31 bits."""
    return (difference + _LARGEST // 2) % _LARGEST - _LARGEST // 2
