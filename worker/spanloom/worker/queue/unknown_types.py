"""Fetched jobs of node types that this worker lacks, as during the rollout of a new version."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence

import structlog

from spanloom.engine.queue.node_queue import NodeMessage
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.service import Phase, WorkerState

__all__ = ["UnknownTypeFilter"]

_log = structlog.get_logger("spanloom.worker")
_PAUSES = (0.02, 0.25)  #: first and longest, while only unknown types are fetched
_LEFT_TO_THE_SWEEP = 600.0  #: seconds after its push: no worker has run it for long, and each fetch makes another push


class UnknownTypeFilter:
    """The filter that returns jobs of unknown types to the ends of their lists, without spinning on them."""

    def __init__(self, consumer: JobConsumer, types: Container[str], state: WorkerState, *, keep: bool) -> None:
        """Drop the jobs instead if not `keep`, for the sweep to push again: a worker in burst mode must end."""
        self._consumer = consumer
        self._types = types
        self._state = state
        self._keep = keep
        self._pause = _PAUSES[0]
        self._named: set[str] = set()

    def return_unknown(self, fetched: Sequence[NodeMessage]) -> list[NodeMessage]:
        """Return the jobs that this worker can run, and give the others back. Waits a moment if it can run none.

        Raises QueueUnavailable; jobs that could not be given back are pushed again by the sweep.
        """
        known = [message for message in fetched if message.node_type in self._types]
        if len(known) == len(fetched):
            self._pause = _PAUSES[0]
            return known
        strange = [message for message in fetched if message.node_type not in self._types]
        for message in strange:
            self._log_once(message)
        now = time.time()
        returned = [message for message in strange if self._keep and now - message.pushed_at < _LEFT_TO_THE_SWEEP]
        for message in strange:
            if message not in returned:
                self._consumer.discard(message)
        if returned:
            self._consumer.requeue_last(returned)
        if known or not self._keep:
            self._pause = _PAUSES[0]
        else:
            self._state.wait_for(Phase.DRAINING, self._pause)
            self._pause = min(self._pause * 2, _PAUSES[1])
        return known

    def _log_once(self, message: NodeMessage) -> None:
        say = _log.debug if message.node_type in self._named else _log.warning
        self._named.add(message.node_type)
        say("node_type_unknown", node_type=message.node_type, execution_id=message.execution_id)
