"""A stall: the reason why a worker gives up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spanloom.worker.node.claim_monitor import RunningNode

__all__ = ["Stall"]


class Stall(NamedTuple):
    """The reason why a worker gives up, and the nodes that may be the cause."""

    reason: str
    blamed: Sequence[RunningNode] = ()  #: lost with this worker
    overdue: Sequence[RunningNode] = ()  #: past their timeouts; the time limit of each is its end
    patient: bool = False  #: the other nodes may end first
    lapses: bool = False  #: the lease is left to lapse: what it holds may be more than what is known to run
