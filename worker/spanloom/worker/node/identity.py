"""The worker that runs nodes, as its parts know it."""

from __future__ import annotations

from dataclasses import dataclass

from spanloom.worker.lease import Lease
from spanloom.worker.node.shortages import Shortages
from spanloom.worker.options import WorkerOptions

__all__ = ["WorkerIdentity"]


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """The worker that runs nodes: how it works, and the lease that it claims under."""

    options: WorkerOptions
    lease: Lease
    shortages: Shortages
