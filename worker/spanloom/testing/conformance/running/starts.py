"""Conformance: starting executions."""

from __future__ import annotations

import json
import uuid

import pytest

from spanloom.engine.errors import ConfigurationError, IdempotencyConflict, UnknownWorkflow
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeKey, Priority, Refusal, StartResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, diamond, fan, graph, single

__all__ = ["Starts"]


class Starts:
    """`create_executions`: the rows of a start, refusals, idempotency keys."""

    def test_a_start_answers_one_job_per_entry_node(self, store: ExecutionStore, clock: ManualClock) -> None:
        store.save_workflow(graph("entries", {"a": [], "b": [], "last": ["a", "b"], "alone": []}, queue="q"))
        wanted = request("entries", priority=Priority.HIGH)
        started = store.create_execution(wanted, now=clock())
        assert isinstance(started, StartResult)
        assert (started.execution_id, started.version, started.created) == (wanted.execution_id, 1, True)
        assert sorted(job.node_id for job in started.jobs) == ["a", "alone", "b"]
        for job in started.jobs:
            assert (job.execution_id, job.item, job.node_type) == (wanted.execution_id, 0, "work")
            assert (job.queue, job.priority, job.push, job.pushed_at) == ("q", "high", 1, clock())

    def test_a_started_execution_is_running(self, store: ExecutionStore, clock: ManualClock) -> None:
        store.save_workflow(diamond())
        wanted = request(
            "diamond", {"id": 7}, metadata={"order": "ß-7"}, trace_parent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"
        )
        store.create_execution(wanted, now=clock())
        execution = store.get_execution(wanted.execution_id)
        assert execution is not None
        assert (execution.workflow_id, execution.version, execution.status) == ("diamond", 1, ExecutionStatus.RUNNING)
        assert (execution.input, execution.output, execution.error) == ({"id": 7}, None, None)
        assert (execution.priority, execution.metadata, execution.depth) == (Priority.NORMAL, {"order": "ß-7"}, 0)
        assert execution.trace_parent == wanted.trace_parent
        assert (execution.created_at, execution.started_at, execution.ended_at) == (clock(), clock(), None)

    def test_only_entry_nodes_are_queued(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        (top,) = store.get_node_results(execution, ["top"])
        assert (top.status, top.attempt, top.recovery_attempts, top.worker_id) == (NodeStatus.QUEUED, 1, 0, None)
        assert all(run.status is NodeStatus.PENDING for run in store.get_node_results(execution, ["left", "bottom"]))

    def test_virtual_nodes_are_not_shown(self, store: ExecutionStore, driver: StoreDriver) -> None:
        now_running = driver.start(single())
        delayed = driver.start(single(), delay_seconds=60)
        assert [run.node_id for run in store.get_node_results(now_running)] == ["only"]
        assert not [run for run in store.get_node_results(delayed) if run.node_id.startswith("$")]

    def test_the_latest_version_is_taken_unless_one_is_pinned(self, store: ExecutionStore) -> None:
        store.save_workflow(chain(1))
        store.save_workflow(fan(2, "chain"))
        latest, pinned = store.create_executions([request("chain"), request("chain", version=1)])
        assert isinstance(latest, StartResult)
        assert isinstance(pinned, StartResult)
        assert (latest.version, [job.node_id for job in latest.jobs]) == (2, ["split"])
        assert (pinned.version, [job.node_id for job in pinned.jobs]) == (1, ["n1"])

    def test_an_execution_keeps_its_version_while_newer_ones_are_saved(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(chain(2))
        store.save_workflow(chain(5))
        assert driver.drain() == ["n1", "n2"]
        found = store.get_execution(execution)
        assert found is not None
        assert (found.version, found.status) == (1, ExecutionStatus.COMPLETED)

    def test_each_request_has_its_own_answer(self, store: ExecutionStore) -> None:
        store.save_workflow(single())
        requests = [request("single"), request("unknown"), request("single", version=9), request("single")]
        first, unknown, no_version, last = store.create_executions(requests)
        assert isinstance(first, StartResult)
        assert isinstance(last, StartResult)
        assert isinstance(unknown, UnknownWorkflow)
        assert isinstance(no_version, UnknownWorkflow)
        assert (no_version.workflow_id, no_version.version) == ("single", 9)

    def test_a_refused_start_leaves_nothing(self, store: ExecutionStore) -> None:
        store.save_workflow(single("off"))
        store.deactivate_workflow("off")
        requests = [request("unknown", idempotency_key="k"), request("off"), request("off", version=2)]
        store.create_executions(requests)
        assert store.get_execution_count() == 0
        assert all(store.get_execution(refused.execution_id) is None for refused in requests)
        assert all(store.get_events(refused.execution_id) == [] for refused in requests)
        store.save_workflow(single("unknown"))  # the key was not used up
        assert isinstance(
            store.create_execution(request("unknown", 2, idempotency_key="k", input_hash="2")), StartResult
        )

    def test_no_requests_have_no_answers(self, store: ExecutionStore) -> None:
        assert store.create_executions([]) == []

    def test_many_executions_start_in_one_call(self, store: ExecutionStore) -> None:
        store.save_workflow(single())
        requests = [request("single", number) for number in range(200)]
        answers = store.create_executions(requests)
        assert [answer.execution_id for answer in answers if isinstance(answer, StartResult)] == [
            wanted.execution_id for wanted in requests
        ]
        assert store.get_execution_count() == 200

    def test_a_delayed_start_is_pending_and_owes_no_job(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single(), delay_seconds=60)
        assert not driver.jobs
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.started_at) == (ExecutionStatus.PENDING, None)
        assert driver.try_claim(execution, "only") is Refusal.GONE

    def test_a_start_is_told_by_events(self, store: ExecutionStore, driver: StoreDriver) -> None:
        kinds = [event.kind for event in store.get_events(driver.start(single()))]
        assert kinds == ["execution.created", "execution.started", "node.queued"]
        delayed = driver.start(single(), delay_seconds=60)
        assert [event.kind for event in store.get_events(delayed)] == ["execution.created"]

    def test_a_child_knows_its_parent(self, store: ExecutionStore, driver: StoreDriver) -> None:
        parent = driver.start(single())
        node = driver.claim(parent, "only")
        key = NodeKey(parent, "only", 0)
        child = driver.start("single", parent=key, parent_fence=node.fence, depth=1)
        found = store.get_execution(child)
        assert found is not None
        assert (found.parent_execution_id, found.parent_node_id, found.parent_item) == key
        assert found.depth == 1

    def test_a_connection_that_is_no_postgres_connection_is_refused(self, store: ExecutionStore) -> None:
        store.save_workflow(single())
        with pytest.raises(ConfigurationError):
            store.create_execution(request("single"), connection=object())
        assert store.get_execution_count() == 0


class IdempotencyKeys:
    """`create_executions` with an idempotency key."""

    def test_a_key_used_again_answers_the_execution_it_started(self, store: ExecutionStore) -> None:
        store.save_workflow(diamond())
        first, again = (
            store.create_execution(request("diamond", 1, idempotency_key="k", input_hash="1")) for _ in range(2)
        )
        assert isinstance(first, StartResult)
        assert again == StartResult(
            first.execution_id, 1, created=False, jobs=again.jobs if isinstance(again, StartResult) else ()
        )
        assert isinstance(again, StartResult)
        assert list(again.jobs) == []
        assert store.get_execution_count() == 1

    def test_a_key_used_with_other_input_is_a_conflict(self, store: ExecutionStore) -> None:
        store.save_workflow(single())
        first = store.create_execution(request("single", 1, idempotency_key="k", input_hash="1"))
        assert isinstance(first, StartResult)
        other = store.create_execution(request("single", 2, idempotency_key="k", input_hash="2"))
        assert isinstance(other, IdempotencyConflict)
        assert (other.workflow_id, other.key, other.execution_id) == ("single", "k", first.execution_id)
        assert store.get_execution_count() == 1

    def test_a_key_used_twice_in_one_call_starts_once(self, store: ExecutionStore) -> None:
        store.save_workflow(single())
        first, again = store.create_executions(
            [request("single", 1, idempotency_key="k", input_hash="1") for _ in range(2)]
        )
        assert isinstance(first, StartResult)
        assert isinstance(again, StartResult)
        assert (first.created, again.created) == (True, False)
        assert first.execution_id == again.execution_id
        assert store.get_execution_count() == 1

    def test_keys_of_two_workflows_are_apart(self, store: ExecutionStore) -> None:
        for name in ("a", "b"):
            store.save_workflow(single(name))
            answer = store.create_execution(request(name, idempotency_key="k"))
            assert isinstance(answer, StartResult)
            assert answer.created

    def test_a_key_outlives_the_end_of_its_execution(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single(), idempotency_key="k")
        driver.drain()
        assert driver.start("single", idempotency_key="k") == execution

    def test_an_expired_key_is_free_again(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        first = driver.start(single(), 1, idempotency_key="k", input_hash="1", key_ttl_seconds=60)
        clock.advance(59)
        assert driver.start("single", 1, idempotency_key="k", input_hash="1", key_ttl_seconds=60) == first
        clock.advance(2)
        second = driver.start("single", 2, idempotency_key="k", input_hash="2", key_ttl_seconds=60)
        assert second != first
        clock.advance(59)
        assert driver.start("single", 2, idempotency_key="k", input_hash="2") == second

    def test_a_key_that_answers_an_execution_leaves_the_new_id_unused(self, store: ExecutionStore) -> None:
        store.save_workflow(single())
        store.create_execution(request("single", idempotency_key="k"))
        unused = str(uuid.uuid4())
        store.create_execution(request("single", idempotency_key="k", execution_id=unused, input=json.dumps(None)))
        assert store.get_execution(unused) is None
