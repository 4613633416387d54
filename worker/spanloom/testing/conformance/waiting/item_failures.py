"""Conformance: items of a mapped node that fail, are retried, skipped or lost."""

from __future__ import annotations

import json

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import item_statuses, run_of, status_of, statuses_of
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import graph, single

__all__ = ["ItemFailures"]


class ItemFailures:
    """Items that fail, are retried, skipped or lost."""

    def test_one_more_failure_than_is_tolerated_starts_no_further_item(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", list(range(5)), max_concurrency=1, tolerated_failures=1)
        assert [job.item for job in driver.run(execution, "only", Outcome.FAILED, item=1).jobs] == [2]
        assert [job.item for job in driver.run(execution, "only", item=2).jobs] == [3]
        # when the second fails, the node is ready at once: none is open
        assert [job.item for job in driver.run(execution, "only", Outcome.FAILED, item=3).jobs] == [0]
        assert item_statuses(store, execution, "only") == {
            1: NodeStatus.FAILED,
            2: NodeStatus.COMPLETED,
            3: NodeStatus.FAILED,
        }
        assert driver.claim(execution, "only").woken is WaitKind.ITEMS

    def test_those_that_are_open_after_too_many_failures_are_waited_for(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", list(range(5)), max_concurrency=2)
        assert list(driver.run(execution, "only", Outcome.FAILED, item=1).jobs) == []
        assert run_of(store, execution, "only").status is NodeStatus.WAITING
        assert [job.item for job in driver.run(execution, "only", item=2).jobs] == [0]

    def test_failures_are_counted_over_the_items_of_one_call(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", list(range(9)), max_concurrency=3, tolerated_failures=1)
        claims = [driver.claim(execution, "only", item) for item in (1, 2, 3)]
        records = [
            driver.outcome(execution, node, outcome)
            for node, outcome in zip(claims, [Outcome.FAILED, Outcome.COMPLETED, Outcome.FAILED], strict=True)
        ]
        jobs = [job for answer in store.record(records, now=clock()) for job in answer.jobs]
        # the contract does not define how many were started before the second failure counted; they end as any others
        driver.jobs.clear()
        driver.jobs.extend(jobs)
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED
        assert len(item_statuses(store, execution, "only")) < 9

    @pytest.mark.parametrize("taken", [None, (), ("n2",)])
    def test_an_items_end_is_not_its_nodes_end(
        self, store: ExecutionStore, driver: StoreDriver, taken: tuple[str, ...] | None
    ) -> None:
        # given a node that is mapped over items and also a sink, and one that another follows
        execution = driver.start(graph("both", {"n1": [], "n2": ["n1"], "sink": []}))
        for name in ("n1", "sink"):
            driver.fan_out(execution, name, [1, 2])
        # when items of both fail, also with edges taken
        for name in ("n1", "sink"):
            error = json.dumps({"type": "Boom", "message": name, "traceback": "here"})
            answer = driver.run(execution, name, Outcome.FAILED, item=1, error=error, taken=taken)
            assert (answer.recorded, list(answer.jobs), answer.ended) == (True, [], None)
        # then neither the execution nor the node's successors are affected
        assert status_of(store, execution) is ExecutionStatus.RUNNING
        assert statuses_of(store, execution) == {"n1": NodeStatus.WAITING, "sink": NodeStatus.WAITING}
        run = run_of(store, execution, "n1", 1)
        assert (run.status, run.error) == (
            NodeStatus.FAILED,
            {"type": "Boom", "message": "n1", "traceback": "here"},
        )
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED

    def test_a_skipped_item_is_no_failure(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", [1, 2, 3], max_concurrency=1)
        for item, started in ((1, [2]), (2, [3]), (3, [0])):
            answer = driver.run(execution, "only", Outcome.SKIPPED, item=item)
            assert [job.item for job in answer.jobs] == started
        assert item_statuses(store, execution, "only") == dict.fromkeys((1, 2, 3), NodeStatus.SKIPPED)

    def test_an_item_is_retried_by_itself(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x", "y", "z"], max_concurrency=2)
        answer = driver.run(execution, "only", Outcome.RETRY, item=1, delay_seconds=5)
        assert list(answer.jobs) == []  # it is still open
        assert [job.item for job in driver.run(execution, "only", item=2).jobs] == [3]
        assert list(driver.run(execution, "only", item=3).jobs) == []
        clock.advance(6)
        assert [(job.item, job.push) for job in driver.sweep().jobs] == [(1, 2)]
        node = driver.claim(execution, "only", 1)
        assert (node.attempt, node.data, node.woken) == (2, '"x"', None)
        assert [job.item for job in driver.record(execution, node).jobs] == [0]

    def test_an_item_may_wait_for_a_timer(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x"])
        driver.wait(execution, driver.claim(execution, "only", 1), delay_seconds=5, wait_key="tea")
        assert run_of(store, execution, "only").status is NodeStatus.WAITING
        clock.advance(6)
        driver.sweep()
        node = driver.claim(execution, "only", 1)
        assert (node.woken, node.wait_key, node.data) == (WaitKind.TIMER, "tea", '"x"')

    def test_an_item_given_back_is_queued_again(self, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x", "y"])
        (job,) = driver.run(execution, "only", Outcome.RELEASED, item=2).jobs
        assert (job.item, job.push) == (2, 2)
        assert driver.claim(execution, "only", 2).data == '"y"'

    def test_the_items_of_a_lost_worker_are_queued_again(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x", "y", "z"], max_concurrency=2)
        lost = [driver.claim(execution, "only", item) for item in (1, 2)]
        clock.advance(61)
        swept = driver.sweep()
        assert sorted((job.item, job.push) for job in swept.jobs) == [(1, 2), (2, 2)]
        other = StoreDriver(store, clock=clock)
        node = other.claim(execution, "only", 1)
        assert (node.recovery_attempts, node.data) == (1, '"x"')
        assert not driver.record(execution, lost[0]).recorded
        assert [job.item for job in other.record(execution, node).jobs] == [3]
