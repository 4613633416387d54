"""The time limit of each statement on our side: a server process that stands still holds no thread for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg

from spanloom.stores.postgres.quiet_pipeline import QuietPipeline

__all__ = [
    "LEASE_SECONDS",
    "LONG_SECONDS",
    "STATEMENT_SECONDS",
    "TimeLimitPassed",
    "TimeLimitedConnection",
    "long",
    "within",
]

STATEMENT_SECONDS = 20.0  #: for a statement of a transition, or a read
LEASE_SECONDS = 5.0  #: for the renewal of a lease, which is one row
LONG_SECONDS = 3600.0  #: for migrations, purges, counts and lists over large tables
_CANCEL_SECONDS = 2.0
_INTERVAL_SECONDS = 0.1  # between two looks for signals, as psycopg has it

RV = TypeVar("RV")


class _Late(Exception):
    """Raised when an exchange took too long, by a psycopg that has no such error."""


_WAIT_TIMEOUT: type[Exception] | None = getattr(psycopg.errors, "_WaitTimeout", None)  # since psycopg 3.3, in C
_LATE = _WAIT_TIMEOUT or _Late

_limits: dict[int, float] = {}  # by thread that is in a block of `within`


@contextmanager
def within(seconds: float) -> Generator[None]:
    """Give this thread's statements so many seconds each while the block lasts."""
    thread = threading.get_ident()
    outer = _limits.get(thread)
    _limits[thread] = seconds
    try:
        yield
    finally:
        if outer is None:
            del _limits[thread]
        else:
            _limits[thread] = outer


@contextmanager
def long() -> Generator[None]:
    """Give this thread's statements an hour each while the block lasts."""
    with within(LONG_SECONDS):
        yield


class TimeLimitPassed(psycopg.OperationalError):
    """Raised when a server did not answer a statement within its time limit; the connection is closed."""


class TimeLimitedConnection(psycopg.Connection[Any]):
    """A connection that waits for an answer up to `limit_seconds`, then cancels the statement and is closed.

    TCP's own limits and keepalives notice a machine that is gone, but not a process that was stopped: its kernel goes
    on to acknowledge.
    """

    limit_seconds = STATEMENT_SECONDS

    def wait(
        self, gen: Generator[Any, Any, RV], interval: float = _INTERVAL_SECONDS, timeout: float | None = None
    ) -> RV:
        """Run one exchange with the server. Raises TimeLimitPassed."""
        seconds = _limits.get(threading.get_ident(), self.limit_seconds) if _limits else self.limit_seconds
        try:
            if _WAIT_TIMEOUT is None:
                return super().wait(_limited(gen, seconds), interval)
            return super().wait(gen, interval, seconds)
        except _LATE:
            self._abandon()
            raise TimeLimitPassed(f"no answer within the time limit of {seconds:g} s") from None

    def __del__(self, *_: object) -> None:
        """Let libpq close it: one of a pool ends with the pool, of which psycopg warns for its own pools neither."""

    @contextmanager
    def pipeline(self) -> Generator[psycopg.Pipeline]:
        """Send statements without waiting for the answers of each, while the block lasts."""
        if self._pipeline is None:
            self._pipeline = QuietPipeline(self)
        with super().pipeline() as pipeline:
            yield pipeline

    def _abandon(self) -> None:
        """Have the server cancel the statement, as far as it can, and close the connection."""
        try:
            cancel = self.pgconn.get_cancel()
        except psycopg.Error:
            cancel = None
        if cancel is not None:  # on a thread of its own: the server's machine may be out of reach
            thread = threading.Thread(target=_quietly, args=(cancel.cancel,), name="spanloom-cancel", daemon=True)
            thread.start()
            thread.join(_CANCEL_SECONDS)
        self.pgconn.finish()


def _limited(gen: Generator[Any, Any, RV], seconds: float) -> Generator[Any, Any, RV]:
    """Pass an exchange on until its time is over, for a psycopg whose `wait` has no limit.

    It is resumed about ten times a second while nothing comes.
    """
    try:
        state = next(gen)
        until = time.monotonic() + seconds
        while True:
            ready = yield state
            if not ready and time.monotonic() > until:
                raise _Late
            state = gen.send(ready)
    except StopIteration as end:
        value: RV = end.value
        return value


def _quietly(cancel: Callable[[], object]) -> None:
    with suppress(psycopg.Error):  # the connection is closed all the same
        cancel()
