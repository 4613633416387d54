"""The store away when leases are renewed: a worker asks again soon, and no sweep takes what it runs before it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import datetime

import pytest

from spanloom.engine import NodeContext, NodeRegistry, StoreUnavailable, Workflow, WorkflowEngine
from spanloom.engine.store.requests import SweepResult
from spanloom.stores import InMemoryExecutionStore
from spanloom.worker import lease, sweeper

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


class AwayForALease(InMemoryExecutionStore):
    """A store that answers no renewal and no sweep until it is back; a renewal comes half a second later than that."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.back_at = 0.0

    def health(self) -> None:
        self._answer()

    def renew_lease(self, worker_id: str, *, lease_seconds: float, now: datetime | None = None) -> bool:
        self._answer()
        if time.monotonic() < self.back_at + 0.5:
            raise StoreUnavailable("not yet")
        return super().renew_lease(worker_id, lease_seconds=lease_seconds, now=now)

    def sweep(
        self,
        *,
        heads: Mapping[str, datetime | None],
        epoch: int,
        limit: int = 500,
        lost_job_after_seconds: float = 2.0,
        now: datetime | None = None,
    ) -> SweepResult:
        self._answer()
        return super().sweep(
            heads=heads, epoch=epoch, limit=limit, lost_job_after_seconds=lost_job_after_seconds, now=now
        )

    def come_back(self) -> None:
        self.back_at = time.monotonic()
        self.away = False

    def _answer(self) -> None:
        if self.away:
            raise StoreUnavailable("away")


def test_an_outage_that_outlasts_a_lease_costs_no_worker_its_nodes(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lease._AGAIN_SECONDS < sweeper._RENEWAL_SECONDS  # or a renewal after one that failed would come too late
    monkeypatch.setattr(sweeper, "_RENEWAL_SECONDS", 20.0)  # a busy machine renews late
    store, registry = AwayForALease(), NodeRegistry()
    entered, leave = threading.Event(), threading.Event()

    @registry.node("long")
    def long(ctx: NodeContext) -> int:
        entered.set()
        leave.wait(60)
        return ctx.attempt

    with WorkflowEngine(registry, store, redis_url) as engine:
        engine.register_workflow(Workflow.model_validate({"id": "w", "nodes": [{"id": "a", "type": "long"}]}))
        with engine.start_workers(2, lease_seconds=2.0):
            execution_id = engine.enqueue_workflow("w")
            assert entered.wait(30)
            store.away = True
            _until_lapsed(store)
            store.come_back()
            _until_renewed(store)
            leave.set()
            assert engine.wait(execution_id, timeout=30).output == 1
        (run,) = store.get_node_results(execution_id)
        assert run.recovery_attempts == 0


def _until_lapsed(store: InMemoryExecutionStore) -> None:
    pause = threading.Event()
    while store.list_workers():  # those that are live
        pause.wait(0.05)


def _until_renewed(store: InMemoryExecutionStore) -> None:
    pause = threading.Event()
    while len(store.list_workers()) < 2:
        pause.wait(0.05)
