"""Conformance: joins whose inputs arrive at the same moment from many threads."""

from __future__ import annotations

from functools import partial

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.workflows import fan, graph

__all__ = ["JoinRaces"]


def _status(store: ExecutionStore, execution: str) -> ExecutionStatus:
    found = store.get_execution(execution)
    assert found is not None
    return found.status


class JoinRaces:
    """Arrivals that come at once: none is lost, and the last one counts once."""

    @pytest.mark.parametrize(("width", "threads", "rounds"), [(2, 2, 30), (20, 20, 5), (100, 20, 2)])
    def test_records_at_once_make_the_join_ready_once(
        self, store: ExecutionStore, driver: StoreDriver, width: int, threads: int, rounds: int
    ) -> None:
        store.save_workflow(fan(width))
        for _ in range(rounds):
            execution = driver.start("fan")
            driver.run(execution, "split")
            records = [
                driver.outcome(execution, driver.claim(execution, f"w{number}"), data=number)
                for number in range(1, width + 1)
            ]
            # when the branches end in many threads at once, a share of them each
            shares = [records[start::threads] for start in range(threads)]
            answers = [
                answer
                for share in race([partial(self._record_each, store, share) for share in shares])
                for answer in share
            ]
            # then exactly one of them made the join ready, with all the results
            assert all(answer.recorded for answer in answers)
            assert [job.node_id for answer in answers for job in answer.jobs] == ["join"]
            assert len(driver.claim(execution, "join").results) == width

    def _record_each(self, store: ExecutionStore, records: list[RecordRequest]) -> list[RecordResult]:
        return [store.record([record])[0] for record in records]

    def test_only_one_of_many_gets_the_join_to_run_next(self, store: ExecutionStore, driver: StoreDriver) -> None:
        for _ in range(5):
            execution = driver.start(fan(8))
            driver.run(execution, "split")
            workers = [StoreDriver(store) for _ in range(8)]
            nodes = [worker.claim(execution, f"w{number}") for number, worker in enumerate(workers, 1)]
            answers = race(
                [
                    partial(worker.record, execution, node, data=1, successors=("join",))
                    for worker, node in zip(workers, nodes, strict=True)
                ]
            )
            claimed = [answer.next for answer in answers if answer.next is not None]
            assert [node.node_id for node in claimed] == ["join"]
            assert len(claimed[0].results) == 8
            assert [job for answer in answers for job in answer.jobs] == []

    def test_sinks_that_end_at_once_end_the_execution_once(self, store: ExecutionStore, driver: StoreDriver) -> None:
        names = [f"s{number}" for number in range(8)]
        for _ in range(5):
            execution = driver.start(graph("sinks", {name: [] for name in names}))
            nodes = [driver.claim(execution, name) for name in names]
            answers = race([partial(driver.record, execution, node, data=1) for node in nodes])
            assert [answer.ended for answer in answers if answer.ended] == [ExecutionStatus.COMPLETED]
            kinds = [event.kind for event in store.get_events(execution)]
            assert (kinds.count("execution.completed"), kinds[-1]) == (1, "execution.completed")
            assert _status(store, execution) is ExecutionStatus.COMPLETED

    def test_siblings_that_fail_at_once_fail_the_execution_once(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        for _ in range(10):
            execution = driver.start(fan(4))
            driver.run(execution, "split")
            nodes = [driver.claim(execution, f"w{number}") for number in range(1, 5)]
            answers = race([partial(driver.record, execution, node, Outcome.FAILED) for node in nodes])
            assert all(answer.recorded for answer in answers)
            assert [answer.ended for answer in answers if answer.ended] == [ExecutionStatus.FAILED]
            assert [event.kind for event in store.get_events(execution)].count("execution.failed") == 1

    def test_a_failure_and_arrivals_at_once_hold_what_is_ready_and_leave_the_rest_open(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        # given a node that fails beside three that end, a join of the three, and a join of all
        ends = ["w2", "w3", "w4"]
        inputs: dict[str, list[str]] = {name: [] for name in ("w1", *ends)}
        store.save_workflow(graph("joins", inputs | {"ready": ends, "open": ["w1", *ends]}))
        for _ in range(10):
            execution = driver.start("joins")
            calls = [
                partial(driver.record, execution, driver.claim(execution, name), outcome)
                for name, outcome in (("w1", Outcome.FAILED), *((name, Outcome.COMPLETED) for name in ends))
            ]
            # when all four end at once
            race(calls)
            # then no run is queued, whichever came first
            assert _status(store, execution) is ExecutionStatus.FAILED
            joins = {run.node_id: run.status for run in store.get_node_results(execution, ["open", "ready"])}
            assert joins == {"open": NodeStatus.PENDING, "ready": NodeStatus.HELD}

    def test_the_same_record_sent_at_once_counts_once(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(fan(3))
        driver.run(execution, "split")
        for name, ready in (("w1", []), ("w2", []), ("w3", ["join"])):
            record = driver.outcome(execution, driver.claim(execution, name))
            answers = race([partial(store.record, [record]) for _ in range(10)])
            for (answer,) in answers:
                assert answer.recorded
                assert [job.node_id for job in answer.jobs] == ready
        kinds = [(event.kind, event.node_id) for event in store.get_events(execution)]
        assert len(kinds) == len(set(kinds))
