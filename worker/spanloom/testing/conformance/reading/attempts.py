"""Conformance: the history of every attempt, derived from the events."""

from __future__ import annotations

import json

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome
from spanloom.engine.store.states import WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single

__all__ = ["Attempts"]

ERROR = {"type": "ValueError", "message": "no", "traceback": "Traceback: somewhere", "permanent": False}


class Attempts:
    """`get_attempts`: every claim of a node run, with any end."""

    def test_each_claim_is_told_with_its_worker_its_times_and_its_whole_error(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        # given a retry, a wait, a failure for good, and a retry of the execution that completes
        execution = driver.start(single())
        began = clock()
        node = driver.claim(execution, "only")
        clock.advance(2)
        driver.record(execution, node, Outcome.RETRY, error=json.dumps(ERROR), delay_seconds=0)
        driver.sweep()
        driver.run(execution, "only", Outcome.WAITING, wait_kind=WaitKind.TIMER, delay_seconds=0)
        driver.sweep()
        driver.run(execution, "only", Outcome.FAILED, error=json.dumps(ERROR))
        driver.retry(execution)
        last = driver.claim(execution, "only")
        # when it is read while the last one runs, and after it
        running = store.get_attempts(execution, "only")
        driver.record(execution, last, data=1)
        found = store.get_attempts(execution, "only")
        # then
        assert [attempt.ended_as for attempt in running] == ["retrying", "waiting", "failed", None]
        assert [(attempt.attempt, attempt.ended_as) for attempt in found] == [
            (1, "retrying"), (2, "waiting"), (2, "failed"), (1, "completed"),
        ]  # fmt: skip
        assert [attempt.error for attempt in found] == [ERROR, None, ERROR, None]
        assert (found[0].started_at, found[0].ended_at) == (began, clock())
        assert {attempt.worker_id for attempt in found} == {driver.worker_id}

    def test_claims_that_were_given_back_or_lost_are_told(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        lost = StoreDriver(store, clock=clock, lease_seconds=5, name="lost")
        execution = lost.start(single())
        lost.run(execution, "only", Outcome.RELEASED)
        lost.claim(execution, "only")
        clock.advance(6)
        driver.sweep()
        driver.run(execution, "only")
        found = store.get_attempts(execution, "only")
        assert [(attempt.ended_as, attempt.worker_id) for attempt in found] == [
            ("released", lost.worker_id), ("lost", lost.worker_id), ("completed", driver.worker_id),
        ]  # fmt: skip
        assert {attempt.attempt for attempt in found} == {1}

    def test_items_have_their_own_and_what_is_unknown_has_none(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x", "y"])
        driver.record(execution, driver.claim(execution, "only", 2), data=1)
        assert [attempt.ended_as for attempt in store.get_attempts(execution, "only", 2)] == ["completed"]
        assert [attempt.ended_as for attempt in store.get_attempts(execution, "only", 0)] == ["waiting"]
        assert store.get_attempts(execution, "only", 1) == []
        assert store.get_attempts(execution, "other") == []
        assert store.get_attempts("no id", "only") == []
