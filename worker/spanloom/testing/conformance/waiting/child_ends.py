"""Conformance: the end of a child execution, and the wake of its parent's run."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeClaim, NodeJob, NodeKey, Outcome
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.conformance.reading.seen import everything_of, execution_of, run_of, status_of
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, fan, graph, single

__all__ = ["ChildEndRaces", "ChildEnds"]


def _complete(driver: StoreDriver, child: str) -> None:
    assert driver.run(child, "only", data="done").ended is ExecutionStatus.COMPLETED


def _fail(driver: StoreDriver, child: str) -> None:
    assert driver.run(child, "only", Outcome.FAILED).ended is ExecutionStatus.FAILED


def _cancel(driver: StoreDriver, child: str) -> None:
    assert driver.cancel(child).done


def _end(driver: StoreDriver, child: str, node: NodeClaim) -> list[NodeJob]:
    """Complete a child and wake its parent, as a worker does."""
    assert driver.record(child, node).recorded
    return driver.wake(child)


_EACH_END = pytest.mark.parametrize("end", [_complete, _fail, _cancel])


class ChildEnds:
    """The end of a child wakes the run that waits for it: through wake_parents, or the sweep."""

    @_EACH_END
    def test_a_child_that_ends_wakes_its_parents_run(
        self, store: ExecutionStore, driver: StoreDriver, end: Callable[[StoreDriver, str], None]
    ) -> None:
        parent = driver.start(single("parent"))
        child = driver.start_child(parent, "only", single("child"))
        end(driver, child)
        # given that the end alone leaves the parent unchanged
        assert run_of(store, parent, "only").status is NodeStatus.WAITING
        # when its parent is woken
        (job,) = driver.wake(child)
        # then the run is queued, and is claimed with the child that woke it
        assert (job.execution_id, job.node_id, job.item, job.push) == (parent, "only", 0, 2)
        assert run_of(store, parent, "only").status is NodeStatus.QUEUED
        event = store.get_events(parent)[-1]
        assert (event.kind, event.data["because"]) == ("node.queued", "child")
        node = driver.claim(parent, "only")
        assert (node.woken, node.wait_key, node.attempt) == (WaitKind.CHILD, child, 1)
        assert driver.record(parent, node).ended is ExecutionStatus.COMPLETED

    @_EACH_END
    def test_the_sweep_tells_the_parent_if_nobody_did(
        self, store: ExecutionStore, driver: StoreDriver, end: Callable[[StoreDriver, str], None]
    ) -> None:
        parent = driver.start(single("parent"))
        child = driver.start_child(parent, "only", single("child"))
        assert list(driver.sweep().jobs) == []
        end(driver, child)
        swept = driver.sweep()
        assert ([(job.execution_id, job.push) for job in swept.jobs], swept.moved["child"]) == ([(parent, 2)], 1)
        node = driver.claim(parent, "only")
        assert (node.woken, node.wait_key) == (WaitKind.CHILD, child)
        assert driver.sweep_all() == []

    def test_a_parent_is_told_once(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        child = driver.start_child(parent, "only", single("child"))
        _complete(driver, child)
        assert len(driver.wake(child)) == 1
        before = everything_of(store, parent)
        assert driver.wake(child) == []
        assert driver.sweep_all() == []
        assert everything_of(store, parent) == before

    def test_the_childs_history_and_results_stay(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        child = driver.start_child(parent, "only", single("child"))
        _complete(driver, child)
        before = everything_of(store, child)
        driver.wake(child)
        assert everything_of(store, child) == before
        assert [run.node_id for run in store.get_node_results(child)] == ["only"]
        assert sum(store.stats().open_node_runs.values()) == 1

    def test_those_that_have_nothing_to_tell_are_passed_over(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(graph("parent", {"a": [], "b": []}))
        ended = driver.start_child(parent, "a", single("child"))
        running = driver.start_child(parent, "b", "child")
        root = driver.start("child")
        for execution in (ended, root):
            driver.run(execution, "only")
        jobs = driver.wake("no such thing", str(uuid.uuid4()), running, root, ended, ended, parent)
        assert [(job.execution_id, job.node_id) for job in jobs] == [(parent, "a")]
        assert driver.wake() == []
        assert run_of(store, parent, "b").status is NodeStatus.WAITING

    @pytest.mark.parametrize("through", ["wake", "sweep"])
    @pytest.mark.parametrize("stale", ["fence", "child"])
    def test_only_the_child_that_the_run_waits_for_under_that_fence_wakes_it(
        self, store: ExecutionStore, driver: StoreDriver, through: str, stale: str
    ) -> None:
        # given a run that waits for a child, and another child of the same run, from before or not requested
        parent = driver.start(single("parent"))
        store.save_workflow(single("child"))
        node = driver.claim(parent, "only")
        fence = node.fence + (1 if stale == "fence" else 0)
        other = driver.start("child", parent=NodeKey(parent, "only"), parent_fence=fence, depth=1)
        wanted = request("child")
        driver.send(driver.waiting_for_child(parent, node, wanted))
        # when the other one ends
        _complete(driver, other)
        before = store.get_node_results(parent), store.get_events(parent)
        if through == "wake":
            assert driver.wake(other) == []
        else:
            assert [job for swept in driver.sweep_all() for job in swept.jobs] == []
        # then the run still waits for its own, and no further wake is due
        assert (store.get_node_results(parent), store.get_events(parent)) == before
        assert driver.sweep_all() == []
        _complete(driver, wanted.execution_id)
        assert len(driver.wake(wanted.execution_id)) == 1

    @pytest.mark.parametrize("through", ["wake", "sweep"])
    @pytest.mark.parametrize("how", ["paused", "failed"])
    def test_in_a_parent_that_does_not_run_the_woken_run_is_held(
        self, store: ExecutionStore, driver: StoreDriver, how: str, through: str
    ) -> None:
        parent = driver.start(graph("parent", {"a": [], "b": []}))
        child = driver.start_child(parent, "a", single("child"))
        _complete(driver, child)
        if how == "paused":
            driver.pause(parent)
        else:
            driver.run(parent, "b", Outcome.FAILED)
        pushed = (
            driver.wake(child) if through == "wake" else [job for swept in driver.sweep_all() for job in swept.jobs]
        )
        assert pushed == []
        run = run_of(store, parent, "a")
        assert (run.status, run.due_at) == (NodeStatus.HELD, None)
        (driver.resume if how == "paused" else driver.retry)(parent)
        node = driver.claim(parent, "a")
        assert (node.woken, node.wait_key) == (WaitKind.CHILD, child)

    def test_a_child_of_a_failed_parent_goes_on(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(graph("parent", {"a": [], "b": []}))
        child = driver.start_child(parent, "a", single("child"))
        driver.run(parent, "b", Outcome.FAILED)
        assert status_of(store, child) is ExecutionStatus.RUNNING
        _complete(driver, child)

    def test_a_child_cancelled_with_its_parent_tells_nobody(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        child = driver.start_child(parent, "only", single("child"))
        driver.cancel(parent)
        assert status_of(store, child) is ExecutionStatus.CANCELLED
        before = everything_of(store, parent)
        assert driver.wake(child) == []
        assert [job for swept in driver.sweep_all() for job in swept.jobs] == []
        assert everything_of(store, parent) == before
        assert (store.next_due(), sum(store.stats().open_node_runs.values())) == (None, 0)

    def test_a_run_may_wait_for_one_child_after_another(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        store.save_workflow(single("child"))
        children: list[str] = []
        for _ in range(3):
            children.append(driver.start_child(parent, "only", "child"))
            _complete(driver, children[-1])
            driver.wake(children[-1])
            node = driver.claim(parent, "only")
            assert (node.woken, node.wait_key) == (WaitKind.CHILD, children[-1])
            driver.record(parent, node, Outcome.RELEASED)
        assert sorted(row.id for row in store.get_child_executions(parent)) == sorted(children)

    def test_an_item_may_wait_for_a_child_of_its_own(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        store.save_workflow(single("child"))
        driver.fan_out(parent, "only", ["x", "y"])
        children = [driver.start_child(parent, "only", "child", item=item) for item in (1, 2)]
        assert sorted(row.parent_item or 0 for row in store.get_child_executions(parent)) == [1, 2]
        _complete(driver, children[1])
        (job,) = driver.wake(children[1])
        assert (job.node_id, job.item) == ("only", 2)
        node = driver.claim(parent, "only", 2)
        assert (node.woken, node.wait_key, node.data) == (WaitKind.CHILD, children[1], '"y"')
        assert run_of(store, parent, "only", 1).status is NodeStatus.WAITING

    def test_a_failed_child_is_retried_too_if_its_parent_had_failed_before_it_could_be_told(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        # given a parent that fails on one branch, and then a child of another branch
        parent = driver.start(graph("parent", {"call": [], "bad": []}))
        store.save_workflow(chain(2, "child"))
        child = driver.start_child(parent, "call", "child")
        driver.run(parent, "bad", Outcome.FAILED)
        driver.run(child, "n1")
        driver.run(child, "n2", Outcome.FAILED)
        assert driver.wake(child) == []
        assert run_of(store, parent, "call").status is NodeStatus.HELD
        # when it is retried, then both go on, and the child's completed nodes are kept
        retried = driver.retry(parent)
        assert set(retried.executions) == {parent, child}
        assert sorted((job.execution_id, job.node_id) for job in retried.jobs) == sorted(
            [(parent, "bad"), (child, "n2")]
        )
        assert run_of(store, parent, "call").status is NodeStatus.WAITING
        driver.drain()
        assert execution_of(store, child).status is ExecutionStatus.COMPLETED
        assert execution_of(store, parent).status is ExecutionStatus.COMPLETED

    def test_a_family_runs_to_its_end_by_itself(self, store: ExecutionStore, driver: StoreDriver) -> None:
        # given nodes of the type `call` that wait for a child, in a parent and in its children
        store.save_workflow(fan(3, "grandchild"))
        store.save_workflow(graph("child", {"a": [], "b": []}, type="call"))
        below = {"outer": "child", "call": "grandchild"}

        def work(node: NodeClaim) -> object:
            if node.node_type not in below or node.woken is not None:
                return [node.node_id, node.woken]
            return request(below[node.node_type])

        # when all jobs are run, and each end wakes its parent
        root = driver.start(graph("parent", {"first": [], "second": ["first"]}, type="outer"), 1)
        ran = driver.drain(work)
        # then every node ran once, and all executions have ended
        assert execution_of(store, root).output == ["second", "child"]
        assert (ran.count("a"), ran.count("split"), ran.count("first"), store.get_execution_count()) == (4, 4, 2, 7)
        assert sum(store.stats().open_node_runs.values()) == 0


class ChildEndRaces:
    """Ends of children at once: each parent's run is woken once, without deadlocks."""

    def test_one_of_many_that_tell_of_the_same_end_wakes_the_run(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        for _ in range(5):
            parent = driver.start(single("parent"))
            child = driver.start_child(parent, "only", single("child"))
            _complete(driver, child)

            def swept() -> list[NodeJob]:
                return list(store.sweep(heads={}, epoch=0, now=driver.now()).jobs)

            calls: list[Callable[[], list[NodeJob]]] = [partial(driver.wake, child), swept] * 4
            answers = race(calls)
            pushed = [job for jobs in answers for job in jobs if job.execution_id == parent]
            assert [(job.node_id, job.push) for job in pushed] == [("only", 2)]

    def test_children_that_end_at_once_wake_each_their_own_run(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        store.save_workflow(single("child"))
        for _ in range(3):
            parent = driver.start(fan(8, "parent"))
            driver.run(parent, "split")
            children = [driver.start_child(parent, f"w{number}", "child") for number in range(1, 9)]
            claims = [driver.claim(child, "only") for child in children]

            pushed = race([partial(_end, driver, *pair) for pair in zip(children, claims, strict=True)])
            assert [[job.node_id for job in jobs] for jobs in pushed] == [[f"w{number}"] for number in range(1, 9)]

    def test_a_cancel_of_the_family_and_ends_of_its_children_agree(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        store.save_workflow(single("child"))
        for _ in range(5):
            parent = driver.start(fan(4, "parent"))
            driver.run(parent, "split")
            children = [driver.start_child(parent, f"w{number}", "child") for number in range(1, 5)]
            nodes = [driver.claim(child, "only") for child in children]
            calls: list[Callable[[], object]] = [partial(driver.cancel, parent)]
            calls += [partial(_end, driver, child, node) for child, node in zip(children, nodes, strict=True)]
            race(calls)
            driver.sweep_all()
            assert status_of(store, parent) is ExecutionStatus.CANCELLED
            assert all(status_of(store, child).ended for child in children)
            assert all(run.status.ended for run in store.get_node_results(parent))
        assert sum(store.stats().open_node_runs.values()) == 0
