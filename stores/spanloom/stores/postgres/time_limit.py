"""The time limit of each statement on our side: a server process that stands still holds no thread for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg

__all__ = ["LEASE_SECONDS", "LONG_SECONDS", "STATEMENT_SECONDS", "TimeLimitPassed", "TimeLimitedConnection", "long"]

STATEMENT_SECONDS = 20.0  #: for a statement of a transition, or a read
LEASE_SECONDS = 5.0  #: for the renewal of a lease, which is one row
LONG_SECONDS = 3600.0  #: for migrations, purges, counts and lists over large tables
_CANCEL_SECONDS = 2.0

RV = TypeVar("RV")

_thread = threading.local()


@contextmanager
def long() -> Generator[None]:
    """Give this thread's statements an hour while the block lasts."""
    before, _thread.long = getattr(_thread, "long", False), True
    try:
        yield
    finally:
        _thread.long = before


class TimeLimitPassed(psycopg.OperationalError):
    """Raised when a server did not answer a statement within its time limit; the connection is closed."""


class TimeLimitedConnection(psycopg.Connection[Any]):
    """A connection that waits for an answer up to `limit_seconds`, then cancels the statement and is closed.

    TCP's own limits and keepalives notice a machine that is gone, but not a process that was stopped: its kernel goes
    on to acknowledge.
    """

    limit_seconds = STATEMENT_SECONDS

    def wait(self, gen: Generator[Any, Any, RV], *args: Any, **kwargs: Any) -> RV:
        """Run one exchange with the server. Raises TimeLimitPassed."""
        seconds = LONG_SECONDS if getattr(_thread, "long", False) else self.limit_seconds
        try:
            return super().wait(_limited(gen, seconds), *args, **kwargs)
        except _Late:
            self._abandon()
            raise TimeLimitPassed(f"no answer within the time limit of {seconds:g} s") from None

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


class _Late(Exception):
    pass


def _limited(gen: Generator[Any, Any, RV], seconds: float) -> Generator[Any, Any, RV]:
    """Pass an exchange on, which is resumed about ten times a second while nothing comes, until its time is over."""
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
