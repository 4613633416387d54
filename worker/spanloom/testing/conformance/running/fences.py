"""Conformance: the fence, and records sent again."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from spanloom.engine.store.models import Event, LogRecord, NodeRun
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LogLine, Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, fan, single

__all__ = ["Fences", "Replays"]


def _seen(store: ExecutionStore, execution: str) -> tuple[Any, list[NodeRun], list[Event], list[LogRecord], Any]:
    """The readable state of an execution."""
    return (
        store.get_execution(execution),
        store.get_node_results(execution),
        store.get_events(execution),
        store.get_logs(execution),
        store.get_trace(execution),
    )


class Fences:
    """`record` without a valid claim writes nothing."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda record: record._replace(fence=record.fence + 1),
            lambda record: record._replace(fence=record.fence - 1),
            lambda record: record._replace(worker_id=str(uuid.uuid4())),
            lambda record: record._replace(node_id="n2"),
            lambda record: record._replace(node_id="other"),
            lambda record: record._replace(item=1),
            lambda record: record._replace(execution_id=str(uuid.uuid4())),
            lambda record: record._replace(execution_id="no such thing"),
        ],
        ids=[
            "later fence",
            "earlier fence",
            "other worker",
            "pending node",
            "other node",
            "item",
            "execution",
            "no id",
        ],
    )
    def test_a_record_that_does_not_match_the_claim_writes_nothing(
        self,
        store: ExecutionStore,
        driver: StoreDriver,
        clock: ManualClock,
        change: Callable[[RecordRequest], RecordRequest],
    ) -> None:
        execution = driver.start(chain(2))
        node = driver.claim(execution, "n1")
        good = driver.outcome(execution, node, logs=[LogLine("info", "said", clock())], successors=("n2",))
        before = _seen(store, execution)
        refused = driver.send(change(good))
        assert (refused.recorded, list(refused.jobs), refused.next, refused.ended) == (False, [], None, None)
        assert _seen(store, execution) == before
        assert driver.send(good).recorded

    @pytest.mark.parametrize("outcome", list(Outcome))
    def test_a_lost_claim_is_not_recorded(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, outcome: Outcome
    ) -> None:
        execution = driver.start(chain(2))
        lost = driver.claim(execution, "n1")
        store.unregister_worker(driver.worker_id, now=clock())
        successor = StoreDriver(store, clock=clock)
        held = successor.claim(execution, "n1")
        before = _seen(store, execution)
        fields = {"wait_kind": WaitKind.TIMER} if outcome is Outcome.WAITING else {}
        assert not driver.record(execution, lost, outcome, data="stale", **fields).recorded
        assert _seen(store, execution) == before
        assert successor.record(execution, held, data="good").recorded
        (run,) = store.get_node_results(execution, ["n1"])
        assert run.data == "good"

    def test_a_lost_claim_is_not_recorded_after_its_successor_has_ended_the_run(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(chain(2))
        lost = driver.claim(execution, "n1")
        store.unregister_worker(driver.worker_id, now=clock())
        StoreDriver(store, clock=clock).run(execution, "n1", data="good")
        before = _seen(store, execution)
        assert not driver.record(execution, lost, data="stale").recorded
        assert _seen(store, execution) == before

    def test_a_claim_of_this_worker_before_it_gave_the_run_back_is_stale(self, driver: StoreDriver) -> None:
        execution = driver.start(single())
        first = driver.claim(execution, "only")
        driver.record(execution, first, Outcome.RELEASED)
        second = driver.claim(execution, "only")
        assert not driver.record(execution, first).recorded
        assert driver.record(execution, second).recorded

    def test_a_claim_holds_until_the_sweep_has_released_it(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        clock.advance(3600)
        assert driver.record(execution, node).recorded

    def test_one_stale_record_fails_itself_and_not_its_batch(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(3))
        driver.run(execution, "split")
        nodes = [driver.claim(execution, name) for name in ("w1", "w2", "w3")]
        records = [driver.outcome(execution, node) for node in nodes]
        records[1] = records[1]._replace(fence=records[1].fence + 7)
        answers = store.record(records, now=clock())
        assert [answer.recorded for answer in answers] == [True, False, True]
        statuses = [run.status for run in store.get_node_results(execution, ["w1", "w2", "w3"])]
        assert statuses == [NodeStatus.COMPLETED, NodeStatus.RUNNING, NodeStatus.COMPLETED]


class Replays:
    """`record` sent again after a lost answer returns the same continuation and writes nothing."""

    def _same_again(self, store: ExecutionStore, driver: StoreDriver, record: RecordRequest) -> RecordResult:
        first = store.record([record], now=driver.now())[0]
        before = _seen(store, record.execution_id)
        again = store.record([record], now=driver.now())[0]
        assert again.recorded
        assert sorted(again.jobs, key=lambda job: job.node_id) == sorted(first.jobs, key=lambda job: job.node_id)
        assert (again.next, again.ended) == (first.next, first.ended)
        assert _seen(store, record.execution_id) == before
        return first

    def test_it_answers_the_same_jobs(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(fan(3))
        record = driver.outcome(execution, driver.claim(execution, "split"), logs=[LogLine("info", "once", clock())])
        assert len(self._same_again(store, driver, record).jobs) == 3

    @pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.WAITING, Outcome.RELEASED])
    def test_one_that_ends_no_run_may_come_twice_in_one_call(
        self, store: ExecutionStore, driver: StoreDriver, outcome: Outcome
    ) -> None:
        execution = driver.start(single())
        record = driver.outcome(execution, driver.claim(execution, "only"), outcome, delay_seconds=5.0)
        answers = store.record([record, record], now=driver.now())
        assert [answer.recorded for answer in answers] == [True, True]
        kinds = [event.kind for event in store.get_events(execution) if event.node_id == "only"]
        kind = {"retry": "node.retrying", "waiting": "node.waiting", "released": "node.released"}[outcome]
        assert kinds.count(kind) == 1

    def test_it_answers_the_same_claimed_successor(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(fan(3))
        record = driver.outcome(execution, driver.claim(execution, "split"), data=[1], successors=("w1", "w2"))
        first = self._same_again(store, driver, record)
        assert first.next is not None
        assert driver.record(execution, first.next).recorded

    def test_it_answers_the_same_end(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        record = driver.outcome(execution, driver.claim(execution, "only"), data=1)
        assert self._same_again(store, driver, record).ended is ExecutionStatus.COMPLETED

    def test_a_failure_is_answered_again(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(3))
        record = driver.outcome(execution, driver.claim(execution, "n1"), Outcome.FAILED)
        assert self._same_again(store, driver, record).ended is ExecutionStatus.FAILED

    def test_a_skip_is_answered_again(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(fan(2))
        self._same_again(store, driver, driver.outcome(execution, driver.claim(execution, "split"), Outcome.SKIPPED))

    @pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.WAITING, Outcome.RELEASED])
    def test_what_leaves_the_run_open_is_answered_again(
        self, store: ExecutionStore, driver: StoreDriver, outcome: Outcome
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        wait = WaitKind.TIMER if outcome is Outcome.WAITING else None
        self._same_again(store, driver, driver.outcome(execution, node, outcome, delay_seconds=9, wait_kind=wait))

    def test_a_record_twice_in_one_call_counts_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(2))
        driver.run(execution, "split")
        record = driver.outcome(execution, driver.claim(execution, "w1"))
        answers = store.record([record, record], now=clock())
        assert [answer.recorded for answer in answers] == [True, True]
        assert list(answers[0].jobs) == list(answers[1].jobs) == []
        (job,) = driver.run(execution, "w2").jobs
        assert job.node_id == "join"

    def test_arrivals_of_a_record_sent_again_are_not_counted_again(self, driver: StoreDriver) -> None:
        execution = driver.start(fan(3))
        driver.run(execution, "split")
        record = driver.outcome(execution, driver.claim(execution, "w1"))
        for _ in range(5):
            assert driver.send(record).recorded
        assert list(driver.run(execution, "w2").jobs) == []
        (job,) = driver.run(execution, "w3").jobs
        assert job.node_id == "join"

    def test_another_outcome_under_a_used_fence_is_refused(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        node = driver.claim(execution, "n1")
        driver.record(execution, node, data="good")
        before = _seen(store, execution)
        assert not driver.record(execution, node, Outcome.FAILED).recorded
        assert not driver.record(execution, node, Outcome.RELEASED).recorded
        assert _seen(store, execution) == before

    def test_a_successor_that_has_ended_is_not_given_again(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(3))
        record = driver.outcome(execution, driver.claim(execution, "n1"), successors=("n2",))
        first = driver.send(record)
        assert first.next is not None
        driver.record(execution, first.next)
        again = driver.send(record)
        assert (again.recorded, again.next) == (True, None)
