"""Conformance: nodes that are mapped over items: the start, the claim, the end and the count of items."""

from __future__ import annotations

import json

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, NodeKey, Priority, Refusal
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import events_of, item_statuses, run_of, status_of
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, fan, single

__all__ = ["Items"]


class Items:
    """WAITING for items, and the ends of the items."""

    def test_a_mapped_node_waits_while_its_items_are_queued(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(chain(2, queue="q"), priority=Priority.HIGH)
        clock.advance(1)
        answer = driver.fan_out(execution, "n1", ["x", "y", "z"])
        assert (answer.recorded, answer.next, answer.ended) == (True, None, None)
        assert [(job.node_id, job.item, job.push) for job in answer.jobs] == [("n1", item, 1) for item in (1, 2, 3)]
        assert {(job.node_type, job.queue, job.priority, job.pushed_at) for job in answer.jobs} == {
            ("work", "q", "high", clock())
        }
        run = run_of(store, execution, "n1")
        assert (run.status, run.wait_kind, run.due_at, run.worker_id) == (
            *(NodeStatus.WAITING, WaitKind.ITEMS),
            *(None, None),
        )
        assert item_statuses(store, execution, "n1") == dict.fromkeys((1, 2, 3), NodeStatus.QUEUED)
        kinds = events_of(store, execution, "n1")
        assert (kinds.count("node.waiting"), kinds.count("node.queued")) == (1, 4)

    @pytest.mark.parametrize("value", [0, False, "", None, [], {"deep": [1, {"ß": "\u2028"}]}])
    def test_an_item_is_claimed_with_its_own_data_and_without_its_parents(
        self, driver: StoreDriver, value: object
    ) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1", data="large")
        driver.fan_out(execution, "n2", ["other", value])
        node = driver.claim(execution, "n2", 2)
        assert (node.node_id, node.item, node.node_type, node.queue) == ("n2", 2, "work", "default")
        assert (node.data, dict(node.results)) == (json.dumps(value), {})
        assert (node.attempt, node.recovery_attempts, node.woken, node.wait_key) == (1, 0, None, None)
        assert node.fence >= 1

    def test_a_run_that_is_no_item_has_no_data_of_its_own(self, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", [1])
        driver.run(execution, "only", item=1)
        assert driver.claim(execution, "only").data is None

    @pytest.mark.parametrize("width", [1, 2, 12])
    def test_the_last_end_makes_the_node_ready_once_with_all_results_in_order(
        self, store: ExecutionStore, driver: StoreDriver, width: int
    ) -> None:
        execution = driver.start(chain(3))
        driver.run(execution, "n1", data="parent")
        driver.fan_out(execution, "n2", list(range(width)))
        # when its items end in any order
        jobs = [driver.run(execution, "n2", item=item, data=-item).jobs for item in range(width, 0, -1)]
        # then the last one makes the node ready
        assert [[(job.item, job.push) for job in some] for some in jobs] == [[]] * (width - 1) + [[(0, 2)]]
        results = store.get_node_results(execution, ["n2"])
        assert [(run.item, run.data) for run in results[1:]] == [(item, -item) for item in range(1, width + 1)]
        # and it goes on, woken by them
        node = driver.claim(execution, "n2")
        assert (node.item, node.woken, node.data, dict(node.results)) == (0, WaitKind.ITEMS, None, {"n1": '"parent"'})
        (job,) = driver.record(execution, node, data=["whole"]).jobs
        assert job.node_id == "n3"
        assert dict(driver.claim(execution, "n3").results) == {"n2": '["whole"]'}

    def test_no_more_items_than_asked_for_are_open_at_once(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        answer = driver.fan_out(execution, "only", list("abcde"), max_concurrency=2)
        assert [job.item for job in answer.jobs] == [1, 2]
        assert [run.item for run in store.get_node_results(execution)] == [0, 1, 2]
        assert driver.try_claim(execution, "only", 3) is Refusal.GONE
        # each that ends starts the next one, in order
        for ended, started in ((2, [3]), (1, [4]), (4, [5]), (3, []), (5, [0])):
            assert [job.item for job in driver.run(execution, "only", item=ended).jobs] == started
            open_items = [status for status in item_statuses(store, execution, "only").values() if not status.ended]
            assert len(open_items) <= 2
        assert [job.push for job in driver.jobs if job.item > 0] == [1] * 5

    def test_items_of_one_call_are_summed(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", list(range(8)), max_concurrency=3)
        seen: list[list[int]] = []
        for some in ((1, 2, 3), (4, 5, 6), (7, 8)):
            records = [driver.outcome(execution, driver.claim(execution, "only", item)) for item in some]
            answers = store.record(records, now=clock())
            assert all(answer.recorded for answer in answers)
            seen.append(sorted(job.item for answer in answers for job in answer.jobs))
        assert seen == [[4, 5, 6], [7, 8], [0]]

    def test_items_of_two_nodes_in_one_call_do_not_mix(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(2))
        driver.run(execution, "split")
        nodes = {name: driver.claim(execution, name) for name in ("w1", "w2")}
        store.record([driver.fanning_out(execution, node, [name] * 2) for name, node in nodes.items()], now=clock())
        claims = [driver.claim(execution, name, item) for item in (1, 2) for name in nodes]
        assert [node.data for node in claims] == ['"w1"', '"w2"'] * 2
        first = store.record([driver.outcome(execution, node) for node in claims[:3]], now=clock())
        assert [(job.node_id, job.item) for answer in first for job in answer.jobs] == [("w1", 0)]
        (job,) = driver.record(execution, claims[3]).jobs
        assert (job.node_id, job.item) == ("w2", 0)
        # and their nodes end in one call with an item of neither
        ends = [driver.outcome(execution, driver.claim(execution, name)) for name in nodes]
        assert [job.node_id for answer in store.record(ends, now=clock()) for job in answer.jobs] == ["join"]

    def test_work_first_runs_the_first_item_the_next_and_the_node_itself(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(chain(3))
        driver.run(execution, "n1", data="parent")
        itself = ("n2",)
        answer = driver.fan_out(execution, "n2", ["x", "y", "z"], max_concurrency=2, successors=itself)
        # the first item
        first = answer.next
        assert first is not None
        assert (first.item, first.data, dict(first.results), first.woken) == (1, '"x"', {}, None)
        assert [job.item for job in answer.jobs] == [2]
        assert run_of(store, execution, "n2", 1).status is NodeStatus.RUNNING
        # the one that its end starts
        answer = driver.record(execution, first, successors=itself)
        third = answer.next
        assert third is not None
        assert (third.item, third.data, list(answer.jobs)) == (3, '"z"', [])
        # none, while another one is still open
        answer = driver.record(execution, third, successors=itself)
        assert (answer.recorded, answer.next, list(answer.jobs)) == (True, None, [])
        # and the node itself, once the last has ended
        answer = driver.run(execution, "n2", item=2, successors=itself)
        node = answer.next
        assert node is not None
        assert (node.item, node.woken, node.data, dict(node.results)) == (0, WaitKind.ITEMS, None, {"n1": '"parent"'})
        assert list(answer.jobs) == []
        assert [job.node_id for job in driver.record(execution, node).jobs] == ["n3"]

    def test_an_item_that_several_of_one_call_would_run_next_is_claimed_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", list(range(5)), max_concurrency=3)
        records = [
            driver.outcome(execution, driver.claim(execution, "only", item), successors=("only",)) for item in (1, 2, 3)
        ]
        answers = store.record(records, now=clock())
        following = [answer.next.item for answer in answers if answer.next is not None]
        pushed = [job.item for answer in answers for job in answer.jobs]
        assert sorted(following + pushed) == [4, 5]
        assert following

    def test_a_drain_runs_items_as_it_runs_nodes(self, store: ExecutionStore, driver: StoreDriver) -> None:
        for work_first in (True, False):
            execution = driver.start(chain(2))
            driver.fan_out(execution, "n1", list(range(7)), max_concurrency=3)
            ran = driver.drain(lambda node: node.item, work_first=work_first)
            assert (ran.count("n1"), ran.count("n2")) == (8, 1)
            assert [run.data for run in store.get_node_results(execution, ["n1"])] == list(range(8))
            assert status_of(store, execution) is ExecutionStatus.COMPLETED

    def test_ten_thousand_items(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        width, max_concurrency = 10_000, 500
        due = list(driver.fan_out(execution, "only", [0] * width, max_concurrency=max_concurrency).jobs)
        started = 0
        while due[0].item:
            assert len(due) <= max_concurrency
            started += len(due)
            keys = [NodeKey(job.execution_id, job.node_id, job.item) for job in due]
            claims = store.claim(keys, worker_id=driver.worker_id, now=clock())
            records = [driver.outcome(execution, claim.node) for claim in claims if isinstance(claim, Claim)]
            due = [job for answer in store.record(records, now=clock()) for job in answer.jobs]
        assert (started, [job.item for job in due]) == (width, [0])
        assert driver.run(execution, "only").ended is ExecutionStatus.COMPLETED
