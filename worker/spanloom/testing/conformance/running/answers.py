"""Conformance: each item of a call has an answer of its own, and one that can't be served costs no other its answer."""

from __future__ import annotations

import pytest

from spanloom.engine.errors import SpanloomError, StoreRefused, StoreUnavailable
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, NodeKey, Outcome, Refusal
from spanloom.engine.store.states import ExecutionStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import run_of
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single

__all__ = ["Answers"]

TOO_LARGE = 2**70  #: no store has such an item


class Answers:
    """The answers of a call of which an item can't be served."""

    def test_a_record_that_is_refused_costs_no_other_record_of_its_call_anything(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(single(), now=clock())
        executions = [driver.start("single") for _ in range(3)]
        records = [driver.outcome(one, driver.claim(one, "only")) for one in executions]
        records[1] = records[1]._replace(outcome=Outcome.WAITING, wait_kind=WaitKind.CHILD)  # without a child
        answers = store.record(records, now=clock())
        assert [answer.recorded for answer in answers] == [True, False, True]
        assert [answer.ended for answer in answers] == [ExecutionStatus.COMPLETED, None, ExecutionStatus.COMPLETED]
        assert isinstance(answers[1].error, StoreRefused)
        assert [answers[0].error, answers[2].error] == [None, None]
        assert [run_of(store, one, "only").status for one in executions] == ["completed", "running", "completed"]

    def test_a_record_that_was_refused_leaves_its_claim_as_it_was(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(single(), now=clock())
        executions = [driver.start("single") for _ in range(2)]
        good, bad = (driver.outcome(one, driver.claim(one, "only")) for one in executions)
        refused = bad._replace(outcome=Outcome.WAITING, wait_kind=WaitKind.CHILD)
        store.record([good, refused], now=clock())
        assert driver.send(bad).ended is ExecutionStatus.COMPLETED

    def test_an_error_of_the_only_record_is_raised(self, driver: StoreDriver) -> None:
        execution = driver.start(single())
        bad = driver.outcome(execution, driver.claim(execution, "only"), Outcome.WAITING, wait_kind=WaitKind.CHILD)
        with pytest.raises(StoreRefused):
            driver.send(bad)

    @pytest.mark.parametrize("token", [None, "token"])
    def test_a_claim_that_can_not_be_served_costs_no_other_claim_of_its_call_anything(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, token: str | None
    ) -> None:
        store.save_workflow(single(), now=clock())
        first, second = (driver.start("single") for _ in range(2))
        keys = [NodeKey(first, "only"), NodeKey(first, "only", TOO_LARGE), NodeKey(second, "only"), NodeKey(first, "x")]
        answers = store.claim(keys, worker_id=driver.worker_id, token=token, now=clock())
        assert isinstance(answers[0], Claim)
        assert isinstance(answers[1], SpanloomError)
        assert not isinstance(answers[1], StoreUnavailable)
        assert isinstance(answers[2], Claim)
        assert answers[3] is Refusal.GONE
        assert set(store.list_claims(driver.worker_id)) == {keys[0], keys[2]}
