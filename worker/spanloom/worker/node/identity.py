"""The worker that runs nodes, as its parts know it."""

from __future__ import annotations

from dataclasses import dataclass

from spanloom.worker.lease import Lease
from spanloom.worker.node.shortages import Shortages
from spanloom.worker.options import WorkerOptions
from spanloom.worker.watch.recycling import Recycling

__all__ = ["WorkerIdentity"]


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """The worker that runs nodes: how it works, the lease that it claims under, and when its process is replaced."""

    options: WorkerOptions
    lease: Lease
    shortages: Shortages
    recycling: Recycling
