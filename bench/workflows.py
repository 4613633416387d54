"""The workloads as Spanloom workflows, and the handlers they need: one does nothing, one waits."""

from __future__ import annotations

import asyncio
from typing import Any

from workloads import Workload

from spanloom.engine import Node, NodeRegistry, Workflow

__all__ = ["WAIT_SECONDS", "registry", "workflow"]

WAIT_SECONDS = 0.02

registry = NodeRegistry()


@registry.node("nothing")
def nothing(data: Any) -> None:
    """Take what the parents made, and make nothing."""


@registry.node("waits")
async def waits(data: Any) -> None:
    """Wait, as for the answer of a service."""
    await asyncio.sleep(WAIT_SECONDS)


def workflow(workload: Workload) -> Workflow:
    """Return the workload's graph; every node waits for all nodes of the stage before."""
    nodes: list[Node] = []
    before: list[str] = []
    for stage, width in enumerate(workload.stages):
        names = [f"n{stage}-{number}" for number in range(width)]
        nodes.extend(Node(id=name, type=workload.node_type, inputs=before) for name in names)
        before = names
    return Workflow(id=workload.name, name=workload.title, nodes=nodes)
