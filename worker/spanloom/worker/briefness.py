"""Briefness: the time that runs of each node type took lately, and the claimed nodes that share a slot for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.store.requests import NodeClaim

__all__ = ["LONG_SECONDS", "MOST", "WAVE_SECONDS", "Briefness"]

WAVE_SECONDS = 0.002  #: for so long a slot runs handlers one after the other until it records them
LONG_SECONDS = 0.05  #: a handler that takes so long is left behind by those beside it
MOST = 32  #: nodes of one wave
_MOST_FETCHED = 100  #: jobs that are fetched, and claimed, at once
_LEAST_SECONDS = WAVE_SECONDS / MOST
_KEPT_SECONDS = 0.1  #: for about so long a slot goes on with the successors of nodes that ended together
_NODE_SECONDS = 0.00025  #: what a node takes besides its handler
_SHARE = 1 / 8  #: of the latest run in what counts as usual

Item = TypeVar("Item")


class Briefness:
    """The seconds that runs of each node type took lately.

    Brief ones run in waves: several one after the other in one slot, and one call of the store records them. A type
    that has not run here counts as long. A run that was lost with its worker is in no wave: it may be the node that
    kills it. Thread-safe: an update that is lost does no harm.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._a_wave = 1  # as many of the jobs that were fetched last make a wave

    def note(self, node_type: str, seconds: float) -> None:
        """Take a run into account."""
        usual = self._seconds.get(node_type, seconds)
        self._seconds[node_type] = usual + (seconds - usual) * _SHARE

    def is_brief(self, node_type: str) -> bool:
        """Return whether several runs of this type make a wave."""
        return self._expected(node_type) <= WAVE_SECONDS / 2

    def kept(self, node_types: Sequence[str], forks: int) -> int:
        """Return how many successors of these brief types, of one node, go on where it ended; the rest is for others.

        `forks` is the number of nodes that ended with it and have several such successors.
        """
        if len(node_types) < 2:
            return 1
        usual = sum(map(self._expected, node_types)) / len(node_types)
        return max(1, min(len(node_types), int(_KEPT_SECONDS / forks / (usual + _NODE_SECONDS))))

    def wanted(self, free: int) -> int:
        """Return how many jobs to fetch for `free` slots: a wave for each, as those that were fetched last make."""
        return max(free, min(free * self._a_wave, _MOST_FETCHED))

    def portion(self, messages: Sequence[NodeMessage], free: int) -> tuple[list[NodeMessage], list[NodeMessage]]:
        """Return the jobs that `free` slots can run, and those that must wait for others."""
        waves = self.waves(messages, lambda message: message)
        left = {message.job_id for wave in waves[free:] for message in wave}
        if messages:
            usual = sum(self._expected(message.node_type) for message in messages) / len(messages)
            brief = all(self.is_brief(message.node_type) for message in messages)
            self._a_wave = int(WAVE_SECONDS / max(usual, _LEAST_SECONDS) + 0.01) if brief else 1
            if left:
                self._a_wave = max(1, min(self._a_wave, (len(messages) - len(left)) // free))
        taken = [message for message in messages if message.job_id not in left]
        return taken, [message for message in messages if message.job_id in left]

    def waves(self, items: Iterable[Item], run_of: Callable[[Item], NodeMessage | NodeClaim]) -> list[list[Item]]:
        """Return the items as waves: brief ones together, as far as the bounds allow, any other alone."""
        waves: list[list[Item]] = []
        shared: list[Item] = []
        seconds = math.inf
        for item in items:
            run = run_of(item)
            expected = self._expected(run.node_type)
            if run.recovery_attempts or expected > WAVE_SECONDS / 2:
                waves.append([item])
                continue
            seconds += expected
            if seconds > WAVE_SECONDS or len(shared) >= MOST:
                shared, seconds = [], expected
                waves.append(shared)
            shared.append(item)
        return waves

    def _expected(self, node_type: str) -> float:
        return self._seconds.get(node_type, math.inf)
