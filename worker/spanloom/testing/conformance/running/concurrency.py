"""Conformance: the rules that hold when many threads call at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

import pytest

from spanloom.engine.errors import InvalidTransition
from spanloom.engine.store.models import Event
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import (
    Claim,
    ClaimAnswer,
    NodeJob,
    NodeKey,
    RecordResult,
    Refusal,
    StartResult,
    SweepResult,
)
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, diamond, fan, single

__all__ = ["Concurrency"]


def _status(store: ExecutionStore, execution: str) -> ExecutionStatus:
    found = store.get_execution(execution)
    assert found is not None
    return found.status


class Concurrency:
    """Claims, keys, versions, cancels, sweeps and readers at once."""

    def test_a_node_run_is_claimed_by_one_of_many(self, store: ExecutionStore) -> None:
        workers = [StoreDriver(store) for _ in range(20)]
        for _ in range(5):
            execution = workers[0].start(single())
            answers = race([partial(worker.try_claim, execution, "only") for worker in workers])
            assert len([answer for answer in answers if isinstance(answer, Claim)]) == 1
            assert [answer for answer in answers if not isinstance(answer, Claim)] == [Refusal.TAKEN] * 19

    def test_a_claim_waits_for_a_row_that_another_transaction_holds(self, store: ExecutionStore) -> None:
        first, second = StoreDriver(store), StoreDriver(store)
        execution = first.start(single())
        answers: list[ClaimAnswer] = []
        answered = threading.Event()

        def claim() -> None:
            answers.append(second.try_claim(execution, "only"))
            answered.set()

        waiting = threading.Thread(target=claim)
        # given a claim that is not committed
        with pytest.raises(KeyError), store.transaction():
            first.claim(execution, "only")
            waiting.start()
            assert not answered.wait(0.2), "the second claim was answered before the first was committed or taken back"
            raise KeyError
        # when it is rolled back, the claim that waited is granted
        waiting.join(30)
        assert isinstance(answers[0], Claim)

    def test_batches_of_claims_in_any_order_do_not_lock_each_other_out(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(fan(30))
        driver.run(execution, "split")
        keys = [NodeKey(execution, f"w{number}") for number in range(1, 31)]
        workers = [StoreDriver(store) for _ in range(4)]
        orders = [keys, keys[::-1], keys[15:] + keys[:15], keys[::2] + keys[1::2]]
        answers = race(
            [
                partial(store.claim, order, worker_id=worker.worker_id)
                for worker, order in zip(workers, orders, strict=True)
            ]
        )
        claimed = [answer.node.node_id for share in answers for answer in share if isinstance(answer, Claim)]
        assert sorted(claimed) == sorted(key.node_id for key in keys)

    def test_batches_of_records_in_any_order_do_not_lock_each_other_out(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        executions = [driver.start(fan(4)) for _ in range(6)]
        for execution in executions:
            driver.run(execution, "split")
        batches = [
            [driver.outcome(execution, driver.claim(execution, f"w{number}")) for execution in order]
            for number, order in enumerate((executions, executions[::-1], executions, executions[::-1]), 1)
        ]
        answers = race([partial(store.record, batch) for batch in batches])
        assert all(answer.recorded for share in answers for answer in share)
        assert sorted(job.execution_id for share in answers for answer in share for job in answer.jobs) == sorted(
            executions
        )

    def test_a_key_raced_by_twenty_starts_one_execution(self, store: ExecutionStore) -> None:
        store.save_workflow(diamond())
        for number in range(5):
            answers = race(
                [
                    partial(store.create_execution, request("diamond", 1, idempotency_key=f"k{number}", input_hash="1"))
                    for _ in range(20)
                ]
            )
            started = [answer for answer in answers if isinstance(answer, StartResult)]
            assert len(started) == 20
            assert len({answer.execution_id for answer in started}) == 1
            assert [len(answer.jobs) for answer in started if answer.created] == [1]
        assert store.get_execution_count() == 5

    def test_twenty_saves_of_different_content_get_twenty_versions(self, store: ExecutionStore) -> None:
        versions = race([partial(store.save_workflow, chain(length)) for length in range(1, 21)])
        assert sorted(versions) == list(range(1, 21))
        for length, version in enumerate(versions, 1):
            assert store.get_workflow("chain", version) == chain(length)

    def test_twenty_saves_of_equal_content_get_one_version(self, store: ExecutionStore) -> None:
        store.save_workflow(chain(1))
        assert race([partial(store.save_workflow, chain(2)) for _ in range(20)]) == [2] * 20

    def test_one_of_many_raises_the_epoch(self, store: ExecutionStore) -> None:
        states = race([partial(store.raise_epoch, 0, f"redis {number}") for number in range(10)])
        assert [state.raised for state in states].count(True) == 1
        assert len(set(states)) == 1
        assert states[0].epoch == 1

    @pytest.mark.parametrize("rounds", [25])
    def test_a_cancel_and_the_last_record_agree_on_the_end(
        self, store: ExecutionStore, driver: StoreDriver, rounds: int
    ) -> None:
        def cancel(execution: str) -> bool:
            try:
                return store.cancel_execution(execution).done
            except InvalidTransition:
                return False

        for _ in range(rounds):
            execution = driver.start(single())
            node = driver.claim(execution, "only")
            calls: list[Callable[[], object]] = [partial(cancel, execution), partial(driver.record, execution, node)]
            cancelled, recorded = race(calls)
            assert isinstance(recorded, RecordResult)
            assert recorded.recorded
            ended = _status(store, execution)
            assert ended is (ExecutionStatus.CANCELLED if cancelled else ExecutionStatus.COMPLETED)
            assert (recorded.ended is None) is bool(cancelled)
            kinds = [event.kind for event in store.get_events(execution)]
            assert [kind for kind in kinds if kind in ("execution.completed", "execution.cancelled")] == [
                f"execution.{ended}"
            ]

    def test_a_cancel_and_joins_leave_no_open_run(self, store: ExecutionStore, driver: StoreDriver) -> None:
        for _ in range(10):
            execution = driver.start(fan(4))
            driver.run(execution, "split")
            nodes = [driver.claim(execution, f"w{number}") for number in range(1, 5)]
            calls: list[Callable[[], object]] = [partial(store.cancel_execution, execution)]
            calls.extend(partial(driver.record, execution, node) for node in nodes)
            race(calls)
            assert _status(store, execution) is ExecutionStatus.CANCELLED
            runs = store.get_node_results(execution)
            assert all(run.status.ended for run in runs)
        assert sum(store.stats().open_node_runs.values()) == 0

    def test_sweepers_at_once_push_each_row_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        executions = [driver.start(single(), delay_seconds=60) for _ in range(60)]
        clock.advance(61)

        def sweep() -> list[NodeJob]:
            found: list[NodeJob] = []
            while True:
                swept: SweepResult = store.sweep(heads={}, epoch=0, limit=7, now=clock())
                found.extend(swept.jobs)
                if not swept.more:
                    return found

        jobs = [job for share in race([sweep] * 6) for job in share]
        jobs.extend(sweep())  # rows that a sweeper had skipped because another had locked them
        assert sorted(job.execution_id for job in jobs) == sorted(executions)

    def test_sweepers_at_once_count_one_loss(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.claim(execution, "only")
        clock.advance(61)
        answers = race([partial(store.sweep, heads={}, epoch=0, now=clock()) for _ in range(6)])
        assert len([job for swept in answers for job in swept.jobs]) == 1
        (run,) = store.get_node_results(execution)
        assert (run.status, run.recovery_attempts) == (NodeStatus.QUEUED, 1)

    def test_a_reader_by_cursor_misses_nothing_that_eight_threads_write(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(fan(64))
        driver.run(execution, "split")
        nodes = [driver.claim(execution, f"w{number}") for number in range(1, 65)]
        tail: list[Event] = []
        written = threading.Event()

        def read_on() -> None:
            while events := store.get_events(execution, after=tail[-1].cursor if tail else None, limit=5):
                tail.extend(events)

        def read() -> None:
            while not written.is_set():
                read_on()
            read_on()

        def write(share: int) -> None:
            for node in nodes[share::8]:
                driver.record(execution, node)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            race([partial(write, share) for share in range(8)])
        finally:
            written.set()
            reader.join(60)
        whole = store.get_events(execution)
        assert [event.cursor for event in tail] == [event.cursor for event in whole]
        assert len([event for event in tail if event.kind == "node.completed"]) == 65

    def test_workers_at_once_run_every_node_once(self, store: ExecutionStore) -> None:
        jobs: deque[NodeJob] = deque()
        workers = [StoreDriver(store, jobs=jobs) for _ in range(4)]
        executions = [workers[0].start(fan(10), number) for number in range(10)]
        ran = [name for share in race([worker.drain for worker in workers]) for name in share]
        ran.extend(workers[0].drain())  # jobs that were pushed after a worker had found none
        assert len(ran) == 10 * 12
        for execution in executions:
            assert _status(store, execution) is ExecutionStatus.COMPLETED
            runs = store.get_node_results(execution)
            assert [(run.status, run.attempt) for run in runs] == [(NodeStatus.COMPLETED, 1)] * 12
