"""The workloads as Spanloom workflows, and the one handler they need: it does nothing."""

from __future__ import annotations

from typing import Any

from workloads import Workload

from spanloom.engine import Node, NodeRegistry, Workflow

__all__ = ["registry", "workflow"]

registry = NodeRegistry()


@registry.node("nothing")
def nothing(data: Any) -> None:
    """Take what the parents made, and make nothing."""


def workflow(workload: Workload) -> Workflow:
    """Return the workload's graph; every node waits for all nodes of the stage before."""
    nodes: list[Node] = []
    before: list[str] = []
    for stage, width in enumerate(workload.stages):
        names = [f"n{stage}-{number}" for number in range(width)]
        nodes.extend(Node(id=name, type="nothing", inputs=before) for name in names)
        before = names
    return Workflow(id=workload.name, name=workload.title, nodes=nodes)
