"""Conformance: retrying failed executions: the results that stay, the runs that start anew, joins and ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from spanloom.engine.errors import InvalidTransition
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeClaim, Outcome
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
from spanloom.testing.workflows import chain, diamond, fan, graph, single

__all__ = ["ExecutionRetries"]


class ExecutionRetries:
    """`retry_execution` where no failure had been handled."""

    def test_a_failed_run_is_queued_again_under_a_higher_fence(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(chain(2))
        failed = driver.claim(execution, "n1")
        driver.record(execution, failed, Outcome.FAILED)
        clock.advance(5)
        # when the execution is retried
        answer = driver.retry(execution)
        # then it runs again, with one job to push
        assert (answer.done, answer.revision, list(answer.executions)) == (True, 1, [execution])
        assert [(job.node_id, job.item, job.push, job.pushed_at) for job in answer.jobs] == [("n1", 0, 2, clock())]
        found = execution_of(store, execution)
        assert (found.status, found.revision, found.error, found.ended_at) == (ExecutionStatus.RUNNING, 1, None, None)
        run = run_of(store, execution, "n1")
        assert (run.status, run.attempt, run.error) == (NodeStatus.QUEUED, 1, None)
        assert events_of(store, execution)[-1] == "execution.retried"
        event = [event for event in store.get_events(execution) if event.kind == "node.queued"][-1]
        assert (event.node_id, event.data["because"]) == ("n1", "retried")
        # and the run is claimed under a higher fence
        node = driver.claim(execution, "n1")
        assert (node.attempt, node.recovery_attempts, node.woken) == (1, 0, None)
        assert node.fence > failed.fence
        driver.record(execution, node)
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED

    def test_attempts_and_losses_count_from_the_start(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        StoreDriver(store, clock=clock, lease_seconds=5).claim(execution, "only")
        clock.advance(6)
        driver.sweep()
        driver.run(execution, "only", Outcome.RETRY)
        driver.sweep()
        node = driver.claim(execution, "only")
        assert (node.attempt, node.recovery_attempts) == (2, 1)
        driver.record(execution, node, Outcome.FAILED)
        driver.retry(execution)
        again = driver.claim(execution, "only")
        assert (again.attempt, again.recovery_attempts) == (1, 0)
        assert again.fence > node.fence

    def test_what_was_held_is_queued(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(fan(3))
        driver.run(execution, "split")
        driver.run(execution, "w2", Outcome.RETRY, delay_seconds=60)
        driver.run(execution, "w1", Outcome.FAILED)
        answer = driver.retry(execution)
        assert sorted((job.node_id, job.push) for job in answer.jobs) == [("w1", 2), ("w2", 2), ("w3", 2)]
        assert driver.claim(execution, "w2").attempt == 2  # it did not fail
        assert driver.claim(execution, "w1").attempt == 1

    def test_what_completed_is_kept_and_not_run_again(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top", data="t")
        driver.run(execution, "right", data="r")
        driver.run(execution, "left", Outcome.FAILED)
        before = store.get_node_results(execution, ["top", "right"])
        driver.retry(execution)
        assert driver.drain() == ["left", "bottom"]
        assert store.get_node_results(execution, ["top", "right"]) == before
        assert execution_of(store, execution).output == "bottom"

    @pytest.mark.parametrize("late", ["before", "after", "retried"])
    def test_a_join_that_had_counted_some_parents_still_ends_right(
        self, store: ExecutionStore, driver: StoreDriver, late: str
    ) -> None:
        # given a branch that ends before the failure of the other, after it, or after the retry
        execution = driver.start(diamond())
        driver.run(execution, "top")
        nodes = {name: driver.claim(execution, name) for name in ("left", "right")}
        if late == "before":
            driver.record(execution, nodes["right"], data="r")
        driver.record(execution, nodes["left"], Outcome.FAILED)
        if late == "after":
            driver.record(execution, nodes["right"], data="r")
        driver.retry(execution)
        if late == "retried":
            assert list(driver.record(execution, nodes["right"], data="r").jobs) == []
        # when the other one completes, the join runs once, with both
        (job,) = driver.run(execution, "left", data="l").jobs
        assert job.node_id == "bottom"
        node = driver.claim(execution, "bottom")
        assert dict(node.results) == {"left": '"l"', "right": '"r"'}
        assert driver.record(execution, node).ended is ExecutionStatus.COMPLETED

    def test_a_join_of_several_failures_waits_for_all_of_them(self, driver: StoreDriver) -> None:
        execution = driver.start(fan(4))
        driver.run(execution, "split")
        nodes = [driver.claim(execution, f"w{number}") for number in range(1, 5)]
        for node in nodes[:3]:
            driver.record(execution, node, Outcome.FAILED)
        assert sorted(job.node_id for job in driver.retry(execution).jobs) == ["w1", "w2", "w3"]
        assert list(driver.record(execution, nodes[3]).jobs) == []
        ready = [[job.node_id for job in driver.run(execution, f"w{number}").jobs] for number in (1, 2, 3)]
        assert ready == [[], [], ["join"]]

    def test_the_end_is_counted_anew(self, store: ExecutionStore, driver: StoreDriver) -> None:
        # given sinks of which one had completed, one completes after the failure, and one was skipped
        execution = driver.start(graph("sinks", {"a": [], "b": [], "c": [], "d": []}))
        c = driver.claim(execution, "c")
        driver.run(execution, "a", data=1)
        driver.run(execution, "d", Outcome.SKIPPED)
        driver.run(execution, "b", Outcome.FAILED)
        driver.record(execution, c, data=3)
        driver.retry(execution)
        assert status_of(store, execution) is ExecutionStatus.RUNNING
        assert driver.run(execution, "b", data=2).ended is ExecutionStatus.COMPLETED
        assert execution_of(store, execution).output == {"a": 1, "b": 2, "c": 3}
        assert sum(store.stats().open_node_runs.values()) == 0

    def test_a_run_that_is_still_running_keeps_its_claim(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        node = driver.claim(execution, "b")
        driver.run(execution, "a", Outcome.FAILED)
        assert [job.node_id for job in driver.retry(execution).jobs] == ["a"]
        assert driver.record(execution, node, data=1).recorded
        assert driver.run(execution, "a").ended is ExecutionStatus.COMPLETED

    def test_a_timer_goes_on_waiting(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        driver.wait(execution, driver.claim(execution, "b"), delay_seconds=10)
        driver.run(execution, "a", Outcome.FAILED)
        before = run_of(store, execution, "b")
        assert [job.node_id for job in driver.retry(execution).jobs] == ["a"]
        assert run_of(store, execution, "b") == before
        clock.advance(11)
        assert [job.node_id for job in driver.sweep().jobs] == ["b"]
        assert driver.claim(execution, "b").woken is WaitKind.TIMER

    def test_a_deadline_counts_from_the_retry(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(chain(2), deadline_seconds=10)
        clock.advance(8)
        driver.run(execution, "n1", Outcome.FAILED)
        clock.advance(20)
        assert driver.sweep_all() == []
        driver.retry(execution)
        clock.advance(9)
        assert list(driver.sweep().ended) == []
        # when it is exceeded, that can be retried too
        clock.advance(2)
        assert list(driver.sweep().ended) == [execution]
        assert (execution_of(store, execution).error or {})["type"] == "DeadlineExceeded"
        assert [job.node_id for job in driver.retry(execution).jobs] == ["n1"]
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED
        assert store.next_due() is None

    def test_an_execution_may_be_retried_again_and_again(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top")
        driver.run(execution, "right")
        claims: list[NodeClaim] = []
        for number in range(3):
            claims.append(driver.claim(execution, "left"))
            assert driver.record(execution, claims[-1], Outcome.FAILED).ended is ExecutionStatus.FAILED
            assert driver.retry(execution).revision == number + 1
        claims.append(driver.claim(execution, "left"))
        assert [node.fence for node in claims] == sorted({node.fence for node in claims})
        assert [job.push for job in driver.jobs if job.node_id == "left"] == [1, 2, 3, 4]
        # and none of the earlier claims is valid
        before = everything_of(store, execution)
        for node in claims[:3]:
            assert not driver.record(execution, node, data="stale").recorded
        assert everything_of(store, execution) == before
        driver.record(execution, claims[-1])
        assert driver.run(execution, "bottom").ended is ExecutionStatus.COMPLETED

    def test_a_failure_sent_again_after_the_retry_writes_nothing(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        record = driver.outcome(execution, driver.claim(execution, "only"), Outcome.FAILED)
        driver.send(record)
        driver.retry(execution)
        before = everything_of(store, execution)
        again = driver.send(record)
        assert (list(again.jobs), again.next) == ([], None)
        assert everything_of(store, execution) == before

    def test_what_is_retried_is_pushed_in_the_epoch_that_is_named(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        driver.run(execution, "a", Outcome.FAILED)
        store.raise_epoch(0, "new")
        assert len(driver.retry(execution, epoch=1).jobs) == 2
        assert list(driver.sweep(epoch=1).jobs) == []

    def test_a_retried_execution_can_be_paused_and_cancelled(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        driver.run(execution, "a", Outcome.FAILED)
        driver.retry(execution)
        driver.pause(execution)
        assert statuses_of(store, execution) == dict.fromkeys("ab", NodeStatus.HELD)
        driver.cancel(execution)
        assert statuses_of(store, execution) == dict.fromkeys("ab", NodeStatus.CANCELLED)
        assert sum(store.stats().open_node_runs.values()) == 0

    def test_a_retry_and_late_ends_at_once_lose_nothing(self, store: ExecutionStore, driver: StoreDriver) -> None:
        for _ in range(8):
            execution = driver.start(fan(5))
            driver.run(execution, "split")
            nodes = [driver.claim(execution, f"w{number}") for number in range(1, 6)]
            driver.record(execution, nodes[0], Outcome.FAILED)
            outcomes = [Outcome.COMPLETED, Outcome.FAILED, Outcome.RELEASED, Outcome.RETRY]
            calls: list[Callable[[], object]] = [partial(driver.retry, execution)]
            calls += [partial(driver.record, execution, *pair) for pair in zip(nodes[1:], outcomes, strict=True)]
            race(calls)
            if status_of(store, execution) is ExecutionStatus.FAILED:  # the second failure came after the retry
                driver.retry(execution)
            driver.sweep_all()
            driver.drain()
            assert status_of(store, execution) is ExecutionStatus.COMPLETED
            assert statuses_of(store, execution) == {
                run.node_id: NodeStatus.COMPLETED for run in store.get_node_results(execution)
            }

    def test_one_of_many_retries_at_once_is_done(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", Outcome.FAILED)

        def retry() -> int:
            try:
                return len(driver.retry(execution).jobs)
            except InvalidTransition:
                return 0

        assert sorted(race([retry] * 6)) == [0] * 5 + [1]
        assert execution_of(store, execution).revision == 1
