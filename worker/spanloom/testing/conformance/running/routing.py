"""Conformance: the edges that an ended run takes, and a handled failure at its successors."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.engine.workflow.definitions import Input, Workflow
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import events_of, everything_of, execution_of, status_of, statuses_of
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import after_any_end, chain, graph, route_failure

__all__ = ["HandledFailures", "Routing"]

_ERROR = {"error": {"type": "Boom", "message": "no"}}


def _every_kind() -> Workflow:
    """A node with a successor after each kind of end."""
    return graph("kinds", {"a": [], "good": ["a"], "bad": [route_failure("a")], "any": [after_any_end("a")]})


class Routing:
    """The successors of an ended run: by each edge's kind, or as listed in its record."""

    @pytest.mark.parametrize(
        ("outcome", "wanted"),
        [
            (Outcome.COMPLETED, ["any", "good"]),
            (Outcome.FAILED, ["any", "bad"]),
            (Outcome.SKIPPED, []),
        ],
    )
    def test_the_kinds_of_the_edges_decide_unless_the_record_does(
        self, store: ExecutionStore, driver: StoreDriver, outcome: Outcome, wanted: Sequence[str]
    ) -> None:
        execution = driver.start(_every_kind())
        answer = driver.run(execution, "a", outcome)
        assert sorted(job.node_id for job in answer.jobs) == wanted
        statuses = statuses_of(store, execution)
        assert sorted(name for name, status in statuses.items() if status is NodeStatus.SKIPPED) == sorted(
            {"good", "bad", "any"} - set(wanted) | ({"a"} if outcome is Outcome.SKIPPED else set())
        )
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED

    @pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED])
    @pytest.mark.parametrize("taken", [("any",), ("bad",), ("good", "bad"), ("good", "bad", "any")], ids=",".join)
    def test_the_named_successors_are_taken_whatever_the_kinds_of_their_edges(
        self, store: ExecutionStore, driver: StoreDriver, outcome: Outcome, taken: tuple[str, ...]
    ) -> None:
        execution = driver.start(_every_kind())
        answer = driver.run(execution, "a", outcome, taken=taken)
        assert sorted(job.node_id for job in answer.jobs) == sorted(taken)
        assert answer.ended is None
        driver.drain()
        assert status_of(store, execution) is ExecutionStatus.COMPLETED

    def test_a_completed_run_may_take_no_edge(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(_every_kind())
        assert driver.run(execution, "a", taken=()).ended is ExecutionStatus.COMPLETED
        skipped = dict.fromkeys(("good", "bad", "any"), NodeStatus.SKIPPED)
        assert statuses_of(store, execution) == {"a": NodeStatus.COMPLETED} | skipped

    def test_a_failure_whose_record_takes_no_edge_fails_the_execution(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(_every_kind())
        answer = driver.run(execution, "a", Outcome.FAILED, taken=())
        assert (list(answer.jobs), answer.ended) == ([], ExecutionStatus.FAILED)
        assert statuses_of(store, execution) == {"a": NodeStatus.FAILED}

    def test_a_join_after_success_and_after_failure_sees_those_that_were_taken(self, driver: StoreDriver) -> None:
        workflow = graph("mixed", {"a": [], "b": [], "join": [route_failure("a"), "b"]})
        well, ill = driver.start(workflow), driver.start(workflow)
        # when both complete, only the edge after success is taken
        driver.run(well, "a", data=1)
        driver.run(well, "b", data=2)
        assert dict(driver.claim(well, "join").results) == {"b": "2"}
        # when one fails, both are
        driver.run(ill, "b", data=2)
        driver.run(ill, "a", Outcome.FAILED, data=_ERROR)
        results = driver.claim(ill, "join").results
        assert {name: json.loads(text) for name, text in results.items()} == {"a": _ERROR, "b": 2}

    def test_a_join_that_no_input_leads_to_is_skipped(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("alarm", {"a": [], "b": [], "alarm": [route_failure("a"), route_failure("b")]}))
        driver.run(execution, "a")
        assert driver.run(execution, "b").ended is ExecutionStatus.COMPLETED
        assert statuses_of(store, execution)["alarm"] is NodeStatus.SKIPPED

    def test_a_branch_after_a_failure_that_did_not_come_is_skipped_to_any_depth(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        # given a long branch after a failure, which joins the one after success
        depth = 50
        repair: dict[str, list[str | Input]] = {"r0": [route_failure("a")]}
        repair |= {f"r{number}": [f"r{number - 1}"] for number in range(1, depth)}
        execution = driver.start(graph("repair", {"a": [], **repair, "go": ["a"], "join": ["go", f"r{depth - 1}"]}))
        # when the failure does not come
        (job,) = driver.run(execution, "a").jobs
        # then all of the branch is skipped at once, and the join runs without it
        assert job.node_id == "go"
        assert [statuses_of(store, execution)[name] for name in repair] == [NodeStatus.SKIPPED] * depth
        driver.run(execution, "go", data=1)
        assert dict(driver.claim(execution, "join").results) == {"go": "1"}

    def test_a_skipped_run_takes_no_edge_even_after_any_end(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("always", {"a": [], "b": ["a"], "c": [after_any_end("b")]}))
        assert driver.run(execution, "a", taken=()).ended is ExecutionStatus.COMPLETED
        assert statuses_of(store, execution)["c"] is NodeStatus.SKIPPED

    def test_a_successor_after_failure_can_be_run_next(self, driver: StoreDriver) -> None:
        execution = driver.start(_every_kind())
        answer = driver.run(execution, "a", Outcome.FAILED, data=_ERROR, successors=("good", "bad", "any"))
        assert answer.next is not None
        assert (answer.next.node_id, json.loads(answer.next.results["a"])) == ("bad", _ERROR)
        assert [job.node_id for job in answer.jobs] == ["any"]


class HandledFailures:
    """FAILED that does not fail the execution: an edge is taken, or the record has `handled`."""

    def test_a_failure_that_the_record_handles_lets_the_execution_go_on(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(chain(3))
        answer = driver.run(execution, "n1", Outcome.FAILED, data=_ERROR, taken=("n2",), handled=True)
        assert (answer.ended, [job.node_id for job in answer.jobs]) == (None, ["n2"])
        assert json.loads(driver.claim(execution, "n2").results["n1"]) == _ERROR
        assert events_of(store, execution)[-1] == "execution.started"

    def test_a_handled_failure_that_takes_no_edge_skips_what_follows(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(chain(3))
        answer = driver.run(execution, "n1", Outcome.FAILED, data=_ERROR, taken=(), handled=True)
        assert answer.ended is ExecutionStatus.COMPLETED
        assert statuses_of(store, execution) == {
            "n1": NodeStatus.FAILED,
            "n2": NodeStatus.SKIPPED,
            "n3": NodeStatus.SKIPPED,
        }

    def test_the_data_of_a_handled_sink_is_the_output(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1")
        answer = driver.run(execution, "n2", Outcome.FAILED, data=_ERROR, handled=True)
        assert answer.ended is ExecutionStatus.COMPLETED
        found = execution_of(store, execution)
        assert (found.status, found.output, found.error) == (ExecutionStatus.COMPLETED, _ERROR, None)

    def test_the_data_of_a_handled_sink_is_among_the_outputs_of_several(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": [], "c": []}))
        driver.run(execution, "a", data=1)
        driver.run(execution, "b", Outcome.FAILED, data=_ERROR, handled=True)
        driver.run(execution, "c", Outcome.SKIPPED)
        assert execution_of(store, execution).output == {"a": 1, "b": _ERROR}

    def test_an_unhandled_failure_is_no_result_to_a_join(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("join", {"a": [], "b": [], "join": ["a", "b"]}))
        driver.run(execution, "a", data=1)
        driver.run(execution, "b", Outcome.FAILED, data=_ERROR)
        assert status_of(store, execution) is ExecutionStatus.FAILED
        assert driver.drain() == []
        assert statuses_of(store, execution) == {"a": NodeStatus.COMPLETED, "b": NodeStatus.FAILED}

    def test_its_history_keeps_the_whole_error_and_tells_of_no_failed_execution(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(_every_kind())
        error = {"type": "Boom", "message": "no", "traceback": "here", "permanent": True}
        driver.run(execution, "a", Outcome.FAILED, data=_ERROR, error=json.dumps(error))
        driver.drain()
        assert [event.data["error"] for event in store.get_events(execution) if event.kind == "node.failed"] == [error]
        assert "execution.failed" not in events_of(store, execution)
        (run,) = store.get_node_results(execution, ["a"])
        assert (run.status, run.error, run.data) == (NodeStatus.FAILED, error, _ERROR)

    def test_a_handled_failure_does_not_revive_a_failed_execution(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("two", {"a": [], "after": [route_failure("a")], "b": []}))
        a = driver.claim(execution, "a")
        driver.run(execution, "b", Outcome.FAILED)
        answer = driver.record(execution, a, Outcome.FAILED, data=_ERROR)
        assert (answer.recorded, list(answer.jobs), answer.ended) == (True, [], None)
        assert statuses_of(store, execution)["after"] is NodeStatus.HELD
        assert execution_of(store, execution).error is not None
        assert (execution_of(store, execution).error or {})["node_id"] == "b"

    @pytest.mark.parametrize("handled", [False, True])
    def test_a_handled_failure_sent_again_is_answered_again(
        self, store: ExecutionStore, driver: StoreDriver, handled: bool
    ) -> None:
        execution = driver.start(_every_kind())
        taken = ("good",) if handled else None
        node = driver.claim(execution, "a")
        record = driver.outcome(execution, node, Outcome.FAILED, data=_ERROR, taken=taken, handled=handled)
        first = driver.send(record)
        before = everything_of(store, execution)
        again = driver.send(record)
        assert again.recorded
        assert sorted(job.node_id for job in again.jobs) == sorted(job.node_id for job in first.jobs)
        assert everything_of(store, execution) == before

    def test_handled_and_unhandled_failures_of_one_call_are_told_apart(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        workflow = graph("pair", {"a": [], "after": [route_failure("a")]})
        executions = [driver.start(workflow) for _ in range(4)]
        records = [
            driver.outcome(execution, driver.claim(execution, "a"), Outcome.FAILED, data=_ERROR, taken=taken)
            for execution, taken in zip(executions, [None, (), ("after",), ()], strict=True)
        ]
        ended = [answer.ended for answer in store.record(records, now=clock())]
        assert ended == [None, ExecutionStatus.FAILED, None, ExecutionStatus.FAILED]
