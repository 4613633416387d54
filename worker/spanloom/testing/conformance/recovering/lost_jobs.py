"""Conformance: queued runs whose job may be lost, judged by the head of their list."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from spanloom.engine.store.port import ExecutionStore, queue_key
from spanloom.engine.store.requests import Outcome, Priority
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single

__all__ = ["Suspects"]


class Suspects:
    """`sweep` over queued runs: a backlog is no loss, a lost job is found, no run starves."""

    def _pushes(
        self, store: ExecutionStore, clock: ManualClock, heads: dict[str, datetime | None], **options: float
    ) -> list[tuple[str, int]]:
        swept = store.sweep(heads=heads, epoch=0, now=clock(), **options)  # type: ignore[arg-type]
        assert swept.moved.get("lost_job", 0) == len(swept.jobs)
        return [(job.execution_id, job.push) for job in swept.jobs]

    def test_a_run_queued_before_an_empty_list_is_pushed_again(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        clock.advance(10)
        assert self._pushes(store, clock, {"default": None}) == [(execution, 2)]

    def test_a_run_queued_long_before_the_head_is_pushed_again(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        clock.advance(10)
        assert self._pushes(store, clock, {"default": clock() - timedelta(seconds=5)}) == [(execution, 2)]

    def test_a_backlog_is_no_loss(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        head = clock()
        clock.advance(1)
        driver.start(single())
        clock.advance(3600)
        assert self._pushes(store, clock, {"default": head}) == []

    def test_a_type_with_a_list_of_its_own_is_judged_by_the_head_of_that(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        head = clock()
        clock.advance(1)
        execution = driver.start(single())
        node_type = driver.jobs[-1].node_type
        clock.advance(60)
        assert self._pushes(store, clock, {"default": None, f"default@{node_type}": head}) == []
        clock.advance(300)
        later: dict[str, datetime | None] = {"default": head, f"default@{node_type}": clock()}
        assert self._pushes(store, clock, {"default": head, "default@another": clock()}) == []
        clock.advance(300)
        assert self._pushes(store, clock, later) == [(execution, 2)]

    def test_a_head_within_the_slack_is_no_loss(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        driver.start(single())
        head = clock() + timedelta(seconds=1.5)
        clock.advance(60)
        assert self._pushes(store, clock, {"default": head}, lost_job_after_seconds=2.0) == []

    def test_a_run_just_pushed_is_no_loss_though_its_list_is_empty(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        driver.start(single())
        clock.advance(1.5)
        assert self._pushes(store, clock, {"default": None}, lost_job_after_seconds=2.0) == []

    def test_a_list_that_was_not_looked_at_is_not_judged(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        driver.start(single(queue="elsewhere"))
        clock.advance(60)
        assert self._pushes(store, clock, {"default": None}) == []

    @pytest.mark.parametrize("priority", list(Priority))
    def test_each_priority_has_a_list_of_its_own(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, priority: Priority
    ) -> None:
        execution = driver.start(single(), priority=priority)
        clock.advance(10)
        others: dict[str, datetime | None] = {
            queue_key("default", other): None for other in Priority if other is not priority
        }
        assert self._pushes(store, clock, others) == []
        clock.advance(3600)
        assert self._pushes(store, clock, {queue_key("default", priority): None}) == [(execution, 2)]

    def test_suspicion_backs_off(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        driver.start(single())
        gaps: list[float] = []
        last = clock()
        for _ in range(240):
            clock.advance(1)
            if self._pushes(store, clock, {"default": None}):
                gaps.append((clock() - last).total_seconds())
                last = clock()
        assert len(gaps) >= 3, "a lost job is pushed again and again, not once"
        assert gaps == sorted(gaps), f"the gaps between pushes grow: {gaps}"
        assert gaps[-1] >= 4 * gaps[0], f"the gaps between pushes double: {gaps}"

    def test_pushes_for_other_reasons_do_not_delay_suspicion(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        # given a run that was pushed anew in each of eight epochs of Redis
        driver.start(single())
        for epoch in range(1, 9):
            clock.advance(1)
            assert len(store.sweep(heads={}, epoch=epoch, now=clock()).jobs) == 1
        # when its job is lost, and lost again
        pushes = 0
        for _ in range(12):
            clock.advance(1)
            pushes += len(store.sweep(heads={"default": None}, epoch=8, now=clock()).jobs)
        # then it was pushed as early as any other: 2 and 6 seconds after
        assert pushes == 2

    def test_a_backlog_that_was_looked_at_lets_others_have_their_turn(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        # given twenty runs in a backlog, and then one whose job was lost
        head = clock()
        for _ in range(20):
            driver.start(single())
        clock.advance(1)
        lost = driver.start(single("lost", queue="lost"))
        clock.advance(60)
        # when a sweep checks five rows at a time
        found: list[tuple[str, int]] = []
        for _ in range(6):
            found.extend(self._pushes(store, clock, {"default": head, "lost": None}, limit=5))
        # then the lost one has had its turn, once
        assert found == [(lost, 2)]

    def test_a_row_that_was_looked_at_is_due_later(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        driver.start(single())
        head = clock()
        clock.advance(60)
        self._pushes(store, clock, {"default": head})
        due = store.next_due()
        assert due is not None
        assert due > clock()

    def test_a_run_given_back_is_judged_by_its_last_push(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        clock.advance(30)
        driver.run(execution, "only", Outcome.RELEASED)
        assert self._pushes(store, clock, {"default": clock()}) == []
        clock.advance(30)
        assert self._pushes(store, clock, {"default": None}) == [(execution, 3)]

    def test_a_job_pushed_again_can_be_claimed_and_the_older_one_finds_it_taken(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        clock.advance(10)
        swept = store.sweep(heads={"default": None}, epoch=0, now=clock())
        driver.jobs.extend(swept.jobs)  # now twice in the queue
        assert driver.drain() == ["only"]
        (run,) = store.get_node_results(execution)
        assert (run.attempt, run.recovery_attempts) == (1, 0)
