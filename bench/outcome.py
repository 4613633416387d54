"""What a run of the bench found: every figure of every round, and what follows from them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from systems import System
from workloads import Workload

__all__ = ["Outcome"]

_YARDSTICKS = ("bullmq", "rq-simple")  #: the first of these that was measured is what the others are compared with


@dataclass
class Outcome:
    """The systems that were measured, with the figure of each round by system and workload."""

    systems: list[System]
    workloads: list[Workload]
    rounds: int
    ground: dict[str, Any]
    figures: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  #: why, by the title of a system that could not be run

    def leave_out(self, system: System, reason: str) -> None:
        """Go on without a system."""
        self.systems.remove(system)
        self.left_out[system.title] = reason
        for workload in self.workloads:
            self.figures.pop((system.name, workload.name), None)

    @property
    def yardstick(self) -> System | None:
        """The system that every other one is compared with."""
        measured = {system.name: system for system in self.systems}
        return next((measured[name] for name in _YARDSTICKS if name in measured), None)

    def median(self, system: System, workload: Workload) -> float:
        """Return a figure's median over the rounds."""
        return statistics.median(self.figures[system.name, workload.name])

    def spread(self, system: System, workload: Workload) -> tuple[float, float]:
        """Return a figure's least and its greatest value."""
        found = self.figures[system.name, workload.name]
        return min(found), max(found)

    def ratio(self, system: System, workload: Workload) -> float | None:
        """Return a median divided by the yardstick's; of latencies, too."""
        if self.yardstick is None:
            return None
        return self.median(system, workload) / self.median(self.yardstick, workload)

    @property
    def widest(self) -> float:
        """By how much, of the least, the rounds of one figure differ at most."""
        return max(max(found) / min(found) for found in self.figures.values()) - 1
