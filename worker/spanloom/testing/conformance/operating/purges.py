"""Conformance: purging: the families and the rows that are deleted, and those that stay."""

from __future__ import annotations

from datetime import datetime

import pytest

from spanloom.engine.errors import InvalidArgument, UnknownExecution
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LogLine, Outcome, PurgeResult, StartResult
from spanloom.engine.store.states import ExecutionStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import everything_of, status_of
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, single

__all__ = ["Purges"]

ENDED = (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED)


class Purges:
    """`purge_executions`."""

    def purge(
        self,
        store: ExecutionStore,
        ended_before: datetime,
        statuses: tuple[ExecutionStatus, ...] = ENDED,
        limit: int = 500,
    ) -> PurgeResult:
        return store.purge_executions(ended_before=ended_before, statuses=statuses, limit=limit, now=ended_before)

    def test_what_ended_before_goes_with_all_that_was_kept_of_it(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(chain(2), metadata={"k": "v"})
        store.add_log(execution, LogLine("info", "said", clock()))
        driver.fan_out(execution, "n1", ["x"])
        driver.jobs.clear()
        driver.run(execution, "n1", item=1)
        driver.run(execution, "n1")
        driver.run(execution, "n2")
        clock.advance(10)
        kept = driver.start("chain", metadata={"k": "v"})
        assert self.purge(store, clock()) == PurgeResult(1, 0)
        assert store.get_execution(execution) is None
        assert everything_of(store, execution) == [None, [], [], [], []]
        assert store.get_attempts(execution, "n1") == []
        assert [found.id for found in store.list_executions(ExecutionFilter(metadata={"k": "v"})).items] == [kept]
        assert self.purge(store, clock()) == PurgeResult(0, 0)

    def test_what_ended_later_or_has_another_status_stays(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(single())
        ids = [driver.start("single") for _ in range(4)]
        driver.run(ids[0], "only")
        driver.run(ids[1], "only", Outcome.FAILED)
        driver.cancel(ids[2])
        cut = clock.advance(5)
        late = driver.start("single")
        driver.run(late, "only")
        clock.advance(5)
        assert self.purge(store, cut, (ExecutionStatus.COMPLETED,)).executions == 1
        assert [store.get_execution(member) is None for member in (*ids, late)] == [True, False, False, False, False]
        assert self.purge(store, cut).executions == 2
        assert [store.get_execution(member) is None for member in (*ids, late)] == [True, True, True, False, False]
        assert status_of(store, ids[3]) is ExecutionStatus.RUNNING

    def test_a_family_goes_whole_or_not_at_all(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        parent = driver.start(chain(2, "outer"))
        child = driver.start_child(parent, "n1", chain(1, "inner"))
        grandchild = driver.start_child(child, "n1", single())
        store.fail_execution(parent, "{}", now=driver.now())  # its descendants run on
        clock.advance(10)
        assert self.purge(store, clock()).executions == 0
        driver.run(grandchild, "only")
        driver.wake(grandchild)
        driver.run(child, "n1")
        assert self.purge(store, clock()).executions == 0  # they ended just now
        clock.advance(1)
        assert self.purge(store, clock()).executions == 3
        assert [store.get_execution(member) for member in (parent, child, grandchild)] == [None, None, None]

    def test_it_goes_in_batches_the_oldest_first(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(single())
        ids = []
        for _ in range(7):
            ids.append(driver.start("single"))
            driver.run(ids[-1], "only")
            clock.advance(1)
        assert self.purge(store, clock(), limit=3) == PurgeResult(3, 0, more=True)
        assert [store.get_execution(member) is None for member in ids] == [True] * 3 + [False] * 4
        assert self.purge(store, clock(), limit=5) == PurgeResult(4, 0, more=False)

    def test_old_families_that_must_stay_do_not_keep_younger_ones(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(single())
        for number in range(5):
            parent = driver.start(single(f"outer{number}"))
            driver.start_child(parent, "only", "single")
            store.fail_execution(parent, "{}", now=driver.now())
        clock.advance(1)
        young = driver.start("single")
        driver.run(young, "only")
        clock.advance(1)
        assert self.purge(store, clock(), limit=1).executions == 1
        assert store.get_execution(young) is None

    def test_a_family_larger_than_the_limit_goes_at_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        parent = driver.start(single("outer"))
        store.save_workflow(single())
        driver.fan_out(parent, "only", list(range(4)))
        for item in range(1, 5):
            child = driver.start_child(parent, "only", "single", item=item)
            driver.run(child, "only")
            driver.wake(child)
            driver.run(parent, "only", item=item)
        driver.run(parent, "only")
        clock.advance(1)
        assert self.purge(store, clock(), limit=1) == PurgeResult(5, 0, more=True)
        assert store.get_execution_count() == 0

    def test_its_idempotency_key_is_free_again(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        key = {"idempotency_key": "k", "input_hash": "h"}
        execution = driver.start(single(), **key)
        driver.run(execution, "only")
        clock.advance(1)
        assert self.purge(store, clock()) == PurgeResult(1, 1)
        again = store.create_execution(request("single", **key), now=clock())
        assert isinstance(again, StartResult)
        assert (again.created, again.execution_id == execution) == (True, False)

    def test_keys_that_have_expired_go_and_their_executions_stay(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(single())
        for number, ttl in enumerate((5.0, 50.0, None)):
            driver.start("single", idempotency_key=f"k{number}", input_hash="h", key_ttl_seconds=ttl)
        clock.advance(10)
        assert self.purge(store, clock()) == PurgeResult(0, 1)
        assert store.get_execution_count() == 3

    def test_only_what_has_ended_can_be_asked_for(self, store: ExecutionStore, clock: ManualClock) -> None:
        with pytest.raises(InvalidArgument, match="running"):
            self.purge(store, clock(), (ExecutionStatus.RUNNING,))

    def test_many_purges_at_once_delete_each_family_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(single())
        for _ in range(20):
            driver.run(driver.start("single"), "only")
        clock.advance(1)
        cut = clock()
        purged = race([lambda: self.purge(store, cut, limit=50).executions for _ in range(4)])
        assert sum(purged) + self.purge(store, cut).executions == 20
        assert store.get_execution_count() == 0

    def test_a_retry_and_a_purge_do_not_meet_half_way(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(single())
        for _ in range(10):
            execution = driver.start("single")
            driver.run(execution, "only", Outcome.FAILED)
            cut = clock.advance(1)

            def retry(execution: str = execution) -> bool:
                try:
                    return store.retry_execution(execution, now=clock()).done
                except UnknownExecution:
                    return False

            retried, purged = race([retry, lambda cut=cut: self.purge(store, cut).executions == 1])  # type: ignore[misc]
            assert retried is not purged
            assert (store.get_execution(execution) is None) is purged
