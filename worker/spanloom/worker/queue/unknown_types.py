"""Node types that some workers lack, as during the rollout of a new version: their jobs wait on side lists."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Container, Iterable, Sequence

import structlog

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.queue.redis_refusals import bounded_text
from spanloom.engine.queue.side_lists import base_list, type_tag
from spanloom.worker.queue.consumer import JobConsumer

__all__ = ["SideListFollower", "UnknownTypeFilter"]

_log = structlog.get_logger("spanloom.worker")
_MOST_TYPES = 200  # that a worker puts aside; jobs of further ones are forged, or pushed again by the sweep
_FOLLOW_SECONDS = 60.0  #: how long a side list is served after it was seen last


class UnknownTypeFilter:
    """The filter that puts fetched jobs of unknown types aside, with those that wait behind them.

    A worker meets each such job once at most. Workers that know the type serve its side list. Not thread-safe.
    """

    def __init__(self, consumer: JobConsumer, types: Container[str]) -> None:
        self._consumer = consumer
        self._types = types
        self._met: dict[str, None] = {}
        self._held: list[NodeMessage] = []  # could not be put aside yet

    def put_aside(self, fetched: Sequence[NodeMessage]) -> list[NodeMessage]:
        """Return the jobs that this worker can run; the others go to side lists. Raises QueueUnavailable.

        Jobs that could not be put aside are kept for the next call; it raises only if there are no others.
        """
        known = [message for message in fetched if message.node_type in self._types]
        if len(known) == len(fetched) and not self._held:
            return known
        self._held.extend(message for message in fetched if message.node_type not in self._types)
        for message in self._held:
            self._log_once(message)
        aside = [message for message in self._held if message.node_type in self._met]
        for message in self._held:
            if message.node_type not in self._met:
                self._consumer.discard(message)
        self._held = aside
        try:
            self._consumer.set_aside(aside, list(self._met))
            self._held = []
        except QueueUnavailable as error:
            if not known:
                raise
            _log.warning("jobs_not_put_aside", jobs=len(aside), error=str(error))  # with the next fetch
        return known

    def leave(self) -> list[NodeMessage]:
        """Return the jobs that could not be put aside, and drop them."""
        left, self._held = self._held, []
        return left

    def _log_once(self, message: NodeMessage) -> None:
        if message.node_type in self._met or len(self._met) >= _MOST_TYPES:
            return
        self._met[message.node_type] = None
        _log.warning("node_type_unknown", node_type=bounded_text(message.node_type), execution_id=message.execution_id)


class SideListFollower:
    """The choice of the side lists that a worker serves: those of its lists, of types that it knows."""

    def __init__(self, consumer: JobConsumer, types: Callable[[], Collection[str]]) -> None:
        """`types` returns the node types that the worker knows."""
        self._consumer = consumer
        self._types = types
        self._seen: dict[str, float] = {}

    def follow(self, list_names: Iterable[str]) -> None:
        """Serve those of the lists, which exist now, that are side lists for this worker. Raises QueueUnavailable."""
        named = [(name, *base_list(name)) for name in list_names]
        now = time.monotonic()
        if side := [name for name, base, tag in named if tag and base in self._consumer.list_names]:
            tags = {type_tag(node_type) for node_type in self._types()}
            self._seen |= {name: now for name in side if base_list(name)[1] in tags}
        elif not self._seen:
            return
        self._seen = {name: seen for name, seen in self._seen.items() if now - seen < _FOLLOW_SECONDS}
        if self._consumer.serve_side_lists(self._seen):
            self._consumer.wake()
