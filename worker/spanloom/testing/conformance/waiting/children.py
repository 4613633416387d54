"""Conformance: child executions, created in the step in which their parent's run begins to wait."""

from __future__ import annotations

from functools import partial

import pytest

from spanloom.engine.errors import UnknownWorkflow
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, NodeKey, Outcome, Priority
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import events_of, everything_of, execution_of, run_of, status_of
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, diamond, fan, graph, single

__all__ = ["ChildDeadlines", "ChildStarts"]


class ChildStarts:
    """WAITING for a child: the execution that is created, or the refusal."""

    def test_the_child_is_created_in_the_step_in_which_the_run_begins_to_wait(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        parent = driver.start(chain(2, "parent"))
        node = driver.claim(parent, "n1")
        store.save_workflow(diamond("child", queue="q"))
        wanted = request("child", {"id": 7}, priority=Priority.HIGH, metadata={"k": "v"})
        # when the run's record requests a child
        clock.advance(1)
        answer = driver.send(driver.waiting_for_child(parent, node, wanted))
        # then the run waits for it and for no time
        child = wanted.execution_id
        assert (answer.recorded, answer.refused, answer.next, answer.ended) == (True, None, None, None)
        run = run_of(store, parent, "n1")
        assert (run.status, run.wait_kind, run.wait_key, run.due_at, run.worker_id) == (
            *(NodeStatus.WAITING, WaitKind.CHILD, child),
            *(None, None),
        )
        assert store.get_events(parent)[-1].kind == "node.waiting"
        # and the child runs, with the job of its entry node to push
        found = execution_of(store, child)
        assert (found.status, found.workflow_id, found.version, found.input) == (
            *(ExecutionStatus.RUNNING, "child", 1),
            {"id": 7},
        )
        assert (found.parent_execution_id, found.parent_node_id, found.parent_item) == (parent, "n1", 0)
        assert (found.depth, found.priority, found.metadata) == (1, Priority.HIGH, {"k": "v"})
        assert found.started_at == clock()
        (job,) = answer.jobs
        assert (job.execution_id, job.node_id, job.queue, job.priority, job.push) == (child, "top", "q", "high", 1)
        assert events_of(store, child) == ["execution.created", "execution.started"]
        assert [row.id for row in store.get_child_executions(parent)] == [child]

    def test_every_entry_node_of_the_child_is_queued(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        store.save_workflow(graph("child", {"a": [], "b": [], "c": ["a"]}))
        record = driver.waiting_for_child(parent, driver.claim(parent, "only"), request("child"))
        assert sorted(job.node_id for job in driver.send(record).jobs) == ["a", "b"]

    def test_the_childs_claims_know_their_parent(self, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        child = driver.start_child(parent, "only", single("child"))
        claim = driver.try_claim(child, "only")
        assert isinstance(claim, Claim)
        assert (claim.header.parent_execution_id, claim.header.depth) == (parent, 1)

    def test_a_child_takes_the_latest_version_unless_it_names_one(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        store.save_workflow(chain(1, "child"))
        store.save_workflow(chain(2, "child"))
        parent = driver.start(graph("parent", {"a": [], "b": []}))
        assert execution_of(store, driver.start_child(parent, "a", "child")).version == 2
        assert execution_of(store, driver.start_child(parent, "b", "child", version=1)).version == 1

    @pytest.mark.parametrize("why", ["unknown", "version", "deactivated"])
    def test_a_child_that_can_not_be_started_is_refused_and_nothing_is_written(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, why: str
    ) -> None:
        store.save_workflow(single("child"))
        store.save_workflow(single("off"))
        store.deactivate_workflow("off")
        wanted = {
            "unknown": request("nowhere"),
            "version": request("child", version=7),
            "deactivated": request("off"),
        }[why]
        parent, other = driver.start(chain(2, "parent")), driver.start("parent")
        node = driver.claim(parent, "n1")
        before = everything_of(store, parent)
        # when it is requested, beside a valid record
        good = driver.outcome(other, driver.claim(other, "n1"))
        refused, recorded = store.record([driver.waiting_for_child(parent, node, wanted), good], now=clock())
        # then only that request is refused, and none of it is stored
        assert isinstance(refused.refused, UnknownWorkflow)
        assert (list(refused.jobs), refused.next, refused.ended) == ([], None, None)
        assert (recorded.recorded, recorded.refused, len(recorded.jobs)) == (True, None, 1)
        assert everything_of(store, parent) == before
        assert store.get_execution(wanted.execution_id) is None
        # and the claim still holds
        assert driver.record(parent, node, Outcome.FAILED).ended is ExecutionStatus.FAILED

    def test_a_record_sent_again_makes_no_second_child(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        store.save_workflow(single("child"))
        record = driver.waiting_for_child(parent, driver.claim(parent, "only"), request("child"))
        first = driver.send(record)
        before = everything_of(store, parent)
        again = driver.send(record)
        assert (again.recorded, again.refused, again.next) == (True, None, None)
        assert set(again.jobs) <= set(first.jobs)  # those that it leaves out are lost jobs to the sweep
        assert everything_of(store, parent) == before

    def test_a_stale_claim_makes_no_child(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        store.save_workflow(single("child"))
        record = driver.waiting_for_child(parent, driver.claim(parent, "only"), request("child"))
        store.unregister_worker(driver.worker_id)
        before = everything_of(store, parent)
        answer = driver.send(record)
        assert (answer.recorded, list(answer.jobs)) == (False, [])
        assert everything_of(store, parent) == before

    @pytest.mark.parametrize("how", ["paused", "failed"])
    def test_in_a_parent_that_does_not_run_nothing_is_created_and_the_run_is_held(
        self, store: ExecutionStore, driver: StoreDriver, how: str
    ) -> None:
        parent = driver.start(graph("parent", {"a": [], "b": []}))
        store.save_workflow(single("child"))
        node = driver.claim(parent, "a")
        if how == "paused":
            driver.pause(parent)
        else:
            driver.run(parent, "b", Outcome.FAILED)
        wanted = request("child")
        # when a run of it requests a child
        answer = driver.send(driver.waiting_for_child(parent, node, wanted))
        # then it is held
        assert (answer.recorded, answer.refused, list(answer.jobs)) == (True, None, [])
        run = run_of(store, parent, "a")
        assert (run.status, run.due_at) == (NodeStatus.HELD, None)
        assert store.get_child_executions(parent) == []
        # and requests it again, with no child before it, once the execution goes on
        (driver.resume if how == "paused" else driver.retry)(parent)
        again = driver.claim(parent, "a")
        assert (again.woken, again.wait_key, again.attempt) == (None, None, 1)
        assert driver.send(driver.waiting_for_child(parent, again, wanted)).recorded
        assert [row.id for row in store.get_child_executions(parent)] == [wanted.execution_id]

    def test_in_a_cancelled_parent_nothing_is_created(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("parent"))
        store.save_workflow(single("child"))
        node = driver.claim(parent, "only")
        driver.cancel(parent)
        answer = driver.send(driver.waiting_for_child(parent, node, request("child")))
        assert (answer.recorded, list(answer.jobs)) == (True, [])
        assert store.get_child_executions(parent) == []
        assert run_of(store, parent, "only").status is NodeStatus.CANCELLED

    def test_children_of_one_call_do_not_mix(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        parent = driver.start(fan(3))
        store.save_workflow(single("child"))
        driver.run(parent, "split")
        wanted = {name: request("child", name) for name in ("w1", "w2", "w3")}
        records = [driver.waiting_for_child(parent, driver.claim(parent, name), wanted[name]) for name in wanted]
        answers = store.record(records, now=clock())
        assert [[job.execution_id for job in answer.jobs] for answer in answers] == [
            [ask.execution_id] for ask in wanted.values()
        ]
        for name, ask in wanted.items():
            assert run_of(store, parent, name).wait_key == ask.execution_id
            found = execution_of(store, ask.execution_id)
            assert (found.parent_node_id, found.input) == (name, name)

    def test_runs_of_one_execution_that_ask_at_once_each_get_their_child(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        parent = driver.start(fan(8))
        store.save_workflow(single("child"))
        driver.run(parent, "split")
        records = [
            driver.waiting_for_child(parent, driver.claim(parent, f"w{number}"), request("child"))
            for number in range(1, 9)
        ]
        answers = race([partial(driver.send, record) for record in records])
        assert [len(answer.jobs) for answer in answers] == [1] * 8
        assert len(store.get_child_executions(parent)) == 8

    def test_an_execution_started_by_itself_may_have_a_parent_too(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        parent = driver.start(single("parent"))
        child = driver.start(single("child"), parent=NodeKey(parent, "only"), parent_fence=1, depth=1)
        assert [row.id for row in store.get_child_executions(parent)] == [child]
        assert run_of(store, parent, "only").status is NodeStatus.QUEUED


class ChildDeadlines:
    """A child's deadline: its own, and never later than its parent's."""

    @pytest.mark.parametrize("own", [None, 100.0])
    def test_a_child_ends_no_later_than_its_parent(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, own: float | None
    ) -> None:
        parent = driver.start(single("parent"), deadline_seconds=10)
        clock.advance(4)
        child = driver.start_child(parent, "only", single("child"), deadline_seconds=own)
        clock.advance(5)
        assert list(driver.sweep().ended) == []
        clock.advance(2)
        ended = [ended_id for swept in driver.sweep_all() for ended_id in swept.ended]
        assert sorted(ended) == sorted([parent, child])
        for execution in (parent, child):
            found = execution_of(store, execution)
            assert (found.status, (found.error or {})["type"]) == (ExecutionStatus.FAILED, "DeadlineExceeded")

    @pytest.mark.parametrize("deadline", [None, 100.0])
    def test_a_child_that_misses_its_own_deadline_wakes_its_parent(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, deadline: float | None
    ) -> None:
        parent = driver.start(single("parent"), deadline_seconds=deadline)
        child = driver.start_child(parent, "only", single("child"), deadline_seconds=3)
        clock.advance(4)
        ended = [ended_id for swept in driver.sweep_all() for ended_id in swept.ended]
        assert (ended, status_of(store, parent)) == ([child], ExecutionStatus.RUNNING)
        node = driver.claim(parent, "only")
        assert (node.woken, node.wait_key) == (WaitKind.CHILD, child)

    def test_a_child_made_after_its_parents_deadline_has_hardly_any_time(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        # given a parent whose deadline has passed and that no sweep has seen
        parent = driver.start(single("parent"), deadline_seconds=10)
        clock.advance(11)
        child = driver.start_child(parent, "only", single("child"))
        clock.advance(1)
        driver.sweep_all()
        assert status_of(store, parent) is status_of(store, child) is ExecutionStatus.FAILED

    def test_a_grandchild_ends_no_later_than_its_root(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        root = driver.start(single("root"), deadline_seconds=10)
        child = driver.start_child(root, "only", single("child"))
        grandchild = driver.start_child(child, "only", single("grandchild"), depth=2)
        clock.advance(11)
        driver.sweep_all()
        statuses = [status_of(store, member) for member in (root, child, grandchild)]
        assert statuses == [ExecutionStatus.FAILED] * 3

    def test_a_child_of_a_parent_without_a_deadline_has_its_own_or_none(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        parent = driver.start(graph("parent", {"a": [], "b": []}))
        without = driver.start_child(parent, "a", single("child"))
        within = driver.start_child(parent, "b", "child", deadline_seconds=3)
        clock.advance(1000)
        driver.sweep_all()
        assert (status_of(store, without), status_of(store, within)) == (
            ExecutionStatus.RUNNING,
            ExecutionStatus.FAILED,
        )
