"""The workloads: which graphs are run, how often, and whether throughput or latency is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["WORKLOADS", "Workload", "quick", "warm_up"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One graph of nodes of one type, run `executions` times: all started at once, or one by one on an idle system.

    `stages` says how many nodes stand side by side, stage after stage; every node waits for all of the stage before.
    """

    name: str
    graph: str
    stages: tuple[int, ...]
    executions: int
    one_by_one: bool = False
    node_type: str = "nothing"

    @property
    def title(self) -> str:
        """What is run, in words."""
        if self.one_by_one:
            return f"{self.graph} on an idle system, from start to visible result, {self.executions:,} times"
        return f"{self.executions:,} times {self.graph}"

    @property
    def nodes(self) -> int:
        """How many nodes all its executions have together."""
        return sum(self.stages) * self.executions

    @property
    def unit(self) -> str:
        """What its figure is in: nodes per second of all executions, or milliseconds of the median one."""
        return "ms p50" if self.one_by_one else "nodes/s"


WORKLOADS = (
    Workload("W1", "a chain of 10", (1,) * 10, 200),
    Workload("W2", "1→50→1", (1, 50, 1), 20),
    Workload("W3", "one node", (1,), 2000),
    Workload("W4", "a chain of 10", (1,) * 10, 30, one_by_one=True),
)


def quick(workload: Workload) -> Workload:
    """Return the workload with a quarter of its executions: for a look, not for a claim."""
    return replace(workload, executions=workload.executions // 4)


def warm_up(workload: Workload) -> Workload:
    """Return half of the workload, to run before it is measured.

    It is for connections, imports and caches, and for Node's compiler, which needs a thousand nodes and more: without
    them BullMQ's first figure was half of its second.
    """
    return replace(workload, executions=max(workload.executions // 2, 1))
