"""The store away when a lease is renewed: the worker asks again soon, not a third of a lease later."""

from __future__ import annotations

import threading
from datetime import datetime

from spanloom.engine import NodeRegistry, StoreUnavailable, WorkflowEngine
from spanloom.stores import InMemoryExecutionStore

LEASE_SECONDS = 300.0
SOON_SECONDS = 20.0  # far less than the hundred seconds of a regular turn


class AwayOnce(InMemoryExecutionStore):
    """A store that does not answer the first renewal."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.renewed = threading.Event()

    def renew_lease(self, worker_id: str, *, lease_seconds: float, now: datetime | None = None) -> bool:
        self.asked += 1
        if self.asked == 1:
            raise StoreUnavailable("away")
        self.renewed.set()
        return super().renew_lease(worker_id, lease_seconds=lease_seconds, now=now)


def test_a_lease_that_could_not_be_renewed_is_renewed_soon_after(redis_url: str) -> None:
    store = AwayOnce()
    with WorkflowEngine(NodeRegistry(), store, redis_url) as engine, engine.start_workers(lease_seconds=LEASE_SECONDS):
        assert store.renewed.wait(SOON_SECONDS)
