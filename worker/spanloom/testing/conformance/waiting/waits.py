"""Conformance: runs that wait for a timer and go on from there, and the lifetime of their wait kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from spanloom.engine.errors import IdempotencyConflict, StoreRefused
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import FanOut, NodeKey, Outcome
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import everything_of, run_of, status_of
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, graph, single

__all__ = ["WaitRules", "Waits"]


def _give_back(driver: StoreDriver, clock: ManualClock, execution: str) -> None:
    driver.run(execution, "only", Outcome.RELEASED)


def _lose_worker(driver: StoreDriver, clock: ManualClock, execution: str) -> None:
    StoreDriver(driver.store, clock=clock, lease_seconds=5).claim(execution, "only")
    clock.advance(6)
    assert [job.node_id for job in driver.sweep().jobs] == ["only"]


def _retire_worker(driver: StoreDriver, clock: ManualClock, execution: str) -> None:
    other = StoreDriver(driver.store, clock=clock)
    other.claim(execution, "only")
    driver.store.unregister_worker(other.worker_id, now=clock())


def _hold_while_queued(driver: StoreDriver, clock: ManualClock, execution: str) -> None:
    driver.pause(execution)
    assert run_of(driver.store, execution, "only").status is NodeStatus.HELD
    driver.resume(execution)


def _hold_while_running(driver: StoreDriver, clock: ManualClock, execution: str) -> None:
    node = driver.claim(execution, "only")
    driver.pause(execution)
    driver.record(execution, node, Outcome.RELEASED)
    assert run_of(driver.store, execution, "only").status is NodeStatus.HELD
    driver.resume(execution)


class Waits:
    """WAITING for a timer, by a delay or until a time, and the claim that follows."""

    def test_a_first_claim_was_woken_by_nothing(self, driver: StoreDriver) -> None:
        node = driver.claim(driver.start(single()), "only")
        assert (node.woken, node.wait_key) == (None, None)

    def test_a_run_may_wait_until_a_time(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        until = clock() + timedelta(seconds=30)
        driver.wait(execution, driver.claim(execution, "only"), due_at=until, delay_seconds=5)
        run = run_of(store, execution, "only")
        assert (run.status, run.wait_kind, run.due_at) == (NodeStatus.WAITING, WaitKind.TIMER, until)
        clock.advance(29)
        assert list(driver.sweep().jobs) == []
        clock.advance(2)
        assert [(job.node_id, job.push) for job in driver.sweep().jobs] == [("only", 2)]

    def test_a_time_that_has_passed_is_due_at_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.wait(execution, driver.claim(execution, "only"), due_at=clock() - timedelta(days=1))
        assert run_of(store, execution, "only").status is NodeStatus.WAITING
        assert [job.node_id for job in driver.sweep().jobs] == ["only"]

    @pytest.mark.parametrize("wait_key", [None, "tea"])
    def test_a_run_that_was_woken_is_claimed_with_what_woke_it(
        self, driver: StoreDriver, clock: ManualClock, wait_key: str | None
    ) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1", data={"cups": 2})
        first = driver.claim(execution, "n2")
        driver.wait(execution, first, delay_seconds=3, wait_key=wait_key)
        clock.advance(4)
        driver.sweep()
        node = driver.claim(execution, "n2")
        assert (node.woken, node.wait_key, node.attempt, node.fence) == (WaitKind.TIMER, wait_key, 1, first.fence + 1)
        assert dict(node.results) == {"n1": '{"cups": 2}'}
        assert not driver.record(execution, first).recorded
        assert driver.record(execution, node).ended is ExecutionStatus.COMPLETED

    @pytest.mark.parametrize(
        "interrupt", [_give_back, _lose_worker, _retire_worker, _hold_while_queued, _hold_while_running]
    )
    def test_what_woke_a_run_is_kept_until_its_next_record(
        self,
        driver: StoreDriver,
        clock: ManualClock,
        interrupt: Callable[[StoreDriver, ManualClock, str], None],
    ) -> None:
        # given a run that was woken by its timer
        execution = driver.start(single())
        driver.wait(execution, driver.claim(execution, "only"), delay_seconds=3, wait_key="tea")
        clock.advance(4)
        driver.sweep()
        # when it is claimed again and again without a record
        for _ in range(2):
            interrupt(driver, clock, execution)
        # then the next claim still has it
        node = StoreDriver(driver.store, clock=clock).claim(execution, "only")
        assert (node.woken, node.wait_key) == (WaitKind.TIMER, "tea")

    def test_a_retry_forgets_what_woke_the_run(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.wait(execution, driver.claim(execution, "only"), delay_seconds=3, wait_key="tea")
        clock.advance(4)
        driver.sweep()
        driver.run(execution, "only", Outcome.RETRY, delay_seconds=1)
        assert run_of(store, execution, "only").wait_key is None
        clock.advance(2)
        driver.sweep()
        node = driver.claim(execution, "only")
        assert (node.attempt, node.woken, node.wait_key) == (2, None, None)

    def test_a_retry_in_a_failed_execution_forgets_too(self, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(graph("two", {"a": [], "only": []}))
        driver.wait(execution, driver.claim(execution, "only"), delay_seconds=3, wait_key="tea")
        clock.advance(4)
        driver.sweep()
        node = driver.claim(execution, "only")
        assert node.woken is WaitKind.TIMER
        driver.run(execution, "a", Outcome.FAILED)
        driver.record(execution, node, Outcome.RETRY, delay_seconds=1)
        driver.retry(execution)
        again = driver.claim(execution, "only")
        assert (again.attempt, again.woken, again.wait_key) == (2, None, None)

    def test_a_run_may_wait_again_for_another_timer(self, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        for wait_key in ("tea", "coffee", None):
            driver.wait(execution, driver.claim(execution, "only"), delay_seconds=3, wait_key=wait_key)
            clock.advance(4)
            driver.sweep()
            node = driver.claim(execution, "only")
            assert (node.woken, node.wait_key) == (WaitKind.TIMER, wait_key)
            driver.record(execution, node, Outcome.RELEASED)

    def test_a_claim_of_a_woken_run_that_is_sent_again_says_the_same(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.wait(execution, driver.claim(execution, "only"), delay_seconds=3, wait_key="tea")
        clock.advance(4)
        (job,) = driver.sweep().jobs
        keys = [NodeKey(job.execution_id, job.node_id, job.item)]
        first = store.claim(keys, worker_id=driver.worker_id, token="t", now=clock())
        again = store.claim(keys, worker_id=driver.worker_id, token="t", now=clock())
        assert again == first
        assert driver.try_claim(execution, "only") not in first

    def test_a_wait_sent_again_after_it_is_over_is_answered_and_writes_nothing(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        record = driver.outcome(execution, node, Outcome.WAITING, wait_kind=WaitKind.TIMER, delay_seconds=3)
        driver.send(record)
        clock.advance(4)
        driver.sweep()
        driver.claim(execution, "only")
        before = everything_of(store, execution)
        again = driver.send(record)
        assert (again.recorded, list(again.jobs), again.next) == (True, [], None)
        assert everything_of(store, execution) == before

    def test_a_timer_that_fires_in_a_failed_execution_is_not_forgotten_by_its_retry(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(graph("two", {"a": [], "b": []}))
        driver.wait(execution, driver.claim(execution, "b"), delay_seconds=3, wait_key="tea")
        driver.run(execution, "a", Outcome.FAILED)
        clock.advance(4)
        driver.sweep()
        assert run_of(store, execution, "b").status is NodeStatus.HELD
        driver.retry(execution)
        node = driver.claim(execution, "b")
        assert (node.woken, node.wait_key) == (WaitKind.TIMER, "tea")

    def test_a_cancel_ends_a_wait(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        driver.wait(execution, driver.claim(execution, "only"), delay_seconds=3)
        driver.cancel(execution)
        clock.advance(4)
        assert list(driver.sweep().jobs) == []
        assert (status_of(store, execution), store.next_due()) == (ExecutionStatus.CANCELLED, None)


class WaitRules:
    """The valid records of a wait, and the answer to one that is sent again."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"wait_kind": WaitKind.RETRY},
            {"wait_kind": WaitKind.CHILD, "wait_key": "child"},
            {"wait_kind": WaitKind.ITEMS},
            {"wait_kind": WaitKind.ITEMS, "fan_out": FanOut((), 1, 0)},
        ],
    )
    def test_a_wait_for_nothing_is_refused(
        self, store: ExecutionStore, driver: StoreDriver, fields: dict[str, Any]
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        with pytest.raises(StoreRefused, match=f"'only', item 0, of execution {execution} can't wait for"):
            driver.record(execution, node, Outcome.WAITING, **fields)
        assert store.get_node_results(execution)[0].status is NodeStatus.RUNNING
        assert driver.record(execution, node).ended

    def test_an_item_is_not_mapped_again(self, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x"])
        with pytest.raises(StoreRefused, match=r"'only', item 1, of execution .* can't wait for items"):
            driver.send(driver.fanning_out(execution, driver.claim(execution, "only", 1), ["y"]))

    def test_a_child_that_was_started_before_is_refused(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent, other = driver.start(chain(2)), driver.start(single())
        wanted = replace(request("single"), execution_id=other)
        with pytest.raises(StoreRefused, match=f"can't start execution {other} as its child"):
            driver.send(driver.waiting_for_child(parent, driver.claim(parent, "n1"), wanted))
        assert store.get_child_executions(parent) == []

    def test_a_child_whose_key_is_used_is_refused(self, driver: StoreDriver) -> None:
        parent = driver.start(chain(2))
        used = driver.start(single(), idempotency_key="k", input_hash="h")
        node = driver.claim(parent, "n1")
        for input_hash, error in (("h", StoreRefused), ("other", IdempotencyConflict)):
            wanted = request("single", idempotency_key="k", input_hash=input_hash)
            with pytest.raises(error, match=used):
                driver.send(driver.waiting_for_child(parent, node, wanted))

    def test_a_node_that_is_mapped_anew_forgets_its_earlier_items(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["a", "b", "c"])
        for item in (1, 2, 3):
            driver.run(execution, "only", item=item)
        driver.fan_out(execution, "only", ["x", "y"])
        assert [(run.item, run.status) for run in store.get_node_results(execution)] == [
            (0, NodeStatus.WAITING),
            (1, NodeStatus.QUEUED),
            (2, NodeStatus.QUEUED),
        ]
        assert [driver.claim(execution, "only", item).data for item in (1, 2)] == ['"x"', '"y"']

    def test_a_wait_that_is_sent_again_after_its_run_was_reset_is_stale(self, driver: StoreDriver) -> None:
        execution = driver.start(graph("two", {"a": [], "b": ["a"], "c": []}))
        driver.run(execution, "a", Outcome.FAILED, taken=("b",))
        node = driver.claim(execution, "b")
        wait = driver.outcome(execution, node, Outcome.WAITING, wait_kind=WaitKind.TIMER, delay_seconds=9)
        assert driver.send(wait).recorded
        assert driver.send(wait).recorded
        driver.run(execution, "c", Outcome.FAILED)
        driver.retry(execution)
        assert not driver.send(wait).recorded
