"""Conformance: pausing, resuming and cancelling an execution reaches its descendants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from spanloom.engine.errors import InvalidTransition
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeKey, Outcome, RecordRequest, Refusal
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.conformance.reading.seen import events_of, execution_of, run_of, status_of
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, fan, graph

__all__ = ["Families"]


def _family(driver: StoreDriver) -> list[str]:
    """Start a root with a child, and that with a child of its own; the root and the child also have a node queued."""
    root = driver.start(graph("root", {"a": [], "b": []}))
    child = driver.start_child(root, "a", graph("child", {"a": [], "b": []}))
    grandchild = driver.start_child(child, "a", chain(2, "grandchild"), depth=2)
    return [root, child, grandchild]


def _statuses(store: ExecutionStore, executions: Sequence[str]) -> list[ExecutionStatus]:
    return [status_of(store, execution) for execution in executions]


def _revisions(store: ExecutionStore, executions: Sequence[str]) -> list[int]:
    return [execution_of(store, execution).revision for execution in executions]


class Families:
    """Control of an execution that has children."""

    def test_a_pause_and_a_resume_reach_all_descendants(self, store: ExecutionStore, driver: StoreDriver) -> None:
        family = _family(driver)
        # when the root is paused
        answer = driver.pause(family[0])
        # then no run of the family starts
        assert (answer.done, answer.revision, answer.executions[0]) == (True, 1, family[0])
        assert sorted(answer.executions) == sorted(family)
        assert (_statuses(store, family), _revisions(store, family)) == ([ExecutionStatus.PAUSED] * 3, [1] * 3)
        for execution, node_id in zip(family, ("b", "b", "n1"), strict=True):
            assert driver.try_claim(execution, node_id) is Refusal.NOT_READY
        assert run_of(store, family[0], "a").status is NodeStatus.WAITING
        # and when it is resumed all of it goes on
        answer = driver.resume(family[0])
        assert (answer.done, answer.executions[0], sorted(answer.executions)) == (True, family[0], sorted(family))
        assert sorted((job.execution_id, job.node_id) for job in answer.jobs) == sorted(
            [(family[0], "b"), (family[1], "b"), (family[2], "n1")]
        )
        assert (_statuses(store, family), _revisions(store, family)) == ([ExecutionStatus.RUNNING] * 3, [2] * 3)
        driver.drain()
        assert _statuses(store, family) == [ExecutionStatus.COMPLETED] * 3
        for execution in family:
            assert events_of(store, execution)[2:4] == ["execution.paused", "execution.resumed"]

    def test_what_descends_from_an_ended_child_is_reached(self, store: ExecutionStore, driver: StoreDriver) -> None:
        # given a child that completed by hand while a child of its own runs on
        root, child, grandchild = _family(driver)
        for node_id in ("a", "b"):
            store.update_node_result(RecordRequest(child, node_id, 0, 0, "", Outcome.COMPLETED), now=driver.now())
        assert status_of(store, child) is ExecutionStatus.COMPLETED
        # when the root is paused, resumed and cancelled, then the grandchild is as well
        for control, status in (
            (driver.pause, ExecutionStatus.PAUSED),
            (driver.resume, ExecutionStatus.RUNNING),
            (driver.cancel, ExecutionStatus.CANCELLED),
        ):
            assert control(root).executions == [root, grandchild]
            assert _statuses(store, [root, child, grandchild]) == [status, ExecutionStatus.COMPLETED, status]

    def test_a_cancel_reaches_all_descendants(self, store: ExecutionStore, driver: StoreDriver) -> None:
        # given a family with a running node, a paused child, and one whose start is still to come
        family = _family(driver)
        node = driver.claim(family[2], "n1")
        paused = driver.start_child(family[0], "b", chain(1, "paused"))
        driver.pause(paused)
        pending = driver.start(
            chain(1, "later"), parent=NodeKey(family[2], "n1"), parent_fence=9, depth=3, delay_seconds=60
        )
        everyone = [*family, paused, pending]
        # when the root is cancelled
        answer = driver.cancel(family[0])
        # then all of them are
        assert (answer.executions[0], sorted(answer.executions)) == (family[0], sorted(everyone))
        assert _statuses(store, everyone) == [ExecutionStatus.CANCELLED] * 5
        assert _revisions(store, everyone) == [1, 1, 1, 2, 1]
        assert sum(store.stats().open_node_runs.values()) == 0
        assert driver.record(family[2], node).recorded
        assert [job for swept in driver.sweep_all() for job in swept.jobs] == []
        for execution in everyone:
            assert events_of(store, execution).count("execution.cancelled") == 1

    def test_the_control_of_a_child_leaves_its_parent_alone(self, store: ExecutionStore, driver: StoreDriver) -> None:
        root, child, grandchild = family = _family(driver)
        running, paused, cancelled = ExecutionStatus.RUNNING, ExecutionStatus.PAUSED, ExecutionStatus.CANCELLED
        answer = driver.pause(child)
        assert (answer.executions[0], sorted(answer.executions)) == (child, sorted([child, grandchild]))
        assert _statuses(store, family) == [running, paused, paused]
        driver.resume(child)
        assert _statuses(store, family) == [running] * 3
        driver.cancel(child)
        assert _statuses(store, family) == [running, cancelled, cancelled]
        assert _revisions(store, family) == [0, 3, 3]
        # and its parent's run is woken by its end
        (job,) = driver.wake(child)
        assert (job.execution_id, job.node_id) == (root, "a")
        node = driver.claim(root, "a")
        assert (node.woken, node.wait_key) == (WaitKind.CHILD, child)

    def test_descendants_that_have_ended_stay_as_they_are(self, store: ExecutionStore, driver: StoreDriver) -> None:
        # given a completed, a failed and a running child
        root = driver.start(fan(3))
        driver.run(root, "split")
        store.save_workflow(chain(1, "child"))
        completed, failed, running = [driver.start_child(root, name, "child") for name in ("w1", "w2", "w3")]
        driver.run(completed, "n1")
        driver.run(failed, "n1", Outcome.FAILED)
        before = [execution_of(store, member) for member in (completed, failed)]
        for control in (driver.pause, driver.resume, driver.cancel):
            answer = control(root)
            assert sorted(answer.executions) == sorted([root, running])
            assert [execution_of(store, member) for member in (completed, failed)] == before

    def test_a_child_that_was_paused_by_itself_is_resumed_with_its_parent(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        family = _family(driver)
        driver.pause(family[2])
        answer = driver.pause(family[0])
        assert sorted(answer.executions) == sorted(family[:2])
        assert _revisions(store, family) == [1, 1, 1]
        assert sorted(driver.resume(family[0]).executions) == sorted(family)
        assert _statuses(store, family) == [ExecutionStatus.RUNNING] * 3

    def test_a_child_that_runs_on_in_a_paused_parent_can_be_resumed_by_itself(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        family = _family(driver)
        driver.pause(family[0])
        driver.resume(family[2])
        driver.drain()
        paused = ExecutionStatus.PAUSED
        assert _statuses(store, family) == [paused, paused, ExecutionStatus.COMPLETED]
        assert run_of(store, family[1], "a").status is NodeStatus.HELD
        driver.resume(family[0])
        driver.drain()
        assert _statuses(store, family) == [ExecutionStatus.COMPLETED] * 3

    def test_a_wide_family_is_cancelled_in_one_step(self, store: ExecutionStore, driver: StoreDriver) -> None:
        root = driver.start(fan(50))
        driver.run(root, "split")
        store.save_workflow(chain(1, "child"))
        children = [driver.start_child(root, f"w{number}", "child") for number in range(1, 51)]
        assert sorted(driver.cancel(root).executions) == sorted([root, *children])
        assert sum(store.stats().open_node_runs.values()) == 0

    @pytest.mark.parametrize("rounds", [5])
    def test_controls_of_a_family_at_once_do_not_lock_each_other_out(
        self, store: ExecutionStore, driver: StoreDriver, rounds: int
    ) -> None:
        for _ in range(rounds):
            family = _family(driver)

            def attempt(control: Callable[[str], object], execution: str) -> None:
                try:
                    control(execution)
                except InvalidTransition:  # another transition was first
                    return

            calls: list[Callable[[], object]] = [
                partial(attempt, control, execution)
                for control in (driver.pause, driver.resume)
                for execution in family
            ]
            calls += [partial(driver.drain), partial(driver.sweep)]
            race(calls)
            for execution in family:
                attempt(driver.resume, execution)
            driver.drain()
            driver.sweep_all()
            driver.drain()
            assert _statuses(store, family) == [ExecutionStatus.COMPLETED] * 3
