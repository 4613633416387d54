"""Conformance: the span in a claim, and the spans that may not have been exported."""

from __future__ import annotations

import uuid
from functools import partial

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, Outcome, SpanExport
from spanloom.engine.store.states import WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, diamond, single

__all__ = ["RunSpans", "SpansToExport"]


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


class SpansToExport:
    """`SpanExports`: registered, confirmed, taken over, released."""

    def test_what_a_live_worker_has_noted_is_its_own(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", exported_ns=5)
        other = StoreDriver(store, clock=clock)
        assert store.claim_exports(other.worker_id, now=driver.now()) == []

    @pytest.mark.parametrize("how", ["retired", "lapsed"])
    def test_what_a_worker_leaves_is_taken_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, how: str
    ) -> None:
        execution = driver.start(chain(2))
        gone = StoreDriver(store, clock=clock, name="gone", lease_seconds=5)
        for node, at in (("n1", 7), ("n2", 9)):
            gone.run(execution, node, exported_ns=at)
        if how == "retired":
            store.unregister_worker(gone.worker_id, now=clock())
        else:
            clock.advance(6)
        taken = store.claim_exports(driver.worker_id, now=clock())
        assert taken == [SpanExport(gone.worker_id, execution, 9)]
        other = StoreDriver(store, clock=clock)
        assert store.claim_exports(other.worker_id, now=clock()) == []
        store.release_exports(driver.worker_id, taken)
        store.unregister_worker(driver.worker_id, now=clock())
        assert store.claim_exports(other.worker_id, now=clock()) == []

    def test_what_a_taker_leaves_is_taken_from_it(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", exported_ns=5)
        store.unregister_worker(driver.worker_id, now=clock())
        first, second = (StoreDriver(store, clock=clock) for _ in range(2))
        taken = store.claim_exports(first.worker_id, now=clock())
        store.unregister_worker(first.worker_id, now=clock())
        assert store.claim_exports(second.worker_id, now=clock()) == taken

    def test_what_was_confirmed_is_forgotten_as_far_as_it_goes(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        early, late = driver.start(single()), driver.start(single())
        driver.run(early, "only", exported_ns=5)
        driver.run(late, "only", exported_ns=9)
        assert store.ack_exports(driver.worker_id, 8) == 1
        store.unregister_worker(driver.worker_id, now=clock())
        other = StoreDriver(store, clock=clock)
        assert [export.execution_id for export in store.claim_exports(other.worker_id, now=clock())] == [late]

    def test_a_confirmation_does_not_reach_what_came_after(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1", exported_ns=5)
        driver.run(execution, "n2", exported_ns=9)
        assert store.ack_exports(driver.worker_id, 7) == 0
        assert store.ack_exports(str(uuid.uuid4()), 99) == 0
        assert store.ack_exports(driver.worker_id, 9) == 1

    def test_at_most_so_many_are_taken(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        for _ in range(3):
            driver.run(driver.start(single()), "only", exported_ns=5)
        store.unregister_worker(driver.worker_id, now=clock())
        other = StoreDriver(store, clock=clock)
        assert [len(store.claim_exports(other.worker_id, limit=2, now=clock())) for _ in range(3)] == [2, 1, 0]

    def test_takers_that_race_share_it(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        executions = [driver.start(single()) for _ in range(12)]
        for execution in executions:
            driver.run(execution, "only", exported_ns=5)
        store.unregister_worker(driver.worker_id, now=clock())
        takers = [StoreDriver(store, clock=clock) for _ in range(4)]

        def take(taker: StoreDriver) -> list[str]:
            found: list[str] = []
            while taken := store.claim_exports(taker.worker_id, limit=2, now=clock()):
                found += [export.execution_id for export in taken]
            return found

        shares = race([partial(take, taker) for taker in takers])
        assert sorted(execution for share in shares for execution in share) == sorted(executions)

    def test_a_record_without_it_notes_nothing(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        driver.run(driver.start(single()), "only", span="s")
        store.unregister_worker(driver.worker_id, now=clock())
        other = StoreDriver(store, clock=clock)
        assert store.claim_exports(other.worker_id, now=clock()) == []

    def test_a_purge_takes_it_with_it(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        answer = driver.run(driver.start(single()), "only", exported_ns=5)
        assert answer.ended is not None
        clock.advance(10)
        store.purge_executions(ended_before=clock(), statuses=[answer.ended], now=clock())
        store.unregister_worker(driver.worker_id, now=clock())
        other = StoreDriver(store, clock=clock)
        assert store.claim_exports(other.worker_id, now=clock()) == []
