"""Conformance: arrivals, joins and skips."""

from __future__ import annotations

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, diamond, fan, graph

__all__ = ["Joins", "Skips"]


def _status(store: ExecutionStore, execution: str) -> ExecutionStatus:
    found = store.get_execution(execution)
    assert found is not None
    return found.status


def _statuses(store: ExecutionStore, execution: str) -> dict[str, NodeStatus]:
    return {run.node_id: run.status for run in store.get_node_results(execution)}


class Joins:
    """Counting arrivals: the last one makes the successor ready, exactly once."""

    def test_only_the_last_arrival_makes_a_join_ready(self, driver: StoreDriver) -> None:
        execution = driver.start(fan(4))
        driver.run(execution, "split")
        ready = [[job.node_id for job in driver.run(execution, f"w{number}").jobs] for number in range(1, 5)]
        assert ready == [[], [], [], ["join"]]

    def test_arrivals_of_one_call_at_one_row_are_summed(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(5))
        driver.run(execution, "split")
        records = [
            driver.outcome(execution, driver.claim(execution, f"w{number}"), data=number) for number in range(1, 6)
        ]
        answers = store.record(records, now=clock())
        assert all(answer.recorded for answer in answers)
        assert [job.node_id for answer in answers for job in answer.jobs] == ["join"]
        assert set(driver.claim(execution, "join").results) == {"w1", "w2", "w3", "w4", "w5"}

    def test_a_join_that_several_records_of_one_call_would_run_next_is_claimed_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(3))
        driver.run(execution, "split")
        records = [
            driver.outcome(execution, driver.claim(execution, f"w{number}"), successors=("join",))
            for number in range(1, 4)
        ]
        answers = store.record(records, now=clock())
        claimed = [answer.next for answer in answers if answer.next is not None]
        assert [node.node_id for node in claimed] == ["join"]
        assert [job for answer in answers for job in answer.jobs] == []
        assert set(claimed[0].results) == {"w1", "w2", "w3"}

    def test_records_of_several_executions_in_one_call_do_not_mix(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        executions = [driver.start(diamond()) for _ in range(3)]
        for execution in executions:
            driver.run(execution, "top")
        records = [
            driver.outcome(execution, driver.claim(execution, side), data=execution)
            for side in ("left", "right")
            for execution in executions
        ]
        answers = store.record(records, now=clock())
        assert sorted(job.execution_id for answer in answers for job in answer.jobs) == sorted(executions)
        for execution in executions:
            assert set(driver.claim(execution, "bottom").results.values()) == {f'"{execution}"'}

    def test_a_join_over_levels_waits_for_its_slowest_input(self, driver: StoreDriver) -> None:
        execution = driver.start(graph("levels", {"a": [], "b": ["a"], "c": ["b"], "join": ["a", "b", "c"]}))
        assert driver.drain() == ["a", "b", "c", "join"]
        assert _status(driver.store, execution) is ExecutionStatus.COMPLETED

    def test_a_thousand_inputs_arrive_in_calls_of_a_hundred(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(1000))
        driver.run(execution, "split")
        ready: list[str] = []
        for hundred in range(10):
            records = [
                driver.outcome(execution, driver.claim(execution, f"w{hundred * 100 + number}"), data=number)
                for number in range(1, 101)
            ]
            ready.extend(job.node_id for answer in store.record(records, now=clock()) for job in answer.jobs)
        assert ready == ["join"]
        assert len(driver.claim(execution, "join").results) == 1000

    def test_an_execution_ends_with_its_last_sink_and_says_so_once(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": [], "c": []}))
        ended = [driver.run(execution, name).ended for name in ("a", "b", "c")]
        assert ended == [None, None, ExecutionStatus.COMPLETED]
        kinds = [event.kind for event in store.get_events(execution)]
        assert kinds.count("execution.completed") == 1
        assert kinds[-1] == "execution.completed"

    def test_sinks_that_end_in_one_call_end_the_execution_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": [], "c": []}))
        records = [driver.outcome(execution, driver.claim(execution, name)) for name in ("a", "b", "c")]
        ended = [answer.ended for answer in store.record(records, now=clock())]
        assert sorted(str(end) for end in ended) == ["None", "None", "completed"]
        assert [event.kind for event in store.get_events(execution)].count("execution.completed") == 1


class Skips:
    """Edges that are not taken: skipped successors, at any depth."""

    def test_only_taken_edges_make_successors_ready(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(fan(3))
        (job,) = driver.run(execution, "split", taken=("w2",)).jobs
        assert job.node_id == "w2"
        statuses = _statuses(store, execution)
        assert (statuses["w1"], statuses["w2"], statuses["w3"]) == (
            NodeStatus.SKIPPED,
            NodeStatus.QUEUED,
            NodeStatus.SKIPPED,
        )
        (split,) = store.get_node_results(execution, ["split"])
        assert split.taken is not None
        assert set(split.taken) == {"w2"}

    def test_a_join_of_a_taken_and_a_skipped_input_runs_with_the_taken_one(self, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top", taken=("left",))
        (job,) = driver.run(execution, "left", data="l").jobs
        assert job.node_id == "bottom"
        assert dict(driver.claim(execution, "bottom").results) == {"left": '"l"'}

    def test_the_last_arrival_may_be_a_skip(self, driver: StoreDriver) -> None:
        execution = driver.start(graph("late", {"a": [], "b": [], "via": ["b"], "join": ["a", "via"]}))
        driver.run(execution, "a", data=1)
        (job,) = driver.run(execution, "b", taken=()).jobs
        assert job.node_id == "join"
        assert dict(driver.claim(execution, "join").results) == {"a": "1"}

    def test_a_successor_without_a_taken_edge_is_skipped_and_so_is_what_follows(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("tail", {"a": [], "b": ["a"], "c": ["a"], "join": ["b", "c"], "end": ["join"]}))
        answer = driver.run(execution, "a", taken=())
        assert list(answer.jobs) == []
        assert answer.ended is ExecutionStatus.COMPLETED
        assert _statuses(store, execution) == {"a": NodeStatus.COMPLETED} | dict.fromkeys(
            ("b", "c", "join", "end"), NodeStatus.SKIPPED
        )
        events = store.get_events(execution)
        assert sorted(event.node_id or "" for event in events if event.kind == "node.skipped") == [
            "b",
            "c",
            "end",
            "join",
        ]

    def test_a_handler_may_skip_its_own_node(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top")
        driver.run(execution, "left", Outcome.SKIPPED)
        driver.run(execution, "right", data=2)
        assert dict(driver.claim(execution, "bottom").results) == {"right": "2"}
        assert _statuses(store, execution)["left"] is NodeStatus.SKIPPED

    @pytest.mark.parametrize("length", [10, 1000])
    def test_a_skip_travels_down_a_long_chain_in_one_step(
        self, store: ExecutionStore, driver: StoreDriver, length: int
    ) -> None:
        execution = driver.start(chain(length))
        answer = driver.run(execution, "n1", taken=())
        assert answer.ended is ExecutionStatus.COMPLETED
        statuses = _statuses(store, execution)
        assert len(statuses) == length
        assert set(statuses.values()) == {NodeStatus.COMPLETED, NodeStatus.SKIPPED}

    def test_a_skip_travels_through_a_thousand_diamond_nodes(self, store: ExecutionStore, driver: StoreDriver) -> None:
        inputs: dict[str, list[str]] = {"top": []}
        above = "top"
        for level in range(333):
            inputs |= {f"l{level}": [above], f"r{level}": [above], f"j{level}": [f"l{level}", f"r{level}"]}
            above = f"j{level}"
        execution = driver.start(graph("ladder", inputs))
        assert driver.run(execution, "top", taken=()).ended is ExecutionStatus.COMPLETED
        statuses = _statuses(store, execution)
        assert len(statuses) == 1000
        assert list(statuses.values()).count(NodeStatus.SKIPPED) == 999

    def test_a_skip_reaches_a_join_once_for_every_edge(self, driver: StoreDriver) -> None:
        # given a join with 50 skipped inputs and one that runs
        inputs: dict[str, list[str]] = {"a": [], "live": []}
        inputs |= {f"s{number}": ["a"] for number in range(50)}
        inputs["join"] = [*(f"s{number}" for number in range(50)), "live"]
        execution = driver.start(graph("wide", inputs))
        # when the fifty are skipped at once
        assert list(driver.run(execution, "a", taken=()).jobs) == []
        # then the join still waits for the one
        (job,) = driver.run(execution, "live", data=1).jobs
        assert job.node_id == "join"
        assert dict(driver.claim(execution, "join").results) == {"live": "1"}

    def test_an_execution_whose_only_sink_was_skipped_completes_without_output(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1", data="x", taken=())
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.output) == (ExecutionStatus.COMPLETED, None)
