"""Conformance: pausing and resuming executions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from spanloom.engine.errors import InvalidTransition
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome, Refusal
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import (
    events_of,
    everything_of,
    execution_of,
    run_of,
    status_of,
    statuses_of,
)
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, fan, graph, route_failure, single

__all__ = ["Pauses", "Resumes"]


class Pauses:
    """`pause_execution`: no run starts, running nodes end, waiting runs go on waiting."""

    def test_queued_runs_are_held_and_running_ones_may_end(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(2))
        driver.run(execution, "split")
        running = driver.claim(execution, "w1")
        clock.advance(1)
        # when it is paused
        answer = driver.pause(execution)
        assert (answer.done, answer.revision, list(answer.executions), list(answer.jobs)) == (True, 1, [execution], [])
        # then queued runs are held and can't be claimed
        found = execution_of(store, execution)
        assert (found.status, found.revision, found.ended_at) == (ExecutionStatus.PAUSED, 1, None)
        run = run_of(store, execution, "w2")
        assert (run.status, run.due_at) == (NodeStatus.HELD, None)
        assert driver.try_claim(execution, "w2") is Refusal.NOT_READY
        assert [(event.kind, event.node_id) for event in store.get_events(execution)][-2:] == [
            ("execution.paused", None),
            ("node.held", "w2"),
        ]
        # and running runs end, and are recorded
        assert driver.record(execution, running, data=1, successors=("join",)).recorded
        assert statuses_of(store, execution)["w1"] is NodeStatus.COMPLETED

    def test_what_becomes_ready_while_paused_is_held(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        node = driver.claim(execution, "n1")
        driver.pause(execution)
        answer = driver.record(execution, node, successors=("n2",))
        assert (answer.recorded, list(answer.jobs), answer.next, answer.ended) == (True, [], None, None)
        assert statuses_of(store, execution)["n2"] is NodeStatus.HELD
        assert driver.try_claim(execution, "n2") is Refusal.NOT_READY

    def test_a_failure_handled_while_paused_holds_what_it_leads_to(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("repair", {"a": [], "b": [route_failure("a")]}))
        node = driver.claim(execution, "a")
        driver.pause(execution)
        assert list(driver.record(execution, node, Outcome.FAILED).jobs) == []
        assert status_of(store, execution) is ExecutionStatus.PAUSED
        assert statuses_of(store, execution)["b"] is NodeStatus.HELD

    @pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED])
    def test_a_paused_execution_whose_last_node_ends_is_ended(
        self, store: ExecutionStore, driver: StoreDriver, outcome: Outcome
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        driver.pause(execution)
        assert driver.record(execution, node, outcome).ended == outcome.value
        assert status_of(store, execution) == outcome.value

    def test_a_run_given_back_is_held(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        driver.pause(execution)
        assert list(driver.record(execution, node, Outcome.RELEASED).jobs) == []
        assert run_of(store, execution, "only").status is NodeStatus.HELD

    @pytest.mark.parametrize("kind", [WaitKind.RETRY, WaitKind.TIMER])
    def test_what_waits_goes_on_waiting_and_is_held_when_it_is_due(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, kind: WaitKind
    ) -> None:
        execution = driver.start(single())
        wait: dict[str, Any] = {"wait_kind": WaitKind.TIMER} if kind is WaitKind.TIMER else {}
        outcome = Outcome.WAITING if kind is WaitKind.TIMER else Outcome.RETRY
        driver.run(execution, "only", outcome, delay_seconds=10, **wait)
        before = run_of(store, execution, "only")
        driver.pause(execution)
        assert run_of(store, execution, "only") == before
        clock.advance(11)
        swept = driver.sweep()
        assert (list(swept.jobs), swept.moved[kind.value]) == ([], 1)
        run = run_of(store, execution, "only")
        assert (run.status, run.due_at) == (NodeStatus.HELD, None)

    def test_the_deadline_goes_on_counting(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single(), deadline_seconds=10)
        driver.pause(execution)
        clock.advance(11)
        assert list(driver.sweep().ended) == [execution]
        assert status_of(store, execution) is ExecutionStatus.FAILED

    def test_no_sweep_pushes_what_is_held(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        driver.pause(driver.start(fan(3)))
        store.raise_epoch(0, "new")
        clock.advance(3600)
        assert store.next_due() is None
        assert list(driver.sweep(epoch=1, heads={"default": None}).jobs) == []

    def test_pausing_twice_is_no_error(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        driver.pause(execution)
        before = everything_of(store, execution)
        again = driver.pause(execution)
        assert (again.done, again.revision, list(again.executions), list(again.jobs)) == (False, 1, [], [])
        assert everything_of(store, execution) == before

    def test_a_paused_execution_can_be_cancelled(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(fan(2))
        driver.run(execution, "split")
        driver.pause(execution)
        assert driver.cancel(execution).done
        assert status_of(store, execution) is ExecutionStatus.CANCELLED
        assert sum(store.stats().open_node_runs.values()) == 0


class Resumes:
    """`resume_execution`: held runs go on, waiting runs are unchanged."""

    def test_held_runs_are_queued_and_answered_to_push(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        # given a run that was pushed before, and one that became ready while it was paused
        execution = driver.start(graph("two", {"a": [], "b": [], "c": ["b"]}))
        node = driver.claim(execution, "b")
        driver.pause(execution)
        driver.record(execution, node)
        clock.advance(5)
        # when it is resumed
        answer = driver.resume(execution)
        assert (answer.done, answer.revision, list(answer.executions)) == (True, 2, [execution])
        assert sorted((job.node_id, job.push, job.pushed_at) for job in answer.jobs) == [
            ("a", 2, clock()),
            ("c", 1, clock()),
        ]
        assert {run.status for run in store.get_node_results(execution, ["a", "c"])} == {NodeStatus.QUEUED}
        assert execution_of(store, execution).status is ExecutionStatus.RUNNING
        events = [event for event in store.get_events(execution) if event.data.get("because") == "resumed"]
        assert [event.kind for event in events] == ["node.queued"] * 2
        assert events_of(store, execution)[-2:] == ["execution.paused", "execution.resumed"]
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED

    @pytest.mark.parametrize("kind", [WaitKind.RETRY, WaitKind.TIMER])
    def test_a_pending_delay_is_not_fired_early(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, kind: WaitKind
    ) -> None:
        execution = driver.start(single())
        wait: dict[str, Any] = {"wait_kind": WaitKind.TIMER} if kind is WaitKind.TIMER else {}
        outcome = Outcome.WAITING if kind is WaitKind.TIMER else Outcome.RETRY
        driver.run(execution, "only", outcome, delay_seconds=10, **wait)
        before = run_of(store, execution, "only")
        clock.advance(4)
        driver.pause(execution)
        clock.advance(4)
        assert list(driver.resume(execution).jobs) == []
        assert run_of(store, execution, "only") == before
        assert list(driver.sweep().jobs) == []
        clock.advance(3)
        assert [job.node_id for job in driver.sweep().jobs] == ["only"]

    def test_what_is_resumed_is_pushed_in_the_epoch_that_is_named(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        driver.pause(execution)
        store.raise_epoch(0, "new")
        assert len(driver.resume(execution, epoch=1).jobs) == 1
        assert list(driver.sweep(epoch=1).jobs) == []

    def test_a_job_that_is_lost_after_a_resume_is_found(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.pause(execution)
        driver.resume(execution)
        clock.advance(10)
        assert [job.push for job in driver.sweep(heads={"default": None}).jobs] == [3]

    def test_resuming_twice_is_no_error(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        driver.pause(execution)
        driver.resume(execution)
        before = everything_of(store, execution)
        again = driver.resume(execution)
        assert (again.done, again.revision, list(again.executions), list(again.jobs)) == (False, 2, [], [])
        assert everything_of(store, execution) == before

    def test_a_running_execution_needs_no_resume(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        answer = driver.resume(execution)
        assert (answer.done, answer.revision, list(answer.jobs)) == (False, 0, [])

    def test_pauses_and_resumes_beside_workers_lose_nothing(self, store: ExecutionStore, driver: StoreDriver) -> None:
        executions = [driver.start(fan(8)) for _ in range(4)]

        def stutter(execution: str) -> None:
            for _ in range(5):
                try:
                    driver.pause(execution)
                    driver.resume(execution)
                except InvalidTransition:  # it has ended meanwhile
                    return

        workers = [StoreDriver(store, jobs=driver.jobs) for _ in range(3)]
        calls: list[Callable[[], object]] = [worker.drain for worker in workers]
        calls += [partial(stutter, execution) for execution in executions]
        race(calls)
        driver.drain()  # jobs that were pushed after a worker had found none
        for execution in executions:
            assert status_of(store, execution) is ExecutionStatus.COMPLETED
            assert events_of(store, execution).count("execution.completed") == 1
