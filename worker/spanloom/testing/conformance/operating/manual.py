"""Conformance: executions and open node runs that operators end by hand, and failures that they acknowledge."""

from __future__ import annotations

import json

import pytest

from spanloom.engine.errors import InvalidTransition, StaleVersion, UnknownExecution, UserError
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, NodeKey, Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import events_of, execution_of, run_of, status_of, statuses_of
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, diamond, single

__all__ = ["Acknowledgements", "HeldClaims", "ManualEnds", "ManualFailures"]

UNKNOWN = "00000000-0000-7000-8000-000000000000"
WHY = json.dumps({"type": "ByHand", "message": "enough"})


class ManualFailures:
    """`fail_execution`."""

    def test_it_fails_as_by_its_deadline(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top")
        left = driver.claim(execution, "left")
        clock.advance(3)
        answer = store.fail_execution(execution, WHY, now=clock())
        assert (answer.done, answer.revision, list(answer.executions)) == (True, 1, [execution])
        found = execution_of(store, execution)
        assert (found.status, found.revision, found.ended_at) == (ExecutionStatus.FAILED, 1, clock())
        assert found.error == {"type": "ByHand", "message": "enough"}
        assert statuses_of(store, execution)["right"] is NodeStatus.HELD
        assert driver.record(execution, left).recorded  # running runs may end
        assert not store.fail_execution(execution, WHY, now=clock()).done
        assert events_of(store, execution).count("execution.failed") == 1

    def test_a_retry_goes_on_from_there(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1")
        driver.jobs.clear()
        store.fail_execution(execution, WHY, now=driver.now())
        driver.retry(execution)
        assert driver.drain() == ["n2"]
        assert status_of(store, execution) is ExecutionStatus.COMPLETED

    def test_a_child_tells_its_parent(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("outer"))
        child = driver.start_child(parent, "only", chain(2))
        store.fail_execution(child, WHY, now=driver.now())
        driver.jobs.clear()
        assert [job.execution_id for job in driver.wake(child)] == [parent]
        node = driver.claim(parent, "only")
        assert (node.woken, node.wait_key) == (WaitKind.CHILD, child)

    def test_a_child_of_it_is_left_alone(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("outer"))
        child = driver.start_child(parent, "only", chain(2))
        store.fail_execution(parent, WHY, now=driver.now())
        assert status_of(store, child) is ExecutionStatus.RUNNING

    def test_a_paused_one_fails_too_and_an_ended_or_pending_one_does_not(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        paused = driver.start(chain(2))
        driver.pause(paused)
        assert store.fail_execution(paused, WHY, now=driver.now()).done
        done = driver.start(single())
        pending = driver.start("chain", delay_seconds=60.0)
        driver.jobs.clear()
        driver.run(done, "only")
        for execution in (done, pending):
            with pytest.raises(InvalidTransition):
                store.fail_execution(execution, WHY, now=driver.now())

    def test_who_read_an_older_state_is_refused(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        with pytest.raises(StaleVersion):
            store.fail_execution(execution, WHY, expected_revision=7)
        with pytest.raises(UnknownExecution):
            store.fail_execution(UNKNOWN, WHY)
        assert status_of(store, execution) is ExecutionStatus.RUNNING


class Acknowledgements:
    """`acknowledge_execution`, and the list of dead letters."""

    def test_a_failure_rests_until_it_is_retried(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        dead = ExecutionFilter(status=ExecutionStatus.FAILED, acknowledged=False)
        execution, other = driver.start(single()), driver.start("single")
        for failed in (execution, other):
            driver.run(failed, "only", Outcome.FAILED)
        clock.advance(9)
        answer = store.acknowledge_execution(execution, now=clock())
        assert (answer.done, answer.revision, list(answer.executions), list(answer.jobs)) == (True, 1, [], [])
        found = execution_of(store, execution)
        assert (found.status, found.acknowledged_at, found.revision) == (ExecutionStatus.FAILED, clock(), 1)
        assert not store.acknowledge_execution(execution, now=clock()).done
        assert [found.id for found in store.list_executions(dead).items] == [other]
        assert store.get_execution_count(dead.model_copy(update={"acknowledged": True})) == 1
        assert events_of(store, execution)[-1] == "execution.acknowledged"
        driver.retry(execution)
        assert execution_of(store, execution).acknowledged_at is None

    def test_only_failures_are_acknowledged(self, store: ExecutionStore, driver: StoreDriver) -> None:
        running = driver.start(single())
        for execution in (running, driver.start("single", delay_seconds=9.0)):
            with pytest.raises(InvalidTransition):
                store.acknowledge_execution(execution)
        driver.run(running, "only")
        with pytest.raises(InvalidTransition):
            store.acknowledge_execution(running)
        with pytest.raises(UnknownExecution):
            store.acknowledge_execution(UNKNOWN)

    def test_who_read_an_older_state_is_refused(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", Outcome.FAILED)
        with pytest.raises(StaleVersion) as stale:
            store.acknowledge_execution(execution, expected_revision=3)
        assert stale.value.actual == 0
        assert execution_of(store, execution).acknowledged_at is None

    def test_roots_are_found_without_their_children(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single("outer"))
        child = driver.start_child(parent, "only", chain(2))
        assert [found.id for found in store.list_executions(ExecutionFilter(root=True)).items] == [parent]
        assert [found.id for found in store.list_executions(ExecutionFilter(root=False)).items] == [child]


class ManualEnds:
    """`update_node_result`."""

    def by_hand(
        self, driver: StoreDriver, key: NodeKey, outcome: Outcome = Outcome.COMPLETED, **fields: str
    ) -> RecordResult:
        if outcome is Outcome.COMPLETED:
            fields.setdefault("data", '"by hand"')
        elif outcome is Outcome.FAILED:
            fields.setdefault("error", WHY)
        record = RecordRequest(*key, fence=0, worker_id="", outcome=outcome, **fields)  # type: ignore[arg-type]
        answer = driver.store.update_node_result(record, now=driver.now())
        driver.jobs.extend(answer.jobs)
        return answer

    def test_a_queued_run_ends_and_what_follows_is_queued(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        driver.jobs.clear()
        answer = self.by_hand(driver, NodeKey(execution, "n1"))
        assert (answer.recorded, answer.next, answer.ended) == (True, None, None)
        assert [(job.node_id, job.push) for job in answer.jobs] == [("n2", 1)]
        run = run_of(store, execution, "n1")
        assert (run.status, run.data, run.worker_id) == (NodeStatus.COMPLETED, "by hand", None)
        assert dict(driver.claim(execution, "n2").results) == {"n1": '"by hand"'}
        assert events_of(store, execution, "n1")[-1] == "node.completed"
        assert execution_of(store, execution).revision == 0

    def test_the_last_run_ends_the_execution(self, store: ExecutionStore, driver: StoreDriver) -> None:
        done, failed = driver.start(single()), driver.start("single")
        assert self.by_hand(driver, NodeKey(done, "only")).ended is ExecutionStatus.COMPLETED
        assert self.by_hand(driver, NodeKey(failed, "only"), Outcome.FAILED).ended is ExecutionStatus.FAILED
        assert execution_of(store, done).output == "by hand"
        error = execution_of(store, failed).error
        assert error is not None
        assert (error["node_id"], error["type"]) == ("only", "ByHand")

    def test_a_skip_travels(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(3))
        assert self.by_hand(driver, NodeKey(execution, "n1"), Outcome.SKIPPED).ended is ExecutionStatus.COMPLETED
        assert set(statuses_of(store, execution).values()) == {NodeStatus.SKIPPED}

    @pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.WAITING])
    def test_a_run_that_waits_for_time_ends(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, outcome: Outcome
    ) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1", outcome, delay_seconds=60.0)
        self.by_hand(driver, NodeKey(execution, "n1"))
        clock.advance(90)
        driver.sweep_all()
        assert statuses_of(store, execution)["n1"] is NodeStatus.COMPLETED
        assert status_of(store, execution) is ExecutionStatus.RUNNING

    def test_a_run_that_waits_for_its_child_ends_and_the_child_wakes_nobody(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        parent = driver.start(chain(2, "outer"))
        child = driver.start_child(parent, "n1", single())
        self.by_hand(driver, NodeKey(parent, "n1"))
        driver.run(child, "only")
        assert driver.wake(child) == []
        assert statuses_of(store, parent) == {"n1": NodeStatus.COMPLETED, "n2": NodeStatus.QUEUED}

    def test_an_item_ends_at_its_node(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x", "y"])
        self.by_hand(driver, NodeKey(execution, "only", 1))
        assert run_of(store, execution, "only", 1).data == "by hand"
        driver.run(execution, "only", item=2)
        assert driver.claim(execution, "only").woken is WaitKind.ITEMS

    def test_a_held_run_of_a_paused_or_failed_execution_ends(self, store: ExecutionStore, driver: StoreDriver) -> None:
        paused, failed = driver.start(chain(2)), driver.start("chain")
        driver.pause(paused)
        store.fail_execution(failed, WHY, now=driver.now())
        for execution, status in ((paused, ExecutionStatus.PAUSED), (failed, ExecutionStatus.FAILED)):
            assert list(self.by_hand(driver, NodeKey(execution, "n1")).jobs) == []
            assert statuses_of(store, execution) == {"n1": NodeStatus.COMPLETED, "n2": NodeStatus.HELD}
            assert status_of(store, execution) is status

    def test_a_live_claim_is_not_overruled_and_a_lapsed_one_is(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(chain(2))
        worker = StoreDriver(store, clock=clock, lease_seconds=10)
        claim = worker.claim(execution, "n1")
        with pytest.raises(InvalidTransition) as refused:
            self.by_hand(driver, NodeKey(execution, "n1"))
        assert refused.value.current == "running"
        clock.advance(11)
        self.by_hand(driver, NodeKey(execution, "n1"))
        assert not worker.record(execution, claim, data="late").recorded
        assert run_of(store, execution, "n1").data == "by hand"

    def test_what_is_not_ready_or_over_is_refused(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(3))
        driver.run(execution, "n1")
        with pytest.raises(InvalidTransition) as over:
            self.by_hand(driver, NodeKey(execution, "n1"))
        assert over.value.current == "completed"
        with pytest.raises(InvalidTransition) as early:
            self.by_hand(driver, NodeKey(execution, "n3"), Outcome.FAILED)
        assert (early.value.current, early.value.wanted) == ("pending", "failed")
        driver.cancel(execution)
        with pytest.raises(InvalidTransition) as cancelled:
            self.by_hand(driver, NodeKey(execution, "n2"))
        assert cancelled.value.current == "cancelled"

    def test_a_node_that_waits_for_its_items_is_refused(self, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.fan_out(execution, "only", ["x"])
        with pytest.raises(InvalidTransition):
            self.by_hand(driver, NodeKey(execution, "only"))

    @pytest.mark.parametrize("node_id", ["nobody", "$end"])
    def test_what_does_not_exist_is_named(self, driver: StoreDriver, node_id: str) -> None:
        execution = driver.start(single())
        with pytest.raises(UserError):
            self.by_hand(driver, NodeKey(execution, node_id))
        for unknown in (UNKNOWN, "no uuid"):
            with pytest.raises(UnknownExecution):
                self.by_hand(driver, NodeKey(unknown, "only"))

    def test_of_a_hand_and_a_worker_one_wins(self, store: ExecutionStore, driver: StoreDriver) -> None:
        store.save_workflow(chain(2))
        for _ in range(10):
            answer = store.create_execution(request("chain"))
            execution: str = answer.execution_id  # type: ignore[union-attr]
            worker = StoreDriver(store)

            def hand(execution: str = execution) -> bool:
                try:
                    return self.by_hand(StoreDriver(store), NodeKey(execution, "n1")).recorded
                except InvalidTransition:
                    return False

            def work(execution: str = execution, worker: StoreDriver = worker) -> bool:
                answer = worker.try_claim(execution, "n1")
                return isinstance(answer, Claim) and worker.record(execution, answer.node, data="work").recorded

            assert sorted(race([hand, work])) == [False, True]
            assert events_of(store, execution, "n1").count("node.completed") == 1


class HeldClaims:
    """`list_claims`."""

    def test_a_worker_finds_what_it_runs(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        first, second = driver.start(diamond()), driver.start(chain(2))
        assert store.list_claims(driver.worker_id) == {}
        driver.run(first, "top")
        left, n1 = driver.claim(first, "left"), driver.claim(second, "n1")
        StoreDriver(store, clock=clock).claim(first, "right")
        held = store.list_claims(driver.worker_id)
        assert held == {NodeKey(first, "left"): left.fence, NodeKey(second, "n1"): n1.fence}
        driver.record(second, n1)
        driver.cancel(first)
        assert store.list_claims(driver.worker_id) == {}
        assert store.list_claims("nobody") == {}

    def test_what_was_lost_with_the_lease_is_gone(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        worker = StoreDriver(store, clock=clock, lease_seconds=5)
        worker.claim(execution, "only")
        clock.advance(6)
        (swept,) = driver.sweep_all()
        assert store.list_claims(worker.worker_id) == {}
        assert [job.recovery_attempts for job in swept.jobs] == [1]  # known to its next worker before the claim
