"""The guard of waits within handlers, which a worker sets while one of its handlers runs."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

__all__ = ["WAIT_GUARD", "WaitGuard", "check_wait"]


class WaitGuard(Protocol):
    """A check whether a wait of the handler that runs in this context can end."""

    def check(self, execution_id: str) -> None:
        """Raise WaitRefused if no worker is left that could run the execution. Called before each read of the store."""
        ...


WAIT_GUARD: ContextVar[WaitGuard | None] = ContextVar("spanloom_wait_guard", default=None)


def check_wait(execution_id: str) -> None:
    """Raise WaitRefused if this context is a handler's, and the wait can't end."""
    if (guard := WAIT_GUARD.get()) is not None:
        guard.check(execution_id)
