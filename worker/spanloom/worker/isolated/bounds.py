"""The bounds of one node in its handler process: its timeout, its claim, and the patience with a start."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from spanloom.engine.errors import LeaseLost, NodeTimeout
from spanloom.engine.workflow.definitions import Node
from spanloom.worker.node.attempt import RunningAttempt

__all__ = ["NodeBounds"]

_LOOK_SECONDS = 0.25  #: between looks whether the claim was lost, and whether the process has died
_CANCEL_SECONDS = 0.5  #: how long a handler that was cancelled may clean up


class NodeBounds:
    """The checks that every wait for a handler process makes: while it starts, is sent its call, and runs it."""

    def __init__(self, node: Node, attempt: RunningAttempt) -> None:
        self._node = node
        self._attempt = attempt
        self._until: float | None = None
        self._cancelled_at: float | None = None

    @contextmanager
    def starting(self) -> Generator[None]:
        """Note that the node waits for its process, while the block lasts."""
        self._attempt.starting = True
        try:
            yield
        finally:
            self._attempt.starting = False

    def begin(self) -> None:
        """Start the node's timeout: its process is ready."""
        if self._node.timeout is not None:
            self._until = time.monotonic() + self._node.timeout

    @property
    def cancelled(self) -> bool:
        """Whether the claim was lost, or the worker stops and its grace is over."""
        if self._cancelled_at is None and self._attempt.cancelled:
            self._cancelled_at = time.monotonic()
        return self._cancelled_at is not None

    def check_timeout(self) -> None:
        """Raise NodeTimeout if the node's timeout is over."""
        if self._until is not None and self._node.timeout is not None and time.monotonic() >= self._until:
            raise NodeTimeout(self._node.id, self._node.timeout)

    def check(self) -> float:
        """Return the seconds until the next look. Raises NodeTimeout, and LeaseLost if the claim was lost.

        A handler that runs has a moment to clean up after its claim was lost.
        """
        self.check_timeout()
        now = time.monotonic()
        cleaning = _CANCEL_SECONDS if self._attempt.entered else 0.0
        if self.cancelled and self._cancelled_at is not None and now - self._cancelled_at >= cleaning:
            claim = self._attempt.claim
            raise LeaseLost(claim.header.execution_id, self._node.id, claim.node.fence)
        return _LOOK_SECONDS if self._until is None else max(0.0, min(_LOOK_SECONDS, self._until - now))
