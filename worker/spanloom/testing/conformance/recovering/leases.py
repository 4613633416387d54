"""Conformance: worker leases."""

from __future__ import annotations

import uuid
from datetime import timedelta

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome, Refusal
from spanloom.engine.store.states import NodeStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import fan, graph, single

__all__ = ["Leases"]


class Leases:
    """`WorkerLeases`: registering, renewing, retiring."""

    def test_a_registered_worker_is_listed_with_its_claims(self, store: ExecutionStore, clock: ManualClock) -> None:
        worker = str(uuid.uuid4())
        store.register_worker(
            worker, name="w", host="h", pid=42, queues=["high", "default"], lease_seconds=30, now=clock()
        )
        (lease,) = store.list_workers(now=clock())
        assert (lease.worker_id, lease.name, lease.host, lease.pid) == (worker, "w", "h", 42)
        assert list(lease.queues) == ["high", "default"]
        assert (lease.started_at, lease.lease_until) == (clock(), clock() + timedelta(seconds=30))
        assert lease.running == 0

    def test_the_claims_a_worker_holds_are_counted(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(3))
        driver.run(execution, "split")
        for name in ("w1", "w2"):
            driver.claim(execution, name)
        (lease,) = store.list_workers(now=clock())
        assert lease.running == 2

    def test_live_workers_are_listed_by_name(self, store: ExecutionStore, clock: ManualClock) -> None:
        for name in ("b", "c", "a"):
            StoreDriver(store, clock=clock, name=name)
        short = StoreDriver(store, clock=clock, name="short", lease_seconds=5)
        gone = StoreDriver(store, clock=clock, name="gone")
        store.unregister_worker(gone.worker_id, now=clock())
        assert [lease.name for lease in store.list_workers(now=clock())] == ["a", "b", "c", "short"]
        clock.advance(6)
        assert [lease.name for lease in store.list_workers(now=clock())] == ["a", "b", "c"]
        assert store.renew_lease(short.worker_id, lease_seconds=5, now=clock())
        assert [lease.name for lease in store.list_workers(now=clock())] == ["a", "b", "c", "short"]

    def test_a_renewed_lease_holds_on(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        for _ in range(5):
            clock.advance(50)
            assert store.renew_lease(driver.worker_id, lease_seconds=60, now=clock()) is True
            assert list(store.sweep(heads={}, epoch=0, now=clock()).jobs) == []
        driver.run(execution, "only")

    def test_a_lapsed_lease_can_be_renewed_until_the_sweep_has_released_it(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        clock.advance(61)
        assert store.renew_lease(driver.worker_id, lease_seconds=60, now=clock()) is True
        store.sweep(heads={}, epoch=0, now=clock())
        assert driver.record(execution, node, Outcome.RELEASED).recorded
        clock.advance(61)
        store.sweep(heads={}, epoch=0, now=clock())
        assert store.renew_lease(driver.worker_id, lease_seconds=60, now=clock()) is False
        assert driver.try_claim(execution, "only") is Refusal.RETIRED

    def test_an_unknown_lease_can_not_be_renewed(self, store: ExecutionStore) -> None:
        assert store.renew_lease(str(uuid.uuid4()), lease_seconds=60) is False

    def test_what_a_retired_worker_held_is_queued_again_without_a_loss(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(3))
        driver.run(execution, "split")
        held = {name: driver.claim(execution, name) for name in ("w1", "w2")}
        jobs = store.unregister_worker(driver.worker_id, now=clock())
        assert sorted((job.node_id, job.push) for job in jobs) == [("w1", 2), ("w2", 2)]
        runs = store.get_node_results(execution, ["w1", "w2"])
        assert [(run.status, run.recovery_attempts, run.attempt) for run in runs] == [(NodeStatus.QUEUED, 0, 1)] * 2
        assert not driver.record(execution, held["w1"]).recorded
        other = StoreDriver(store, clock=clock)
        assert other.claim(execution, "w1").fence == held["w1"].fence + 1

    def test_retiring_twice_or_an_unknown_worker_owes_nothing(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.claim(execution, "only")
        assert len(store.unregister_worker(driver.worker_id, now=clock())) == 1
        assert list(store.unregister_worker(driver.worker_id, now=clock())) == []
        assert list(store.unregister_worker(str(uuid.uuid4()), now=clock())) == []

    def test_what_a_retired_worker_held_in_a_failed_execution_is_held(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        a, _ = driver.claim(execution, "a"), driver.claim(execution, "b")
        driver.record(execution, a, Outcome.FAILED)
        assert list(store.unregister_worker(driver.worker_id, now=clock())) == []
        (run,) = store.get_node_results(execution, ["b"])
        assert run.status is NodeStatus.HELD

    def test_what_a_retired_worker_held_in_a_cancelled_execution_stays_cancelled(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.claim(execution, "only")
        store.cancel_execution(execution, now=clock())
        assert list(store.unregister_worker(driver.worker_id, now=clock())) == []
