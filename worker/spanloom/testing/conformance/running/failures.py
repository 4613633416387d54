"""Conformance: failures, the runs that they hold, and retries."""

from __future__ import annotations

import json

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome, Refusal
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, diamond, fan, graph, single

__all__ = ["Failures", "Retries"]


def _statuses(store: ExecutionStore, execution: str) -> dict[str, NodeStatus]:
    return {run.node_id: run.status for run in store.get_node_results(execution)}


class Failures:
    """FAILED with and without a taken edge; arrivals in a failed execution."""

    def test_a_failure_without_a_taken_edge_fails_the_execution(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        error = {"type": "Boom", "message": "no", "traceback": "…", "permanent": True}
        answer = driver.run(execution, "only", Outcome.FAILED, error=json.dumps(error))
        assert (answer.recorded, list(answer.jobs), answer.ended) == (True, [], ExecutionStatus.FAILED)
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.ended_at, found.output) == (ExecutionStatus.FAILED, clock(), None)
        assert found.error == {**error, "node_id": "only"}
        (run,) = store.get_node_results(execution)
        assert (run.status, run.error) == (NodeStatus.FAILED, error)
        (stored,) = [event.data["error"] for event in store.get_events(execution) if event.kind == "node.failed"]
        assert stored == error
        (brief,) = [event.data["error"] for event in store.get_events(execution) if event.kind == "execution.failed"]
        assert (brief["node_id"], brief["message"], "traceback" in brief) == ("only", "no", False)

    def test_what_follows_a_failure_does_not_run(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(3))
        assert list(driver.run(execution, "n1", Outcome.FAILED).jobs) == []
        assert driver.drain() == []
        found = store.get_execution(execution)
        assert found is not None
        assert found.status is ExecutionStatus.FAILED
        assert _statuses(store, execution) == {"n1": NodeStatus.FAILED}

    def test_an_unhandled_failure_arrives_nowhere(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top")
        left, right = driver.claim(execution, "left"), driver.claim(execution, "right")
        driver.record(execution, left, Outcome.FAILED)
        driver.record(execution, right)
        # one input of the join is still open: the failed one, which a retry may yet bring
        assert _statuses(store, execution)["bottom"] is NodeStatus.PENDING

    def test_records_of_one_call_count_in_the_order_of_their_keys(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(fan(2))
        driver.run(execution, "split")
        first, second = driver.claim(execution, "w1"), driver.claim(execution, "w2")
        failures = [driver.outcome(execution, node, Outcome.FAILED) for node in (second, first)]
        answers = store.record(failures, now=driver.now())
        assert [answer.ended for answer in answers] == [None, ExecutionStatus.FAILED]
        found = store.get_execution(execution)
        assert found is not None
        assert found.error is not None
        assert found.error["node_id"] == "w1"

    @pytest.mark.parametrize(("fails", "asks", "children"), [("w1", "w2", 0), ("w2", "w1", 1)])
    def test_a_failure_holds_what_asks_for_a_child_after_it_in_one_call(
        self, store: ExecutionStore, driver: StoreDriver, fails: str, asks: str, children: int
    ) -> None:
        store.save_workflow(single(), now=driver.now())
        execution = driver.start(fan(2))
        driver.run(execution, "split")
        failing, asking = driver.claim(execution, fails), driver.claim(execution, asks)
        waiting = driver.waiting_for_child(execution, asking, request(single(), None), depth=1)
        store.record([waiting, driver.outcome(execution, failing, Outcome.FAILED)], now=driver.now())
        assert _statuses(store, execution)[asks] is (NodeStatus.WAITING if children else NodeStatus.HELD)
        assert len(store.get_child_executions(execution)) == children

    @pytest.mark.parametrize(("fails", "ends"), [("w1", "w2"), ("w2", "w1")])
    def test_nothing_is_claimed_beside_a_failure_of_one_call(
        self, store: ExecutionStore, driver: StoreDriver, fails: str, ends: str
    ) -> None:
        execution = driver.start(graph("branches", {"w1": [], "w2": [], "after": [ends]}))
        failing, ending = driver.claim(execution, fails), driver.claim(execution, ends)
        records = [
            driver.outcome(execution, ending, successors=("after",)),
            driver.outcome(execution, failing, Outcome.FAILED),
        ]
        answers = store.record(records, now=driver.now())
        assert [(answer.next, answer.ended) for answer in answers] == [(None, None), (None, ExecutionStatus.FAILED)]
        assert _statuses(store, execution)["after"] is NodeStatus.HELD

    def test_a_failure_that_is_handled_lets_go_on_what_is_beside_it_in_one_call(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("branches", {"w1": [], "w2": [], "x1": ["w1"], "x2": ["w2"]}))
        first, second = driver.claim(execution, "w1"), driver.claim(execution, "w2")
        records = [
            driver.outcome(execution, first, successors=("x1",)),
            driver.outcome(execution, second, Outcome.FAILED, taken=("x2",)),
        ]
        answers = store.record(records, now=driver.now())
        started = [job.node_id for answer in answers for job in answer.jobs]
        started += [answer.next.node_id for answer in answers if answer.next is not None]
        assert sorted(started) == ["x1", "x2"]

    def test_what_was_queued_or_waiting_is_held(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(3))
        driver.run(execution, "split")
        driver.run(execution, "w2", Outcome.RETRY, delay_seconds=60)
        driver.run(execution, "w1", Outcome.FAILED)
        held = store.get_node_results(execution, ["w2", "w3"])
        assert [(run.status, run.due_at) for run in held] == [(NodeStatus.HELD, None)] * 2
        assert driver.try_claim(execution, "w3") is Refusal.NOT_READY
        clock.advance(3600)
        swept = store.sweep(heads={"default": None}, epoch=0, now=clock())
        assert [job for job in swept.jobs if job.execution_id == execution] == []

    def test_running_nodes_end_and_are_recorded_and_what_they_make_ready_is_held(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        # given three running branches of which one fails
        parents = {"split": [], "w1": ["split"], "w2": ["split"], "w3": ["split"], "join": ["w2", "w3"]}
        execution = driver.start(graph("branches", parents))
        driver.run(execution, "split")
        running = {name: driver.claim(execution, name) for name in ("w1", "w2", "w3")}
        driver.record(execution, running["w1"], Outcome.FAILED)
        # when the others end
        late = [driver.record(execution, running[name], data=name, successors=("join",)) for name in ("w2", "w3")]
        # then they count, no run starts, and the execution stays failed
        assert [(answer.recorded, list(answer.jobs), answer.next, answer.ended) for answer in late] == [
            (True, [], None, None)
        ] * 2
        statuses = _statuses(store, execution)
        assert (statuses["w2"], statuses["w3"], statuses["join"]) == (
            NodeStatus.COMPLETED,
            NodeStatus.COMPLETED,
            NodeStatus.HELD,
        )
        assert driver.try_claim(execution, "join") is Refusal.NOT_READY
        assert store.get_events(execution)[-1].kind == "node.held"

    def test_a_failed_execution_never_turns_completed(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        a, b = driver.claim(execution, "a"), driver.claim(execution, "b")
        driver.record(execution, a, Outcome.FAILED)
        assert driver.record(execution, b).ended is None
        found = store.get_execution(execution)
        assert found is not None
        assert found.status is ExecutionStatus.FAILED
        assert "execution.completed" not in [event.kind for event in store.get_events(execution)]

    def test_the_first_of_two_failures_is_the_executions_error(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        a, b = driver.claim(execution, "a"), driver.claim(execution, "b")
        assert driver.record(execution, b, Outcome.FAILED).ended is ExecutionStatus.FAILED
        second = driver.record(execution, a, Outcome.FAILED)
        assert (second.recorded, second.ended) == (True, None)
        found = store.get_execution(execution)
        assert found is not None
        assert found.error is not None
        assert found.error["node_id"] == "b"
        assert [event.kind for event in store.get_events(execution)].count("execution.failed") == 1

    def test_two_failures_in_one_call_fail_the_execution_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        records = [driver.outcome(execution, driver.claim(execution, name), Outcome.FAILED) for name in ("a", "b")]
        answers = store.record(records, now=clock())
        assert sorted(str(answer.ended) for answer in answers) == ["None", "failed"]

    def test_a_handled_failure_lets_the_execution_go_on(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top")
        answer = driver.run(execution, "left", Outcome.FAILED, data={"error": {"type": "Boom"}}, taken=("bottom",))
        assert (answer.recorded, answer.ended) == (True, None)
        (job,) = driver.run(execution, "right", data="r").jobs
        assert job.node_id == "bottom"
        node = driver.claim(execution, "bottom")
        assert {name: json.loads(text) for name, text in node.results.items()} == {
            "left": {"error": {"type": "Boom"}},
            "right": "r",
        }
        assert driver.record(execution, node).ended is ExecutionStatus.COMPLETED
        assert _statuses(store, execution)["left"] is NodeStatus.FAILED

    def test_an_unhandled_failure_holds_other_executions_in_no_way(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        failed, other = driver.start(chain(2)), driver.start(chain(2))
        driver.run(failed, "n1", Outcome.FAILED)
        driver.drain()
        found = store.get_execution(other)
        assert found is not None
        assert found.status is ExecutionStatus.COMPLETED

    def test_a_run_given_back_in_a_failed_execution_is_held(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        a, b = driver.claim(execution, "a"), driver.claim(execution, "b")
        driver.record(execution, a, Outcome.FAILED)
        answer = driver.record(execution, b, Outcome.RELEASED)
        assert (answer.recorded, list(answer.jobs)) == (True, [])
        assert _statuses(store, execution)["b"] is NodeStatus.HELD


class Retries:
    """RETRY: the time at which the run is due, and its attempts."""

    def test_a_retry_waits_until_it_is_due(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        error = {"type": "Boom", "message": "not yet", "traceback": "…", "permanent": False}
        answer = driver.run(execution, "only", Outcome.RETRY, delay_seconds=5, error=json.dumps(error))
        assert (answer.recorded, list(answer.jobs), answer.ended) == (True, [], None)
        (run,) = store.get_node_results(execution)
        assert (run.status, run.wait_kind, run.attempt) == (NodeStatus.WAITING, WaitKind.RETRY, 2)
        assert run.due_at is not None
        assert (run.due_at - clock()).total_seconds() == 5
        event = store.get_events(execution)[-1]
        assert (event.kind, event.data["error"]) == ("node.retrying", error)
        clock.advance(4)
        assert list(store.sweep(heads={}, epoch=0, now=clock()).jobs) == []
        clock.advance(2)
        swept = store.sweep(heads={}, epoch=0, now=clock())
        (job,) = swept.jobs
        assert (job.node_id, job.push, swept.moved["retry"]) == ("only", 2, 1)

    def test_each_attempt_is_numbered_and_fenced(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        seen: list[tuple[int, int]] = []
        for _ in range(3):
            node = driver.claim(execution, "only")
            seen.append((node.attempt, node.fence))
            driver.record(execution, node, Outcome.RETRY, delay_seconds=1)
            clock.advance(2)
            store.sweep(heads={}, epoch=0, now=clock())
        first = seen[0][1]
        assert seen == [(1, first), (2, first + 1), (3, first + 2)]
        driver.run(execution, "only", data="at last")
        (run,) = store.get_node_results(execution)
        assert (run.attempt, run.data) == (4, "at last")

    def test_a_retry_may_cost_no_attempt(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", Outcome.RETRY, delay_seconds=1, spends_attempt=False)
        clock.advance(2)
        store.sweep(heads={}, epoch=0, now=clock())
        assert driver.claim(execution, "only").attempt == 1

    def test_a_retry_in_a_paused_execution_waits_and_is_held_when_it_is_due(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        driver.pause(execution)
        assert driver.record(execution, node, Outcome.RETRY, delay_seconds=5).recorded
        (run,) = store.get_node_results(execution)
        assert (run.status, run.wait_kind, run.attempt) == (NodeStatus.WAITING, WaitKind.RETRY, 2)
        clock.advance(6)
        assert list(driver.sweep().jobs) == []
        (run,) = store.get_node_results(execution)
        assert (run.status, run.due_at) == (NodeStatus.HELD, None)

    def test_a_retry_in_a_failed_execution_is_held(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": []}))
        a, b = driver.claim(execution, "a"), driver.claim(execution, "b")
        driver.record(execution, a, Outcome.FAILED)
        answer = driver.record(execution, b, Outcome.RETRY, delay_seconds=1)
        assert (answer.recorded, list(answer.jobs)) == (True, [])
        (run,) = store.get_node_results(execution, ["b"])
        assert (run.status, run.due_at) == (NodeStatus.HELD, None)

    @pytest.mark.parametrize("delay_seconds", [0.0, 0.25])
    def test_a_short_delay_is_kept(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, delay_seconds: float
    ) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", Outcome.RETRY, delay_seconds=delay_seconds)
        (run,) = store.get_node_results(execution)
        assert run.due_at is not None
        assert (run.due_at - clock()).total_seconds() == delay_seconds
