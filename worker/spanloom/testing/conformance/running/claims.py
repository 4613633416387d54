"""Conformance: claiming node runs."""

from __future__ import annotations

import json
import uuid

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, ExecutionHeader, NodeKey, Outcome, Priority, Refusal
from spanloom.engine.store.states import NodeStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, diamond, fan, single

__all__ = ["Claims"]


class Claims:
    """`claim`: the conditions, the data of a claim, and the refusals."""

    def test_a_claim_holds_what_a_handler_may_know(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        execution = driver.start(
            single(queue="q"),
            {"id": 7},
            metadata={"k": "v"},
            priority=Priority.LOW,
            trace_parent=trace,
            trace_state="x=1",
            depth=3,
        )
        claim = driver.try_claim(execution, "only")
        assert isinstance(claim, Claim)
        assert claim.header == ExecutionHeader(
            execution, "single", 1, json.dumps({"id": 7}), "low", 3, None, {"k": "v"}, trace, "x=1", None, clock()
        )
        node = claim.node
        assert (node.node_id, node.item, node.node_type, node.queue) == ("only", 0, "work", "q")
        assert (node.attempt, node.recovery_attempts, dict(node.results)) == (1, 0, {})
        assert node.fence >= 1

    def test_a_claimed_run_is_running_and_waits_for_no_time(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        clock.advance(3)
        driver.claim(execution, "only")
        (run,) = store.get_node_results(execution)
        assert (run.status, run.worker_id, run.started_at) == (NodeStatus.RUNNING, driver.worker_id, clock())
        assert run.due_at is None
        event = store.get_events(execution)[-1]
        assert (event.kind, event.node_id, event.attempt) == ("node.started", "only", 1)
        assert event.worker_id == driver.worker_id

    def test_a_claim_sent_again_is_answered_again(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        # given a claim whose answer was lost
        execution = driver.start(diamond())
        driver.run(execution, "top", data=1)
        keys = [NodeKey(execution, "left"), NodeKey(execution, "right")]
        first = store.claim(keys, worker_id=driver.worker_id, token="t1", now=clock())
        events = len(store.get_events(execution))
        # when it is sent again it is the same claim; under another token, or by another worker, it is taken
        assert store.claim(keys, worker_id=driver.worker_id, token="t1", now=clock()) == first
        assert store.claim(keys, worker_id=driver.worker_id, token="t2", now=clock()) == [Refusal.TAKEN] * 2
        assert store.claim(keys, worker_id=driver.worker_id, now=clock()) == [Refusal.TAKEN] * 2
        other = StoreDriver(store, clock=clock)
        assert store.claim(keys, worker_id=other.worker_id, token="t1", now=clock()) == [Refusal.TAKEN] * 2
        # and it wrote no event, and is over once the run has ended
        assert len(store.get_events(execution)) == events
        assert isinstance(first[0], Claim)
        driver.record(execution, first[0].node)
        again = store.claim(keys, worker_id=driver.worker_id, token="t1", now=clock())
        assert again == [Refusal.GONE, first[1]]

    def test_the_same_key_twice_is_claimed_once_also_under_a_token(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        keys = [NodeKey(execution, "only")] * 3
        answers = store.claim(keys, worker_id=driver.worker_id, token="t", now=clock())
        assert isinstance(answers[0], Claim)
        assert answers[1:] == [Refusal.TAKEN] * 2
        assert store.claim(keys, worker_id=driver.worker_id, token="t", now=clock()) == answers

    def test_a_claimed_run_is_taken(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        driver.claim(execution, "only")
        other = StoreDriver(store, clock=clock)
        assert other.try_claim(execution, "only") is Refusal.TAKEN
        assert driver.try_claim(execution, "only") is Refusal.TAKEN

    def test_an_ended_or_unknown_run_is_gone(self, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1")
        assert driver.try_claim(execution, "n1") is Refusal.GONE
        assert driver.try_claim(execution, "other") is Refusal.GONE
        assert driver.try_claim(execution, "n2", 1) is Refusal.GONE
        assert driver.try_claim(str(uuid.uuid4()), "n1") is Refusal.GONE

    def test_an_execution_id_that_is_no_id_is_gone(self, driver: StoreDriver) -> None:
        assert driver.try_claim("no such thing", "n1") is Refusal.GONE

    def test_a_run_whose_inputs_are_open_is_not_given(self, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top")
        assert not isinstance(driver.try_claim(execution, "bottom"), Claim)
        driver.run(execution, "left")
        assert driver.try_claim(execution, "bottom") is Refusal.NOT_READY

    @pytest.mark.parametrize("virtual", ["$end", "$start"])
    def test_virtual_nodes_are_not_given(self, driver: StoreDriver, virtual: str) -> None:
        for delay_seconds in (0, 60):
            execution = driver.start(single(), delay_seconds=delay_seconds)
            assert not isinstance(driver.try_claim(execution, virtual), Claim)

    def test_a_waiting_run_is_not_ready(self, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", Outcome.RETRY, delay_seconds=60)
        assert driver.try_claim(execution, "only") is Refusal.NOT_READY

    def test_a_held_run_is_not_ready(self, driver: StoreDriver) -> None:
        execution = driver.start(fan(2))
        driver.run(execution, "split")
        driver.run(execution, "w1", Outcome.FAILED)
        assert driver.try_claim(execution, "w2") is Refusal.NOT_READY

    def test_the_fence_rises_with_every_claim(self, driver: StoreDriver) -> None:
        execution = driver.start(single())
        fences: list[int] = []
        for _ in range(3):
            node = driver.claim(execution, "only")
            fences.append(node.fence)
            driver.record(execution, node, Outcome.RELEASED)
        assert fences == [fences[0], fences[0] + 1, fences[0] + 2]

    def test_a_claim_holds_the_data_of_all_taken_parents_to_the_letter(self, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top", data=1)
        driver.run(execution, "left", data={"b": 1, "a": [0, False, ""]})
        driver.run(execution, "right", data=None)
        node = driver.claim(execution, "bottom")
        assert dict(node.results) == {"left": json.dumps({"b": 1, "a": [0, False, ""]}), "right": "null"}

    def test_a_claim_leaves_out_parents_whose_edge_was_not_taken(self, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top")
        driver.run(execution, "left", data="left", taken=())
        driver.run(execution, "right", data="right")
        assert dict(driver.claim(execution, "bottom").results) == {"right": '"right"'}

    def test_each_key_has_its_own_answer_and_the_same_key_is_given_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(fan(3))
        driver.run(execution, "split")
        keys = [NodeKey(execution, name) for name in ("w1", "split", "w3", "w1", "other")]
        answers = store.claim(keys, worker_id=driver.worker_id, now=clock())
        assert isinstance(answers[0], Claim)
        assert isinstance(answers[2], Claim)
        assert (answers[0].node.node_id, answers[2].node.node_id) == ("w1", "w3")
        assert answers[1] is Refusal.GONE
        assert answers[3] is Refusal.TAKEN
        assert answers[4] is Refusal.GONE

    def test_no_keys_have_no_answers(self, store: ExecutionStore, driver: StoreDriver) -> None:
        assert store.claim([], worker_id=driver.worker_id) == []

    def test_an_unknown_worker_is_given_nothing(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        assert store.claim([NodeKey(execution, "only")], worker_id=str(uuid.uuid4())) == [Refusal.RETIRED]
        driver.claim(execution, "only")

    def test_a_worker_whose_lease_lapsed_is_given_nothing(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        clock.advance(61)
        assert driver.try_claim(execution, "only") is Refusal.RETIRED
        assert StoreDriver(store, clock=clock).claim(execution, "only").fence >= 1

    def test_a_retired_worker_is_given_nothing(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        store.unregister_worker(driver.worker_id, now=clock())
        assert driver.try_claim(execution, "only") is Refusal.RETIRED
