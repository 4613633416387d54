"""The pusher of committed jobs: those that Redis did not take count as not pushed, and a sweep pushes them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spanloom.engine.errors import QueueUnavailable, SpanloomError
from spanloom.engine.logs import Logger
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeJob

__all__ = ["JobPusher"]

_log = Logger("spanloom.engine")


class JobPusher:
    """The way of all jobs from the store to Redis.

    A transition that queues node runs stores the epoch of Redis with them, before they are pushed. If the push fails,
    for whatever reason, that is taken back: these runs belong to no epoch, and the first sweep that reaches Redis
    pushes them. A search for lost jobs would find them as well, but takes ever longer.
    """

    def __init__(self, store: ExecutionStore, queue: NodeQueue) -> None:
        self._store = store
        self._queue = queue

    def push(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = (), changed: Iterable[str] = ()) -> None:
        """Push jobs, and publish ends and changes. Raises QueueUnavailable once the jobs count as not pushed."""
        try:
            self._queue.push(jobs, ended=ended, changed=changed)
        except QueueUnavailable:
            self._forget(jobs)
            raise

    def _forget(self, jobs: Sequence[NodeJob]) -> None:
        if not jobs:
            return
        try:
            self._store.forget_pushes(jobs)
        except SpanloomError as error:  # they are found as lost jobs are
            _log.warning("push_not_forgotten", jobs=len(jobs), error=str(error))
