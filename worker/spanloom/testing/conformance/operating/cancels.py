"""Conformance: cancelling executions."""

from __future__ import annotations

import uuid

import pytest

from spanloom.engine.errors import InvalidTransition, StaleVersion, UnknownExecution
from spanloom.engine.store.models import Execution
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome, Refusal
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, diamond, fan, graph, single

__all__ = ["Cancels"]


class Cancels:
    """`cancel_execution`: the runs that it ends, refusals, and late records."""

    def test_every_open_run_ends_as_cancelled(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        # given a completed, a running, a waiting, a queued and a half-arrived node
        execution = driver.start(fan(4))
        driver.run(execution, "split")
        driver.run(execution, "w1")
        driver.claim(execution, "w2")
        driver.run(execution, "w3", Outcome.RETRY, delay_seconds=60)
        clock.advance(1)
        # when it is cancelled
        answer = store.cancel_execution(execution, now=clock())
        assert (answer.done, list(answer.executions), list(answer.jobs)) == (True, [execution], [])
        # then the open ones are cancelled and the ended ones stay
        statuses = {run.node_id: run.status for run in store.get_node_results(execution)}
        assert statuses == {"split": NodeStatus.COMPLETED, "w1": NodeStatus.COMPLETED} | dict.fromkeys(
            ("w2", "w3", "w4", "join"), NodeStatus.CANCELLED
        )
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.ended_at) == (ExecutionStatus.CANCELLED, clock())
        assert sum(store.stats().open_node_runs.values()) == 0
        kinds = [event.kind for event in store.get_events(execution)]
        assert (kinds.count("node.cancelled"), kinds.count("execution.cancelled")) == (4, 1)

    def test_cancelling_twice_is_no_error(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        assert store.cancel_execution(execution).done
        before = store.get_execution(execution), store.get_events(execution)
        again = store.cancel_execution(execution)
        assert (again.done, again.revision, list(again.executions)) == (False, 1, [])
        assert (store.get_execution(execution), store.get_events(execution)) == before

    @pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED])
    def test_an_ended_execution_can_not_be_cancelled(
        self, store: ExecutionStore, driver: StoreDriver, outcome: Outcome
    ) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", outcome)
        before = store.get_execution(execution)
        with pytest.raises(InvalidTransition):
            store.cancel_execution(execution)
        assert store.get_execution(execution) == before

    @pytest.mark.parametrize("unknown", [str(uuid.UUID(int=7)), "no such thing"])
    def test_an_unknown_execution_can_not_be_cancelled(self, store: ExecutionStore, unknown: str) -> None:
        with pytest.raises(UnknownExecution):
            store.cancel_execution(unknown)

    def test_a_cancelled_execution_gives_no_claims(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        store.cancel_execution(execution)
        assert driver.try_claim(execution, "top") is Refusal.GONE

    @pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED, Outcome.RETRY, Outcome.RELEASED])
    def test_a_record_that_comes_late_is_answered_and_nothing_follows(
        self, store: ExecutionStore, driver: StoreDriver, outcome: Outcome
    ) -> None:
        execution = driver.start(chain(2))
        node = driver.claim(execution, "n1")
        store.cancel_execution(execution)
        answer = driver.record(execution, node, outcome, successors=("n2",))
        assert (answer.recorded, list(answer.jobs), answer.next, answer.ended) == (True, [], None, None)
        (run,) = store.get_node_results(execution, ["n1"])
        assert run.status is NodeStatus.CANCELLED
        found = store.get_execution(execution)
        assert found is not None
        assert found.status is ExecutionStatus.CANCELLED

    def test_a_cancel_raises_the_revision_and_records_do_not(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        at_start = store.get_execution(execution)
        driver.run(execution, "top")
        running = store.get_execution(execution)
        answer = store.cancel_execution(execution)
        cancelled = store.get_execution(execution)
        assert at_start is not None
        assert running is not None
        assert cancelled is not None
        assert running.revision == at_start.revision
        assert cancelled.revision == answer.revision == at_start.revision + 1

    def test_another_than_the_expected_revision_refuses_a_cancel(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        found = store.get_execution(execution)
        assert found is not None
        with pytest.raises(StaleVersion) as refused:
            store.cancel_execution(execution, expected_revision=found.revision + 1)
        assert (refused.value.expected, refused.value.actual) == (found.revision + 1, found.revision)
        assert isinstance(refused.value.current, Execution)
        assert store.get_execution(execution) == found
        assert store.cancel_execution(execution, expected_revision=found.revision).done

    def test_a_delayed_execution_can_be_cancelled_and_never_starts(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single(), delay_seconds=60)
        assert store.cancel_execution(execution, now=clock()).done
        clock.advance(120)
        assert list(store.sweep(heads={"default": None}, epoch=0, now=clock()).jobs) == []
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.started_at) == (ExecutionStatus.CANCELLED, None)

    def test_a_deadline_does_not_fail_a_cancelled_execution(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(graph("g", {"a": [], "b": []}), deadline_seconds=10)
        store.cancel_execution(execution, now=clock())
        clock.advance(20)
        assert list(store.sweep(heads={}, epoch=0, now=clock()).ended) == []
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.error) == (ExecutionStatus.CANCELLED, None)
