"""Conformance: retrying failed executions in which a failure had been handled: its downstream nodes are reset."""

from __future__ import annotations

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome, Refusal
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
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
from spanloom.testing.workflows import after_any_end, graph, route_failure, single

__all__ = ["Resets"]

_ERROR = {"error": {"type": "Boom", "message": "no"}}


def _repaired(driver: StoreDriver, **more: list[str]) -> str:
    """Start `a`, whose failure leads to `repair`, beside `b`; fail `a`."""
    execution = driver.start(graph("repaired", {"a": [], "b": [], "repair": [route_failure("a")], **more}))
    assert driver.run(execution, "a", Outcome.FAILED, data=_ERROR).ended is None
    return execution


class Resets:
    """`retry_execution` where a failure had been handled and another had not."""

    def test_what_came_after_a_handled_failure_is_reset_and_the_failed_run_again(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = _repaired(driver, after=["repair"])
        driver.run(execution, "repair")
        driver.run(execution, "after")
        driver.run(execution, "b", Outcome.FAILED)
        # when it is retried
        answer = driver.retry(execution)
        # then both failures run again, and no state is left of the nodes after the first
        assert sorted(job.node_id for job in answer.jobs) == ["a", "b"]
        assert statuses_of(store, execution) == dict.fromkeys("ab", NodeStatus.QUEUED)
        for node_id in ("repair", "after"):
            assert events_of(store, execution, node_id)[-1] == "node.reset"
            assert driver.try_claim(execution, node_id) in (Refusal.GONE, Refusal.NOT_READY)
        # when no node fails this time
        assert driver.run(execution, "b").ended is None
        assert driver.run(execution, "a").ended is ExecutionStatus.COMPLETED
        # then the repair is skipped
        assert statuses_of(store, execution) == {
            "a": NodeStatus.COMPLETED,
            "b": NodeStatus.COMPLETED,
            "repair": NodeStatus.SKIPPED,
            "after": NodeStatus.SKIPPED,
        }

    def test_what_was_reset_runs_again_if_the_failure_comes_again(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = _repaired(driver, after=["repair"])
        first = driver.claim(execution, "repair")
        driver.record(execution, first, data="first")
        driver.run(execution, "b", Outcome.FAILED)
        driver.retry(execution)
        driver.run(execution, "a", Outcome.FAILED, data=_ERROR)
        driver.run(execution, "b")
        node = driver.claim(execution, "repair")
        assert node.fence > first.fence
        assert (node.attempt, node.recovery_attempts) == (1, 0)
        driver.record(execution, node, data="second")
        assert dict(driver.claim(execution, "after").results) == {"repair": '"second"'}

    @pytest.mark.parametrize("repair_runs_again", [False, True])
    def test_a_claim_on_a_run_that_is_reset_is_stale_whatever_becomes_of_it(
        self, store: ExecutionStore, driver: StoreDriver, repair_runs_again: bool
    ) -> None:
        execution = _repaired(driver)
        stale = driver.claim(execution, "repair")
        driver.run(execution, "b", Outcome.FAILED)
        driver.retry(execution)
        if repair_runs_again:
            driver.run(execution, "a", Outcome.FAILED, data=_ERROR)
            assert driver.claim(execution, "repair").fence > stale.fence
        before = everything_of(store, execution)
        for outcome in (Outcome.COMPLETED, Outcome.FAILED, Outcome.RELEASED, Outcome.RETRY):
            assert not driver.record(execution, stale, outcome, data="stale").recorded
        assert everything_of(store, execution) == before

    def test_a_run_that_was_lost_in_a_reset_is_not_released_by_the_sweep(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = _repaired(driver)
        StoreDriver(store, clock=clock, lease_seconds=5).claim(execution, "repair")
        driver.run(execution, "b", Outcome.FAILED)
        driver.retry(execution)
        clock.advance(6)
        assert list(driver.sweep().jobs) == []

    @pytest.mark.parametrize("ended", [True, False])
    def test_a_join_after_a_handled_failure_counts_anew(
        self, store: ExecutionStore, driver: StoreDriver, ended: bool
    ) -> None:
        # given a join of a failure and of a node that has completed, or still runs
        workflow = graph("join", {"a": [], "x": [], "b": [], "join": [after_any_end("a"), "x"]})
        execution = driver.start(workflow)
        x = driver.claim(execution, "x")
        driver.run(execution, "a", Outcome.FAILED, data=_ERROR)
        if ended:
            driver.record(execution, x, data="x")
            driver.run(execution, "join")
        driver.run(execution, "b", Outcome.FAILED)
        driver.retry(execution)
        # when all is run again
        if not ended:
            assert list(driver.record(execution, x, data="x").jobs) == []
        (job,) = driver.run(execution, "a", data="a").jobs
        # then the join runs once, with both
        assert job.node_id == "join"
        node = driver.claim(execution, "join")
        assert dict(node.results) == {"a": '"a"', "x": '"x"'}
        driver.record(execution, node)
        assert driver.run(execution, "b").ended is ExecutionStatus.COMPLETED
        assert sum(store.stats().open_node_runs.values()) == 0

    def test_what_was_skipped_for_a_handled_failure_may_run_now(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = _repaired(driver, go=["a"], on=["go"])
        assert statuses_of(store, execution)["on"] is NodeStatus.SKIPPED
        driver.run(execution, "b", Outcome.FAILED)
        driver.retry(execution)
        assert [job.node_id for job in driver.run(execution, "a", data=1).jobs] == ["go"]
        driver.drain()
        assert statuses_of(store, execution) == {
            **dict.fromkeys(("a", "b", "go", "on"), NodeStatus.COMPLETED),
            "repair": NodeStatus.SKIPPED,
        }

    def test_a_failure_that_its_record_handled_is_handled_no_less(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("go-on", {"a": [], "b": [], "after": ["a"]}))
        driver.run(execution, "a", Outcome.FAILED, data=_ERROR, taken=("after",), handled=True)
        driver.run(execution, "after")
        driver.run(execution, "b", Outcome.FAILED)
        assert sorted(job.node_id for job in driver.retry(execution).jobs) == ["a", "b"]
        driver.run(execution, "a", data="a")
        assert dict(driver.claim(execution, "after").results) == {"a": '"a"'}

    def test_a_handled_failure_that_led_nowhere_runs_again_too(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        driver.run(execution, "a", Outcome.FAILED, data=_ERROR, handled=True)
        assert driver.run(execution, "b", Outcome.FAILED).ended is ExecutionStatus.FAILED
        assert sorted(job.node_id for job in driver.retry(execution).jobs) == ["a", "b"]
        assert driver.run(execution, "b", data=2).ended is None
        assert driver.run(execution, "a", data=1).ended is ExecutionStatus.COMPLETED
        assert execution_of(store, execution).output == {"a": 1, "b": 2}

    @pytest.mark.parametrize("handled", [False, True])
    def test_a_failure_after_a_handled_failure_is_reset_and_not_run(
        self, store: ExecutionStore, driver: StoreDriver, handled: bool
    ) -> None:
        # given a failure whose repair fails too, handled in turn or not
        execution = _repaired(driver, last=["repair"])
        taken = ("last",) if handled else ()
        driver.run(execution, "repair", Outcome.FAILED, data=_ERROR, taken=taken)
        if handled:
            driver.run(execution, "b", Outcome.FAILED)
        # when the execution is retried
        answer = driver.retry(execution)
        # then only the first failure runs again: whether a repair follows is open
        assert sorted(job.node_id for job in answer.jobs) == ["a", "b"]
        driver.run(execution, "b")
        assert driver.run(execution, "a").ended is ExecutionStatus.COMPLETED
        assert statuses_of(store, execution)["repair"] is NodeStatus.SKIPPED

    def test_the_end_waits_for_what_was_reset(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = _repaired(driver)
        driver.run(execution, "repair")  # a sink, which had arrived at the end
        driver.run(execution, "b", Outcome.FAILED)
        driver.retry(execution)
        assert driver.run(execution, "b").ended is None
        assert driver.run(execution, "a", Outcome.FAILED, data=_ERROR).ended is None
        assert driver.run(execution, "repair").ended is ExecutionStatus.COMPLETED

    def test_a_timer_of_a_run_that_is_reset_does_not_fire(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = _repaired(driver)
        driver.wait(execution, driver.claim(execution, "repair"), delay_seconds=10)
        driver.run(execution, "b", Outcome.FAILED)
        driver.retry(execution)
        clock.advance(11)
        assert list(driver.sweep().jobs) == []
        assert store.next_due() is None or "repair" not in statuses_of(store, execution)

    def test_an_open_child_of_a_run_that_is_reset_is_cancelled(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = _repaired(driver)
        child = driver.start_child(execution, "repair", single("child"))
        grandchild = driver.start_child(child, "only", single("grandchild"), depth=2)
        driver.run(execution, "b", Outcome.FAILED)
        answer = driver.retry(execution)
        assert (answer.executions[0], sorted(answer.executions)) == (execution, sorted([execution, child, grandchild]))
        assert status_of(store, child) is status_of(store, grandchild) is ExecutionStatus.CANCELLED
        assert sorted(job.node_id for job in answer.jobs) == ["a", "b"]
        # and its end wakes no run
        driver.run(execution, "a", Outcome.FAILED, data=_ERROR)
        before = everything_of(store, execution)
        assert driver.wake(child) == []
        assert [job for swept in driver.sweep_all() for job in swept.jobs] == []
        assert everything_of(store, execution) == before

    def test_an_ended_child_of_a_run_that_is_reset_stays(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = _repaired(driver)
        child = driver.start_child(execution, "repair", single("child"))
        driver.run(child, "only", data=1)
        before = everything_of(store, child)
        driver.run(execution, "b", Outcome.FAILED)
        assert list(driver.retry(execution).executions) == [execution]
        assert everything_of(store, child) == before
        # and the run that is created anew does not see it
        assert driver.wake(child) == []
        driver.run(execution, "a", Outcome.FAILED, data=_ERROR)
        assert driver.claim(execution, "repair").woken is None

    @pytest.mark.parametrize("open_items", [True, False])
    def test_the_items_of_a_run_that_is_reset_go(
        self, store: ExecutionStore, driver: StoreDriver, open_items: bool
    ) -> None:
        execution = _repaired(driver)
        driver.fan_out(execution, "repair", list("wxyz"), max_concurrency=2)
        stale = driver.claim(execution, "repair", 1)
        if not open_items:
            driver.drain(lambda node: node.item if node.node_id == "repair" else 1 / 0)
            driver.record(execution, stale)
            driver.drain()
        else:
            driver.run(execution, "b", Outcome.FAILED)
        driver.retry(execution)
        assert [run.status for run in store.get_node_results(execution, ["repair"])] in ([], [NodeStatus.PENDING])
        # when the node is mapped anew, over fewer
        driver.run(execution, "a", Outcome.FAILED, data=_ERROR)
        driver.fan_out(execution, "repair", ["new"])
        node = driver.claim(execution, "repair", 1)
        assert node.fence > stale.fence
        assert node.data == '"new"'
        assert not driver.record(execution, stale).recorded
        driver.record(execution, node)
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED
        assert [run.item for run in store.get_node_results(execution, ["repair"])] == [0, 1]

    def test_a_reset_reaches_any_depth_and_nothing_else(self, store: ExecutionStore, driver: StoreDriver) -> None:
        depth = 60
        down = {f"r{number}": ["repair" if number == 0 else f"r{number - 1}"] for number in range(depth)}
        side = {f"s{number}": ["b" if number == 0 else f"s{number - 1}"] for number in range(3)}
        execution = _repaired(driver, **down, **side, other=["s2"])
        driver.run(execution, "b")
        for name in side:
            driver.run(execution, name)
        driver.run(execution, "repair", taken=())
        driver.run(execution, "other", Outcome.FAILED)
        kept = store.get_node_results(execution, ["b", *side])
        assert sorted(job.node_id for job in driver.retry(execution).jobs) == ["a", "other"]
        assert store.get_node_results(execution, ["b", *side]) == kept
        assert statuses_of(store, execution).keys() == {"a", "b", "other", *side}
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED
        assert run_of(store, execution, f"r{depth - 1}").status is NodeStatus.SKIPPED

    def test_it_may_be_retried_twice(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = _repaired(driver, after=["repair"])
        for number in range(2):
            driver.run(execution, "repair", data=number)
            driver.run(execution, "b", Outcome.FAILED)
            driver.retry(execution)
            driver.run(execution, "a", Outcome.FAILED, data=_ERROR)
        driver.run(execution, "repair", data="last")
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED
        assert events_of(store, execution, "repair").count("node.reset") == 2
