"""Conformance: the sweep over lapsed workers and due rows, and the epoch of Redis."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import uuid4

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeJob, Outcome, Refusal, StartResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import fan, graph, single

__all__ = ["DueRows", "Epochs", "LostWorkers"]


class LostWorkers:
    """`sweep` over workers whose lease lapsed."""

    def test_what_a_lost_worker_held_is_queued_again_and_counted_as_a_loss(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(2))
        driver.run(execution, "split")
        lost = driver.claim(execution, "w1")
        clock.advance(61)
        survivor = StoreDriver(store, clock=clock)
        swept = store.sweep(heads={}, epoch=0, now=clock())
        assert [(job.node_id, job.push) for job in swept.jobs] == [("w1", 2)]
        assert swept.moved["lost_worker"] == 1
        node = survivor.claim(execution, "w1")
        assert (node.recovery_attempts, node.attempt, node.fence) == (1, 1, lost.fence + 1)
        assert not driver.record(execution, lost, data="too late").recorded
        assert survivor.record(execution, node).recorded

    def test_a_live_worker_keeps_its_claims(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        clock.advance(59)
        assert list(store.sweep(heads={"default": None}, epoch=0, now=clock()).jobs) == []
        assert driver.record(execution, node).recorded

    def test_a_lost_worker_is_swept_once(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        driver.claim(execution, "only")
        clock.advance(61)
        assert len(store.sweep(heads={}, epoch=0, now=clock()).jobs) == 1
        assert list(store.sweep(heads={}, epoch=0, now=clock()).jobs) == []
        assert driver.try_claim(execution, "only") is Refusal.RETIRED

    def test_everything_a_lost_worker_held_is_released_within_the_limit_of_each_sweep(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(12))
        driver.run(execution, "split")
        held = [driver.claim(execution, f"w{number}").node_id for number in range(1, 13)]
        clock.advance(61)
        released: list[str] = []
        for _ in range(6):
            swept = store.sweep(heads={}, epoch=0, limit=5, now=clock())
            assert len(swept.jobs) <= 5
            released.extend(job.node_id for job in swept.jobs)
        assert sorted(released) == sorted(held)

    def test_a_run_that_loses_its_worker_again_and_again_tells_whoever_claims_it(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        recovery_attempts: list[int] = []
        for _ in range(5):
            recovery_attempts.append(StoreDriver(store, clock=clock).claim(execution, "only").recovery_attempts)
            clock.advance(61)
            assert list(store.sweep(heads={}, epoch=0, now=clock()).ended) == []
        assert recovery_attempts == [0, 1, 2, 3, 4]
        (run,) = store.get_node_results(execution)
        assert (run.status, run.recovery_attempts, run.attempt) == (NodeStatus.QUEUED, 5, 1)
        # the worker that finds them too many fails it
        answer = StoreDriver(store, clock=clock).run(execution, "only", Outcome.FAILED)
        assert answer.ended is ExecutionStatus.FAILED
        (run,) = store.get_node_results(execution)
        assert (run.status, run.recovery_attempts) == (NodeStatus.FAILED, 5)

    def test_what_a_lost_worker_held_in_a_failed_execution_is_held(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        a, _ = driver.claim(execution, "a"), driver.claim(execution, "b")
        driver.record(execution, a, Outcome.FAILED)
        clock.advance(61)
        assert list(store.sweep(heads={}, epoch=0, now=clock()).jobs) == []
        (run,) = store.get_node_results(execution, ["b"])
        assert (run.status, run.due_at) == (NodeStatus.HELD, None)


class DueRows:
    """`sweep` over due rows, and `next_due`."""

    def test_a_timer_that_is_due_is_queued(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", Outcome.WAITING, wait_kind=WaitKind.TIMER, delay_seconds=30)
        clock.advance(29)
        assert list(store.sweep(heads={}, epoch=0, now=clock()).jobs) == []
        clock.advance(2)
        swept = store.sweep(heads={}, epoch=0, now=clock())
        assert [(job.node_id, job.push) for job in swept.jobs] == [("only", 2)]
        assert swept.moved["timer"] == 1
        node = driver.claim(execution, "only")
        assert (node.attempt, node.woken, node.wait_key) == (1, WaitKind.TIMER, None)

    def test_a_timer_in_a_failed_execution_fires_into_held(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        driver.run(execution, "b", Outcome.WAITING, wait_kind=WaitKind.TIMER, delay_seconds=10)
        driver.run(execution, "a", Outcome.FAILED)
        clock.advance(11)
        assert list(store.sweep(heads={}, epoch=0, now=clock()).jobs) == []
        (run,) = store.get_node_results(execution, ["b"])
        assert (run.status, run.due_at) == (NodeStatus.HELD, None)

    def test_a_delayed_execution_starts_when_it_is_due(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(graph("entries", {"a": [], "b": [], "c": ["a"]}), delay_seconds=60)
        clock.advance(59)
        assert list(store.sweep(heads={}, epoch=0, now=clock()).jobs) == []
        clock.advance(2)
        swept = store.sweep(heads={}, epoch=0, now=clock())
        assert sorted((job.node_id, job.push, job.pushed_at) for job in swept.jobs) == [
            ("a", 1, clock()),
            ("b", 1, clock()),
        ]
        assert swept.moved["start"] == 1
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.started_at) == (ExecutionStatus.RUNNING, clock())
        kinds = [event.kind for event in store.get_events(execution)]
        assert kinds == ["execution.created", "execution.started", "node.queued", "node.queued"]
        late = StoreDriver(store, clock=clock)
        late.jobs.extend(swept.jobs)
        assert sorted(late.drain()) == ["a", "b", "c"]

    def test_an_execution_past_its_deadline_fails(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}), deadline_seconds=10)
        running = driver.claim(execution, "a")
        clock.advance(9)
        assert list(store.sweep(heads={}, epoch=0, now=clock()).ended) == []
        clock.advance(2)
        swept = store.sweep(heads={}, epoch=0, now=clock())
        assert (list(swept.ended), list(swept.jobs), swept.moved["deadline"]) == ([execution], [], 1)
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.ended_at) == (ExecutionStatus.FAILED, clock())
        assert found.error is not None
        assert found.error["type"] == "DeadlineExceeded"
        (waiting,) = store.get_node_results(execution, ["b"])
        assert waiting.status is NodeStatus.HELD
        assert driver.record(execution, running).recorded
        assert list(store.sweep(heads={}, epoch=0, now=clock.advance(100)).ended) == []

    def test_the_deadline_counts_from_a_delayed_start(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single(), delay_seconds=60, deadline_seconds=10)
        clock.advance(61)
        swept = store.sweep(heads={}, epoch=0, now=clock())
        assert (list(swept.ended), len(swept.jobs)) == ([], 1)
        clock.advance(20)
        assert list(store.sweep(heads={}, epoch=0, now=clock()).ended) == [execution]

    def test_a_completed_execution_has_no_deadline_left(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        driver.start(single(), deadline_seconds=10)
        driver.drain()
        assert store.next_due() is None
        assert list(store.sweep(heads={}, epoch=0, now=clock.advance(20)).ended) == []

    def test_at_most_the_limit_is_moved_and_none_is_left_out(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        executions = [driver.start(single(), delay_seconds=60) for _ in range(12)]
        clock.advance(61)
        moved: list[str] = []
        for count, more in ((5, True), (5, True), (2, False)):
            swept = store.sweep(heads={}, epoch=0, limit=5, now=clock())
            assert (len(swept.jobs), swept.more) == (count, more)
            moved.extend(job.execution_id for job in swept.jobs)
        assert sorted(moved) == sorted(executions)

    def test_a_pass_that_gets_nowhere_asks_for_no_other(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        for _ in range(6):
            driver.start(single(), delay_seconds=60)
        clock.advance(61)
        passes = [store.sweep(heads={}, epoch=0, limit=3, now=clock()) for _ in range(3)]
        assert [(len(swept.jobs), swept.more) for swept in passes] == [(3, True), (3, True), (0, False)]

    def test_a_pass_that_only_put_off_the_next_look_asks_for_another(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        for _ in range(4):
            driver.start(single())
        clock.advance(61)
        passes = [store.sweep(heads={}, epoch=0, limit=3, now=clock()) for _ in range(2)]
        assert [(sum(swept.moved.values()), swept.more) for swept in passes] == [(0, True), (0, False)]

    def test_the_next_due_row_is_known(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        assert store.next_due() is None
        started: datetime = clock()
        driver.start(single(), delay_seconds=60)
        assert store.next_due() == started + timedelta(seconds=60)
        driver.start("single", delay_seconds=40)
        assert store.next_due() == started + timedelta(seconds=40)

    def test_running_and_held_rows_wait_for_no_time(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("three", {"a": [], "b": [], "c": []}))
        driver.claim(execution, "a")
        driver.run(execution, "b", Outcome.FAILED)  # c is held now
        assert store.next_due() is None

    def test_a_sweep_with_nothing_due_moves_nothing(self, store: ExecutionStore, clock: ManualClock) -> None:
        swept = store.sweep(heads={}, epoch=0, now=clock())
        assert (list(swept.jobs), swept.more, list(swept.ended)) == ([], False, [])
        assert sum(swept.moved.values()) == 0


class Epochs:
    """The epoch of Redis, and the new push of the jobs of an older one."""

    def test_a_store_knows_who_it_is(self, store: ExecutionStore) -> None:
        state = store.get_epoch()
        assert (state.epoch, state.redis_run_id) == (0, None)
        assert state.store_id
        assert store.get_epoch() == state

    def test_an_epoch_is_raised_only_from_the_expected_one(self, store: ExecutionStore) -> None:
        raised = store.raise_epoch(0, "first")
        assert (raised.epoch, raised.redis_run_id) == (1, "first")
        late = store.raise_epoch(0, "late")
        assert late == raised
        assert (raised.raised, late.raised) == (True, False)
        assert store.get_epoch() == raised
        assert store.raise_epoch(1, "second").epoch == 2

    def test_queued_runs_of_an_older_epoch_are_pushed_again_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        queued = driver.start(single())
        running = driver.start("single")
        driver.claim(running, "only")
        store.raise_epoch(0, "new")
        swept = store.sweep(heads={"default": clock()}, epoch=1, now=clock())
        assert [(job.execution_id, job.push) for job in swept.jobs] == [(queued, 2)]
        assert swept.moved["lost_redis"] == 1
        assert list(store.sweep(heads={"default": clock()}, epoch=1, now=clock()).jobs) == []

    def test_runs_whose_push_failed_are_pushed_by_the_next_sweep_of_their_epoch(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(single())
        store.raise_epoch(0, "new")
        jobs: dict[str, NodeJob] = {}
        for _ in range(4):
            answer = store.create_execution(request("single"), epoch=1, now=clock())
            assert isinstance(answer, StartResult)
            jobs[answer.execution_id] = answer.jobs[0]
        pushed, failed, claimed, ended = jobs
        driver.claim(claimed, "only")
        driver.run(ended, "only")
        for one in (failed, claimed, ended):
            store.forget_pushes([jobs[one]], now=clock())
        store.forget_pushes([replace(jobs[pushed], push=7), replace(jobs[pushed], execution_id=str(uuid4()))])
        store.forget_pushes([])
        assert list(store.sweep(heads={}, epoch=0, now=clock()).jobs) == []
        swept = store.sweep(heads={}, epoch=1, now=clock())
        assert [(job.execution_id, job.push) for job in swept.jobs] == [(failed, 2)]
        assert list(store.sweep(heads={}, epoch=1, now=clock()).jobs) == []
        store.forget_pushes([jobs[failed]], now=clock())  # late: it was pushed again
        assert list(store.sweep(heads={}, epoch=1, now=clock()).jobs) == []

    def test_a_lost_redis_is_made_good_in_batches(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        executions = [driver.start(single()) for _ in range(7)]
        store.raise_epoch(0, "new")
        pushed: list[str] = []
        for _ in range(3):
            swept = store.sweep(heads={"default": clock()}, epoch=1, limit=3, now=clock())
            assert len(swept.jobs) <= 3
            pushed.extend(job.execution_id for job in swept.jobs)
        assert sorted(pushed) == sorted(executions)

    def test_what_is_pushed_in_the_new_epoch_is_not_pushed_again(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.raise_epoch(0, "new")
        store.save_workflow(fan(2))
        wanted = request("fan")
        store.create_execution(wanted, epoch=1, now=clock())
        node = driver.claim(wanted.execution_id, "split")
        store.record([driver.outcome(wanted.execution_id, node)], epoch=1, now=clock())
        assert list(store.sweep(heads={"default": clock()}, epoch=1, now=clock()).jobs) == []
