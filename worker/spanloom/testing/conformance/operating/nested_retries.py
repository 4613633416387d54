"""Conformance: retries where few or misleading rows are left to retry."""

from __future__ import annotations

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import status_of
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import graph, single

__all__ = ["NestedRetries"]


class NestedRetries:
    """`retry_execution` of runs that had waited for children, for items, or too long."""

    def test_one_that_missed_its_deadline_in_its_last_run_is_complete_at_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        parent = driver.start(single("parent"))
        child = driver.start_child(parent, "only", single("child"), deadline_seconds=5)
        node = driver.claim(child, "only")
        clock.advance(6)
        assert list(driver.sweep().ended) == [child]
        driver.record(child, node, data="late")
        answer = driver.retry(child)
        assert (answer.done, answer.revision, list(answer.jobs)) == (True, 1, [])
        found = store.get_execution(child)
        assert found is not None
        assert (found.status, found.output, found.error) == (ExecutionStatus.COMPLETED, "late", None)
        assert store.get_events(child)[-1].kind == "execution.completed"
        assert sum(store.stats().open_node_runs.values()) == 1

    def test_a_child_from_before_a_reset_is_not_gone_on_with(self, store: ExecutionStore, driver: StoreDriver) -> None:
        # given a run that was reset after its child had completed
        parent = driver.start(graph("parent", {"a": [], "b": ["a"], "c": []}))
        driver.run(parent, "a", Outcome.FAILED, taken=("b",))
        earlier = driver.start_child(parent, "b", single("child"))
        driver.run(earlier, "only")
        driver.wake(earlier)
        driver.run(parent, "c", Outcome.FAILED)
        driver.retry(parent)
        driver.run(parent, "a")
        # when it fails before it has requested another one
        assert driver.claim(parent, "c").woken is None
        driver.run(parent, "b", Outcome.FAILED)
        driver.retry(parent)
        # then it begins anew
        node = driver.claim(parent, "b")
        assert (node.woken, node.wait_key) == (None, None)

    def test_a_run_that_failed_with_what_its_child_had_left_goes_on_from_there_again_and_again(
        self,
        driver: StoreDriver,
    ) -> None:
        parent = driver.start(single("parent"))
        child = driver.start_child(parent, "only", single("child"))
        driver.run(child, "only")
        driver.wake(child)
        for _ in range(3):
            node = driver.claim(parent, "only")
            assert (node.woken, node.wait_key) == (WaitKind.CHILD, child)
            driver.record(parent, node, Outcome.FAILED)
            assert list(driver.retry(parent).executions) == [parent]

    def test_a_mapped_node_that_failed_without_a_failed_item_goes_on_from_them(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x", "y"])
        for item in (1, 2):
            driver.run(execution, "only", item=item)
        driver.run(execution, "only", Outcome.FAILED)
        (job,) = driver.retry(execution).jobs
        assert (job.item, job.push) == (0, 3)
        node = driver.claim(execution, "only")
        assert (node.woken, node.attempt) == (WaitKind.ITEMS, 1)
        assert [run.status for run in store.get_node_results(execution)[1:]] == [NodeStatus.COMPLETED] * 2

    def test_a_family_of_failures_is_retried_down_to_where_it_began(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        top = driver.start(single("top"))
        middle = driver.start_child(top, "only", single("middle"))
        bottom = driver.start_child(middle, "only", single("bottom"), depth=2)
        driver.run(bottom, "only", Outcome.FAILED)
        for child, parent in ((bottom, middle), (middle, top)):
            driver.wake(child)
            driver.run(parent, "only", Outcome.FAILED)
        answer = driver.retry(top)
        assert list(answer.executions) == [top, middle, bottom]
        assert [(job.execution_id, job.push) for job in answer.jobs] == [(bottom, 2)]
        assert [status_of(store, changed) for changed in answer.executions] == [ExecutionStatus.RUNNING] * 3
        driver.run(bottom, "only")
        for child, parent in ((bottom, middle), (middle, top)):
            driver.wake(child)
            assert driver.run(parent, "only").ended is ExecutionStatus.COMPLETED
        assert driver.sweep_all() == []
