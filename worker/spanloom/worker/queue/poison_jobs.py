"""Isolation of poison jobs: a node that may kill its workers runs alone, so that no other is lost with it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import structlog

from spanloom.engine.queue.message import NodeMessage
from spanloom.worker.options import WorkerOptions
from spanloom.worker.slots import Slots

__all__ = ["Isolation", "is_poison_candidate"]

_log = structlog.get_logger("spanloom.worker")


def is_poison_candidate(recovery_attempts: int, max_recovery_attempts: int) -> bool:
    """Return whether one more loss would fail a run that was lost `recovery_attempts` times.

    Such a run must not share a worker: it may be the node that kills it, or be lost with another node that does.
    """
    return recovery_attempts >= max(1, max_recovery_attempts - 1)


class Isolation:
    """The queue of suspects (poison candidates), which run one at a time.

    A suspect starts when all slots are free, and they stay free until it has ended. Both waits end after
    `isolation_seconds`, so that long-running nodes can't halt a worker. Used by the fetching thread only.
    """

    def __init__(self, slots: Slots, options: WorkerOptions) -> None:
        self._slots = slots
        self._max_recovery_attempts = options.max_recovery_attempts
        self._seconds = options.isolation_seconds
        self._waiting: deque[NodeMessage] = deque()
        self._until = 0.0  # from then on neither a waiting nor a running suspect need be alone

    @property
    def active(self) -> bool:
        """Whether no other node may start: a suspect waits for its turn, or runs alone."""
        return bool(self._waiting) or (self._slots.busy > 0 and time.monotonic() < self._until)

    def admit(self, messages: Sequence[NodeMessage]) -> list[NodeMessage]:
        """Keep the suspects among `messages` for later, and return the rest."""
        suspects = [
            message
            for message in messages
            if is_poison_candidate(message.recovery_attempts, self._max_recovery_attempts)
        ]
        self._until = time.monotonic() + self._seconds if suspects else 0.0
        self._waiting.extend(suspects)
        return [message for message in messages if message not in suspects]

    def next(self, timeout: float) -> NodeMessage | None:
        """Wait up to `timeout` seconds for the turn of the next suspect, and return it, or None."""
        idle = self._slots.wait_idle(min(timeout, max(0.0, self._until - time.monotonic())))
        late = time.monotonic() >= self._until
        if not self._waiting or not (idle or (late and self._slots.wait_free(0.0))):
            return None
        self._until = time.monotonic() + self._seconds
        suspect = self._waiting.popleft()
        _log.warning(
            "suspect_runs_alone" if idle else "suspect_runs",
            execution_id=suspect.execution_id,
            node_id=suspect.node_id,
            item=suspect.item,
            recovery_attempts=suspect.recovery_attempts,
        )
        return suspect

    def leave(self) -> list[NodeMessage]:
        """Return the suspects that still wait, and drop them."""
        left = list(self._waiting)
        self._waiting.clear()
        return left
