"""Conformance: the span in a claim, of the run itself and of its parents."""

from __future__ import annotations

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, Outcome
from spanloom.engine.store.states import WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, diamond, single

__all__ = ["RunSpans"]


class RunSpans:
    """`RecordRequest.span`, in later claims and results."""

    def test_a_join_is_told_the_spans_of_its_parents(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top", span="t")
        driver.run(execution, "left", span="l")
        driver.run(execution, "right", span="r")
        assert dict(driver.claim(execution, "bottom").parent_spans) == {"left": "l", "right": "r"}

    def test_so_is_one_that_is_claimed_as_its_last_parent_ends(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top", span="t")
        driver.run(execution, "left")  # by a worker without spans
        answer = driver.run(execution, "right", span="r", successors=("bottom",))
        assert answer.next is not None
        assert dict(answer.next.parent_spans) == {"right": "r"}

    def test_the_link_of_a_chain_is_told_its_only_parents_span(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(chain(2))
        answer = driver.run(execution, "n1", span="one", successors=("n2",))
        assert answer.next is not None
        assert (dict(answer.next.parent_spans), answer.next.span) == ({"n1": "one"}, None)

    @pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.WAITING, Outcome.RELEASED])
    def test_the_next_claim_of_a_run_is_told_its_latest_span(
        self, store: ExecutionStore, driver: StoreDriver, outcome: Outcome
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        assert node.span is None
        waits = {"wait_kind": WaitKind.TIMER} if outcome is Outcome.WAITING else {}
        driver.record(execution, node, outcome, span="first:7", **waits)
        driver.sweep_all()
        again = driver.claim(execution, "only")
        assert again.span == "first:7"
        driver.record(execution, again, Outcome.RELEASED)  # a record without a span leaves it
        assert driver.claim(execution, "only").span == "first:7"

    def test_a_run_shows_its_span(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1", span="one")
        driver.run(execution, "n2", Outcome.RETRY, span="two")
        assert [run.span for run in store.get_node_results(execution)] == ["one", "two"]

    def test_a_retry_of_the_execution_keeps_the_span_of_what_had_failed(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", Outcome.FAILED, span="failed")
        driver.retry(execution)
        assert driver.claim(execution, "only").span == "failed"

    def test_a_retry_keeps_the_spans_of_items_that_had_failed(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x", "y"])
        driver.run(execution, "only", item=1, span="good")
        driver.run(execution, "only", Outcome.FAILED, item=2, span="bad")
        driver.run(execution, "only", Outcome.FAILED, span="node")
        driver.retry(execution)
        assert driver.claim(execution, "only", 2).span == "bad"

    def test_the_end_of_an_execution_is_told_with_its_time(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        for outcome in (Outcome.COMPLETED, Outcome.FAILED):
            execution = driver.start(single())
            node = driver.claim(execution, "only")
            clock.advance(2)
            record = driver.outcome(execution, node, outcome)
            answer = driver.send(record)
            found = store.get_execution(execution)
            assert found is not None
            assert (answer.ended, answer.ended_at) == (found.status, found.ended_at)
            clock.advance(2)
            again = driver.send(record)
            assert (again.recorded, again.ended, again.ended_at) == (True, answer.ended, answer.ended_at)

    def test_a_claim_says_when_its_execution_was_created_and_by_whom(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        created = clock()
        execution = driver.start(single(), caller_span_id="c" * 16)
        clock.advance(3)
        claim = driver.try_claim(execution, "only")
        assert isinstance(claim, Claim)
        assert (claim.header.created_at, claim.header.caller_span_id) == (created, "c" * 16)
        found = store.get_execution(execution)
        assert found is not None
        assert found.caller_span_id == "c" * 16
