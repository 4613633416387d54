"""Conformance: mapped nodes in executions that are paused, failed or cancelled, records sent again, ends at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeClaim, Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.conformance.reading.seen import everything_of, item_statuses, run_of, status_of
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.workflows import graph, single

__all__ = ["ItemControl", "ItemRaces", "ItemReplays", "ItemRounds"]


def _stop(driver: StoreDriver, execution: str, how: str) -> None:
    if how == "paused":
        driver.pause(execution)
    else:
        driver.run(execution, "b", Outcome.FAILED)


def _go_on(driver: StoreDriver, execution: str, how: str) -> list[tuple[str, int]]:
    answer = driver.resume(execution) if how == "paused" else driver.retry(execution)
    return sorted((job.node_id, job.item) for job in answer.jobs if job.node_id != "b")


_EACH_STOP = pytest.mark.parametrize("how", ["paused", "failed"])


class ItemControl:
    """Items in an execution that is not running: ready items are held."""

    @_EACH_STOP
    def test_a_fan_out_is_held_to_ask_again(self, store: ExecutionStore, driver: StoreDriver, how: str) -> None:
        execution = driver.start(graph("two", {"a": [], "b": []}))
        node = driver.claim(execution, "a")
        _stop(driver, execution, how)
        answer = driver.send(driver.fanning_out(execution, node, ["x", "y"], successors=("a",)))
        assert (answer.recorded, list(answer.jobs), answer.next) == (True, [], None)
        assert [(run.item, run.status) for run in store.get_node_results(execution, ["a"])] == [(0, NodeStatus.HELD)]
        assert _go_on(driver, execution, how) == [("a", 0)]
        again = driver.claim(execution, "a")
        assert (again.woken, again.attempt) == (None, 1)
        assert len(driver.send(driver.fanning_out(execution, again, ["x", "y"])).jobs) == 2

    @_EACH_STOP
    def test_queued_items_are_held_and_those_that_ends_start_too(
        self, store: ExecutionStore, driver: StoreDriver, how: str
    ) -> None:
        # given a running and a queued item, and two that were never started
        execution = driver.start(graph("two", {"a": [], "b": []}))
        driver.fan_out(execution, "a", list("wxyz"), max_concurrency=2)
        running = driver.claim(execution, "a", 1)
        _stop(driver, execution, how)
        assert item_statuses(store, execution, "a") == {1: NodeStatus.RUNNING, 2: NodeStatus.HELD}
        # when the running one ends
        answer = driver.record(execution, running, successors=("a",))
        # then the one it starts is held beside it, until the execution goes on
        assert (answer.recorded, list(answer.jobs), answer.next) == (True, [], None)
        assert item_statuses(store, execution, "a") == {
            1: NodeStatus.COMPLETED,
            2: NodeStatus.HELD,
            3: NodeStatus.HELD,
        }
        assert run_of(store, execution, "a").status is NodeStatus.WAITING
        assert _go_on(driver, execution, how) == [("a", 2), ("a", 3)]
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED

    @_EACH_STOP
    def test_a_node_whose_last_item_ends_is_held(self, store: ExecutionStore, driver: StoreDriver, how: str) -> None:
        execution = driver.start(graph("two", {"a": [], "b": []}))
        driver.fan_out(execution, "a", ["x"])
        last = driver.claim(execution, "a", 1)
        _stop(driver, execution, how)
        answer = driver.record(execution, last, successors=("a",))
        assert (answer.recorded, list(answer.jobs), answer.next) == (True, [], None)
        run = run_of(store, execution, "a")
        assert (run.status, run.due_at) == (NodeStatus.HELD, None)
        assert _go_on(driver, execution, how) == [("a", 0)]
        assert driver.claim(execution, "a").woken is WaitKind.ITEMS

    def test_a_cancel_ends_the_node_and_its_open_items(self, store: ExecutionStore, driver: StoreDriver) -> None:
        # given an ended, a running and a queued item, and one that was never started
        execution = driver.start(single())
        driver.fan_out(execution, "only", list("wxyz"), max_concurrency=2)
        driver.run(execution, "only", item=1)
        running = driver.claim(execution, "only", 2)
        # when the execution is cancelled
        driver.cancel(execution)
        # then the open ones are cancelled, and a late end has no effect
        late = driver.record(execution, running, successors=("only",))
        assert (late.recorded, list(late.jobs), late.next) == (True, [], None)
        assert run_of(store, execution, "only").status is NodeStatus.CANCELLED
        assert item_statuses(store, execution, "only") == {
            1: NodeStatus.COMPLETED,
            2: NodeStatus.CANCELLED,
            3: NodeStatus.CANCELLED,
        }
        assert sum(store.stats().open_node_runs.values()) == 0

    def test_a_fan_out_of_a_cancelled_execution_is_recorded_and_nothing_follows(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        driver.cancel(execution)
        answer = driver.send(driver.fanning_out(execution, node, [1, 2]))
        assert (answer.recorded, list(answer.jobs), answer.next) == (True, [], None)
        assert item_statuses(store, execution, "only") == {}


class ItemRounds:
    """A node that is mapped again, after its items had ended."""

    @pytest.mark.parametrize("max_concurrency", [1, 5])
    def test_no_fence_of_an_item_is_given_twice(
        self, store: ExecutionStore, driver: StoreDriver, max_concurrency: int
    ) -> None:
        execution = driver.start(single())
        seen: set[tuple[int, int]] = set()
        for _ in range(2):
            driver.fan_out(execution, "only", ["x", "y"], max_concurrency=max_concurrency)
            for item in (1, 2):
                for outcome in (Outcome.RELEASED, Outcome.COMPLETED):
                    node = driver.claim(execution, "only", item)
                    assert (item, node.fence) not in seen
                    seen.add((item, node.fence))
                    driver.record(execution, node, outcome)
            driver.run(execution, "only", Outcome.RETRY)  # clears its wait kind: it maps anew
            driver.sweep_all()

    def test_a_retry_keeps_what_the_node_waits_under(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x"], wait_key="mine")
        driver.run(execution, "only", Outcome.FAILED, item=1)
        driver.run(execution, "only", Outcome.FAILED)
        driver.retry(execution)
        driver.run(execution, "only", item=1)
        assert driver.claim(execution, "only").wait_key == "mine"


class ItemReplays:
    """A fan-out, and an item's end, sent again after a lost answer."""

    def _same_again(self, store: ExecutionStore, driver: StoreDriver, record: RecordRequest) -> RecordResult:
        first = driver.send(record)
        before = everything_of(store, record.execution_id)
        again = driver.send(record)
        assert again.recorded
        assert sorted(again.jobs, key=lambda job: job.item) == sorted(first.jobs, key=lambda job: job.item)
        assert (again.next, again.ended) == (first.next, first.ended)
        assert everything_of(store, record.execution_id) == before
        return first

    @pytest.mark.parametrize("successors", [(), ("only",)])
    def test_each_is_answered_again(
        self, store: ExecutionStore, driver: StoreDriver, successors: tuple[str, ...]
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        record = driver.fanning_out(execution, node, ["x", "y", "z"], max_concurrency=2, successors=successors)
        answer = self._same_again(store, driver, record)
        assert len(answer.jobs) + (answer.next is not None) == 2
        given = {} if answer.next is None else {answer.next.item: answer.next}
        for item in (1, 2, 3):
            node = given.pop(item) if item in given else driver.claim(execution, "only", item)
            answer = self._same_again(store, driver, driver.outcome(execution, node, successors=successors))
            if answer.next is not None:
                given[answer.next.item] = answer.next
        assert (list(given), [job.item for job in answer.jobs]) == (([0], []) if successors else ([], [0]))

    def test_an_end_sent_again_is_not_counted_again(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", [1, 2, 3])
        record = driver.outcome(execution, driver.claim(execution, "only", 1), Outcome.FAILED)
        for _ in range(5):
            assert driver.send(record).recorded
        assert list(driver.run(execution, "only", item=2).jobs) == []
        assert [job.item for job in driver.run(execution, "only", item=3).jobs] == [0]

    def test_a_stale_claim_of_an_item_writes_nothing(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", [1, 2])
        stale = driver.claim(execution, "only", 1)
        driver.record(execution, stale, Outcome.RELEASED)
        driver.claim(execution, "only", 1)
        before = everything_of(store, execution)
        assert not driver.record(execution, stale).recorded
        assert everything_of(store, execution) == before


class ItemRaces:
    """Items that end at the same moment in many threads."""

    @pytest.mark.parametrize(("width", "threads", "rounds"), [(2, 2, 20), (16, 16, 5), (100, 20, 2)])
    def test_the_last_end_makes_the_node_ready_once(
        self, store: ExecutionStore, driver: StoreDriver, width: int, threads: int, rounds: int
    ) -> None:
        store.save_workflow(single())
        for _ in range(rounds):
            execution = driver.start("single")
            driver.fan_out(execution, "only", list(range(width)))
            records = [
                driver.outcome(execution, driver.claim(execution, "only", item), data=item)
                for item in range(1, width + 1)
            ]
            shares = [records[start::threads] for start in range(threads)]
            answers = [
                answer for share in race([partial(_record_each, driver, part) for part in shares]) for answer in share
            ]
            assert all(answer.recorded for answer in answers)
            assert [job.item for answer in answers for job in answer.jobs] == [0]
            assert driver.run(execution, "only").ended is ExecutionStatus.COMPLETED

    def test_each_next_item_is_started_once(self, store: ExecutionStore, driver: StoreDriver) -> None:
        for _ in range(3):
            execution = driver.start(single())
            driver.fan_out(execution, "only", list(range(24)), max_concurrency=8)
            workers = [StoreDriver(store) for _ in range(8)]
            nodes = [worker.claim(execution, "only", item) for item, worker in enumerate(workers, 1)]
            # when eight workers run one item after the other, each the next claim of its record
            ran = race([partial(_run_on, *part, execution) for part in zip(workers, nodes, strict=True)])
            # then each item ran once, and the node itself last, by one of them
            assert sorted(item for some in ran for item in some) == list(range(25))
            assert status_of(store, execution) is ExecutionStatus.COMPLETED

    def test_a_pause_and_ends_at_once_leave_nothing_behind(self, store: ExecutionStore, driver: StoreDriver) -> None:
        for _ in range(5):
            execution = driver.start(single())
            driver.fan_out(execution, "only", list(range(12)), max_concurrency=4)
            nodes = [driver.claim(execution, "only", item) for item in range(1, 5)]
            calls: list[Callable[[], object]] = [partial(driver.pause, execution)]
            calls += [partial(driver.record, execution, node) for node in nodes]
            race(calls)
            assert NodeStatus.QUEUED not in item_statuses(store, execution, "only").values()
            driver.jobs.clear()
            driver.resume(execution)
            driver.drain()
            assert status_of(store, execution) is ExecutionStatus.COMPLETED
            assert len(item_statuses(store, execution, "only")) == 12


def _record_each(driver: StoreDriver, records: list[RecordRequest]) -> list[RecordResult]:
    return [driver.send(record) for record in records]


def _run_on(driver: StoreDriver, node: NodeClaim, execution: str) -> list[int]:
    ran: list[int] = []
    following: NodeClaim | None = node
    while following is not None:
        ran.append(following.item)
        following = driver.record(execution, following, successors=("only",)).next
    return ran
