"""Conformance: transactions, atomic transitions, opening and closing."""

from __future__ import annotations

import contextlib
import threading
from datetime import datetime
from typing import Any, cast

import pytest

from spanloom.engine.errors import UnknownExecution, UnknownWorkflow
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LogLine, SpanLine, StartResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, diamond, single

__all__ = ["Atomicity", "Lifecycles", "Transactions"]


class _Stop(Exception):
    """Raised when a transaction is to be rolled back."""


class Transactions:
    """`transaction`: all calls of the block commit at its end, or none."""

    def test_the_calls_of_a_block_commit_together(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        with store.transaction():
            store.save_workflow(chain(2))
            execution = driver.start("chain")
            store.add_log(execution, LogLine("info", "begun", clock()))
            driver.run(execution, "n1")
        found = store.get_execution(execution)
        assert found is not None
        assert [run.status for run in store.get_node_results(execution)] == [NodeStatus.COMPLETED, NodeStatus.QUEUED]
        assert [line.message for line in store.get_logs(execution)] == ["begun"]

    def test_a_block_reads_what_it_wrote(self, store: ExecutionStore, driver: StoreDriver) -> None:
        with store.transaction():
            execution = driver.start(single())
            found = store.get_execution(execution)
            assert found is not None
            assert store.get_execution_count() == 1

    def test_an_exception_takes_back_every_call_of_the_block(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        store.save_workflow(diamond())
        running = driver.start("diamond")
        node = driver.claim(running, "top")
        before = (store.get_execution(running), store.get_node_results(running), store.get_events(running))
        with contextlib.suppress(_Stop), store.transaction():
            store.save_workflow(single("new"))
            store.deactivate_workflow("diamond")
            driver.start("new", idempotency_key="k")
            driver.record(running, node, successors=("left",))
            store.add_log(running, LogLine("info", "gone", clock()))
            store.add_span(running, SpanLine("a" * 32, "b" * 16, None, "gone", "internal", "ok", 1, 2))
            store.register_worker("gone", name="gone", host="h", pid=1, queues=[], lease_seconds=9, now=clock())
            store.raise_epoch(0, "gone")
            raise _Stop
        assert store.get_workflow("new") is None
        assert [workflow.active for workflow in store.list_workflows().items] == [True]
        assert store.get_execution_count() == 1
        assert (store.get_execution(running), store.get_node_results(running), store.get_events(running)) == before
        assert (store.get_logs(running), store.get_trace(running)) == ([], [])
        assert [lease.name for lease in store.list_workers(now=clock())] == ["driver"]
        assert store.get_epoch().epoch == 0
        driver.jobs.clear()
        answer = driver.record(running, node)
        assert (answer.recorded, len(answer.jobs)) == (True, 2)

    def test_a_cancel_that_is_taken_back_leaves_the_execution_running(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(diamond())
        with contextlib.suppress(_Stop), store.transaction():
            store.cancel_execution(execution)
            raise _Stop
        assert sorted(driver.drain()) == ["bottom", "left", "right", "top"]
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.revision) == (ExecutionStatus.COMPLETED, 0)

    def test_the_exception_is_raised_on(self, store: ExecutionStore) -> None:
        with pytest.raises(_Stop), store.transaction():
            raise _Stop

    def test_a_refused_start_does_not_spoil_the_block(self, store: ExecutionStore) -> None:
        store.save_workflow(single())
        with store.transaction():
            store.create_executions([request("unknown"), request("single", version=9)])
            answer = store.create_execution(request("single"))
        assert isinstance(answer, StartResult)
        assert store.get_execution(answer.execution_id) is not None

    def test_nobody_else_sees_half_a_block(self, store: ExecutionStore) -> None:
        store.save_workflow(single())
        counts: list[int] = []
        begun, done = threading.Event(), threading.Event()

        def look() -> None:
            begun.wait(30)
            while not done.is_set():
                counts.append(store.get_execution_count())
            counts.append(store.get_execution_count())

        reader = threading.Thread(target=look)
        reader.start()
        try:
            for _ in range(20):
                with store.transaction():
                    store.create_execution(request("single"))
                    begun.set()
                    store.create_execution(request("single"))
                    store.create_execution(request("single"))
        finally:
            begun.set()
            done.set()
            reader.join(30)
        assert [count for count in counts if count % 3] == []
        assert counts[-1] == 60


class Atomicity:
    """A transition whose later step fails leaves nothing of its earlier ones."""

    def _unstorable(self, clock: ManualClock) -> dict[str, dict[str, Any]]:
        good = LogLine("info", "good", clock())
        return {
            "message": {"logs": [good, LogLine("info", cast(str, object()), clock())]},
            "time": {"logs": [good, LogLine("info", "no time", cast(datetime, "yesterday"))]},
            "span": {"spans": [SpanLine("a" * 32, "b" * 16, None, "w", "internal", "ok", 1, cast(int, object()))]},
        }

    @pytest.mark.parametrize("part", ["message", "time", "span"])
    def test_a_record_with_unfit_telemetry_is_there_whole_or_not_at_all(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, part: str
    ) -> None:
        # given a claim, and a record with telemetry of the wrong type
        execution = driver.start(diamond())
        node = driver.claim(execution, "top")
        before = (store.get_execution(execution), store.get_node_results(execution), store.get_events(execution))
        bad = driver.outcome(execution, node, successors=("left",), **self._unstorable(clock)[part])
        # when it is recorded
        try:
            (answer,) = store.record([bad], now=clock())
        except Exception:  # the contract does not define which error it is
            # then either none of it is stored, and the record without it has its full effect
            after = (store.get_execution(execution), store.get_node_results(execution), store.get_events(execution))
            assert after == before
            assert (store.get_logs(execution), store.get_trace(execution)) == ([], [])
            answer = driver.record(execution, node, successors=("left",))
        # or all of it
        assert answer.next is not None
        assert [job.node_id for job in answer.jobs] == ["right"]
        assert [run.status for run in store.get_node_results(execution, ["top"])] == [NodeStatus.COMPLETED]

    def test_a_start_with_unfit_metadata_is_there_whole_or_not_at_all(
        self, store: ExecutionStore, clock: ManualClock
    ) -> None:
        store.save_workflow(single())
        bad = request("single", metadata={"k": cast(str, object())}, idempotency_key="k")
        try:
            answer = store.create_execution(bad, now=clock())
        except Exception:  # the contract does not define which error it is
            assert store.get_execution_count() == 0
            assert store.get_events(bad.execution_id) == []
            answer = store.create_execution(request("single", idempotency_key="k"), now=clock())
        assert isinstance(answer, StartResult)
        assert answer.created

    def test_refused_calls_leave_the_store_usable(self, store: ExecutionStore, driver: StoreDriver) -> None:
        for _ in range(30):  # more often than any pool has connections
            with pytest.raises(UnknownWorkflow):
                store.deactivate_workflow("unknown")
            with pytest.raises(UnknownExecution):
                store.cancel_execution("unknown")
        driver.start(chain(2))
        assert driver.drain() == ["n1", "n2"]


class Lifecycles:
    """`Lifecycle`: opening, closing, migrating."""

    def test_opening_closing_and_migrating_twice_is_no_error(self, store: ExecutionStore) -> None:
        for _ in range(2):
            store.open()
            store.migrate()
        for _ in range(2):
            store.close()

    def test_a_closed_store_opens_again_at_its_next_use(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        store.close()
        assert store.get_execution(execution) is not None
        store.close()
        assert driver.drain() == ["n1", "n2"]

    def test_migrating_keeps_what_is_there(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        store.migrate()
        assert store.get_execution(execution) is not None

    def test_a_store_that_answers_is_healthy_and_says_where_it_is(self, store: ExecutionStore) -> None:
        store.health()
        assert "://" in store.url
        assert isinstance(store.shared, bool)
