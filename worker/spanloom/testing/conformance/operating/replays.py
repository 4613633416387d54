"""Conformance: starts that replay: the results that are taken over, the nodes that run, and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spanloom.engine.errors import InvalidTransition, UnknownExecution
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome, Replay, StartResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import (
    events_of,
    execution_of,
    item_statuses,
    run_of,
    status_of,
    statuses_of,
)
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, diamond, fan, graph, route_failure

__all__ = ["ReplayedStarts"]

UNKNOWN = "00000000-0000-7000-8000-000000000000"


class ReplayedStarts:
    """`create_executions` with a `replay`."""

    def test_without_results_it_is_a_start_that_names_its_source(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        source = driver.start(chain(2))
        driver.jobs.clear()
        again = driver.start("chain", replay=Replay(source))
        assert execution_of(store, again).replay_of == source
        assert [(job.execution_id, job.node_id, job.push) for job in driver.jobs] == [(again, "n1", 1)]
        assert driver.drain() == ["n1", "n2"]
        assert status_of(store, again) is ExecutionStatus.COMPLETED
        assert execution_of(store, source).replay_of is None

    def test_results_are_taken_over_and_what_they_lead_to_is_queued(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        source = driver.start(chain(3))
        driver.run(source, "n1", data={"a": 1.0})
        driver.run(source, "n2", data="two")
        driver.jobs.clear()
        clock.advance(5)
        again = driver.start("chain", "other", replay=Replay(source, carried=["n1", "n2"]))
        assert [(job.node_id, job.push, job.recovery_attempts, job.pushed_at) for job in driver.jobs] == [
            ("n3", 1, 0, clock())
        ]
        kept = run_of(store, again, "n2")
        assert (kept.status, kept.data) == (NodeStatus.COMPLETED, "two")
        assert kept.ended_at == run_of(store, source, "n2").ended_at
        assert dict(driver.claim(again, "n3").results) == {"n2": '"two"'}
        events = store.get_events(again)
        assert [(event.kind, event.node_id) for event in events[:3]] == [
            ("execution.created", None),
            ("execution.started", None),
            ("node.queued", "n3"),
        ]
        assert (events[0].data["replay_of"], events[0].data["carried"]) == (source, 2)
        assert execution_of(store, again).input == "other"

    def test_it_ends_by_its_own_nodes(self, store: ExecutionStore, driver: StoreDriver) -> None:
        source = driver.start(fan(3))
        driver.drain()
        again = driver.start("fan", replay=Replay(source, carried=["split", "w1", "w3"]))
        assert statuses_of(store, again)["w2"] is NodeStatus.QUEUED
        assert driver.drain(lambda node: sorted(node.results)) == ["w2", "join"]
        found = execution_of(store, again)
        assert (found.status, found.output) == (ExecutionStatus.COMPLETED, ["w1", "w2", "w3"])
        assert execution_of(store, source).output == "join"

    def test_a_source_may_run_on(self, store: ExecutionStore, driver: StoreDriver) -> None:
        source = driver.start(diamond())
        driver.run(source, "top")
        driver.run(source, "left")
        again = driver.start("diamond", replay=Replay(source, carried=["top", "left"]))
        assert statuses_of(store, again) == {
            "top": NodeStatus.COMPLETED, "left": NodeStatus.COMPLETED, "right": NodeStatus.QUEUED,
            "bottom": NodeStatus.PENDING,
        } or "bottom" not in statuses_of(store, again)  # fmt: skip
        driver.drain()
        assert (status_of(store, source), status_of(store, again)) == (ExecutionStatus.COMPLETED,) * 2

    def test_an_entry_node_among_those_that_run_is_queued(self, store: ExecutionStore, driver: StoreDriver) -> None:
        workflow = graph("two", {"a": [], "b": [], "join": ["a", "b"]})
        source = driver.start(workflow)
        driver.run(source, "a")
        again = driver.start("two", replay=Replay(source, carried=["a"]))
        assert statuses_of(store, again)["b"] is NodeStatus.QUEUED
        driver.jobs.clear()
        driver.run(again, "b")
        assert driver.claim(again, "join").results.keys() == {"a", "b"}

    def test_skips_and_handled_failures_count_as_they_did(self, store: ExecutionStore, driver: StoreDriver) -> None:
        workflow = graph(
            "mixed",
            {"a": [], "b": ["a"], "c": ["a"], "bad": ["a"], "mend": [route_failure("bad")], "end": ["b", "c", "mend"]},
        )
        source = driver.start(workflow)
        driver.run(source, "a", taken=("b", "bad"))
        driver.run(source, "b")
        driver.run(source, "bad", Outcome.FAILED, data={"error": "told"}, taken=("mend",), handled=True)
        driver.run(source, "mend", data=1)
        driver.run(source, "end", data=2)
        again = driver.start("mixed", replay=Replay(source, carried=["a", "b", "c", "bad"]))
        assert statuses_of(store, again)["c"] is NodeStatus.SKIPPED
        assert statuses_of(store, again)["bad"] is NodeStatus.FAILED
        mend = driver.claim(again, "mend")
        assert {name: json.loads(text) for name, text in mend.results.items()} == {"bad": {"error": "told"}}
        driver.record(again, mend, data=3)
        assert driver.claim(again, "end").results.keys() == {"b", "mend"}

    def test_a_mapped_nodes_items_come_with_it(self, store: ExecutionStore, driver: StoreDriver) -> None:
        source = driver.start(chain(2))
        driver.fan_out(source, "n1", ["x", "y"])
        for item in (1, 2):
            driver.run(source, "n1", item=item, data=item)
        driver.run(source, "n1", data=[1, 2])
        again = driver.start("chain", replay=Replay(source, carried=["n1"]))
        assert item_statuses(store, again, "n1") == dict.fromkeys((1, 2), NodeStatus.COMPLETED)
        assert run_of(store, again, "n1", 2).data == 2

    def test_nodes_to_which_nothing_leads_are_skipped(self, store: ExecutionStore, driver: StoreDriver) -> None:
        source = driver.start(graph("grown", {"a": [], "b": ["a"]}))
        driver.run(source, "a", taken=("b",))
        driver.run(source, "b")
        store.save_workflow(graph("grown", {"a": [], "b": ["a"], "new": ["a"], "end": ["b", "new"]}))
        again = driver.start("grown", replay=Replay(source, carried=["a", "b"], skipped=["new"]))
        assert execution_of(store, again).version == 2
        assert statuses_of(store, again)["new"] is NodeStatus.SKIPPED
        assert driver.claim(again, "end").results.keys() == {"b"}

    def test_a_deadline_counts_from_the_new_start(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        source = driver.start(chain(2))
        driver.run(source, "n1")
        clock.advance(100)
        again = driver.start("chain", replay=Replay(source, carried=["n1"]), deadline_seconds=10.0)
        assert execution_of(store, again).deadline_seconds == 10.0
        clock.advance(9)
        driver.sweep_all()
        assert status_of(store, again) is ExecutionStatus.RUNNING
        clock.advance(2)
        driver.sweep_all()
        assert status_of(store, again) is ExecutionStatus.FAILED

    def test_it_can_fail_and_be_retried(self, store: ExecutionStore, driver: StoreDriver) -> None:
        source = driver.start(chain(3))
        driver.drain()
        again = driver.start("chain", replay=Replay(source, carried=["n1"]))
        driver.run(again, "n2", Outcome.FAILED)
        assert status_of(store, again) is ExecutionStatus.FAILED
        driver.retry(again)
        driver.jobs.clear()
        driver.run(again, "n2")
        driver.run(again, "n3")
        assert status_of(store, again) is ExecutionStatus.COMPLETED

    @pytest.mark.parametrize(
        ("carried", "status"), [(["n1", "n2"], "running"), (["n1", "n2", "n3"], "running"), (["n3"], "pending")]
    )
    def test_what_has_not_ended_can_not_be_taken_over(
        self, store: ExecutionStore, driver: StoreDriver, carried: list[str], status: str
    ) -> None:
        source = driver.start(chain(4))
        driver.run(source, "n1")
        driver.claim(source, "n2")
        count = store.get_execution_count()
        with pytest.raises(InvalidTransition) as refused:
            driver.start("chain", replay=Replay(source, carried=carried))
        assert (refused.value.current, refused.value.wanted) == (status, "completed")
        assert store.get_execution_count() == count

    def test_a_failure_that_nobody_handled_can_not_be_taken_over(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        source = driver.start(chain(2))
        driver.run(source, "n1", Outcome.FAILED)
        with pytest.raises(InvalidTransition):
            driver.start("chain", replay=Replay(source, carried=["n1"]))

    @pytest.mark.parametrize("source", [UNKNOWN, "no uuid"])
    def test_an_unknown_source_is_refused(self, store: ExecutionStore, driver: StoreDriver, source: str) -> None:
        store.save_workflow(chain(2))
        with pytest.raises(UnknownExecution):
            driver.start("chain", replay=Replay(source))
        assert store.get_execution_count() == 0

    def test_one_key_is_one_replay(self, store: ExecutionStore, driver: StoreDriver) -> None:
        source = driver.start(chain(2))
        driver.run(source, "n1")
        options: dict[str, Any] = {
            "replay": Replay(source, carried=["n1"]), "idempotency_key": "k", "input_hash": "h"
        }  # fmt: skip
        first = driver.start("chain", **options)
        again = store.create_execution(request("chain", **options), now=driver.now())
        assert isinstance(again, StartResult)
        assert (again.execution_id, again.created, list(again.jobs)) == (first, False, [])
        assert events_of(store, first).count("execution.created") == 1
