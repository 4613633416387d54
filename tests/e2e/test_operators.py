"""What operators do: stop what runs, replay, end by hand, fail, let rest, purge; for one execution or for many."""

from __future__ import annotations

import threading

import pytest

from e2e.support.harness import System, until
from spanloom.engine import ExecutionFilter, ExecutionStatus, InvalidTransition, UnknownExecution, UserError, Workflow


@pytest.mark.parametrize("handler", ["obedient", "aobedient"])
def test_a_cancel_reaches_handlers_that_run(system: System, handler: str) -> None:
    workflow_id = system.register({"id": "long", "type": handler})
    execution_id = system.engine.enqueue_workflow(workflow_id)
    until(lambda: system.ran(execution_id))

    assert system.engine.cancel_execution(execution_id)

    stopped = system.redis.blpop([f"stopped:{execution_id}"], timeout=20)
    assert stopped is not None
    assert system.statuses(execution_id) == {"long": "cancelled"}
    assert system.run(system.register({"id": "a", "type": "echo"}), 1).output == 1  # its slot is free


def test_a_cancel_of_a_parent_reaches_the_handlers_of_its_children(system: System) -> None:
    inner = system.register({"id": "long", "type": "aobedient"}, name="inner")
    outer = system.register({"id": "child", "type": "workflow", "config": {"workflow": inner}})
    execution_id = system.engine.enqueue_workflow(outer)
    until(lambda: system.engine.store.get_child_executions(execution_id))
    (child,) = system.engine.store.get_child_executions(execution_id)
    until(lambda: system.ran(child.id))

    system.engine.cancel_execution(execution_id)

    assert system.redis.blpop([f"stopped:{child.id}"], timeout=20) is not None


class TestReplay:
    """A new execution with the data, and as far as one likes the results, of an earlier one."""

    def test_it_runs_all_of_it_again_with_the_same_data(self, system: System) -> None:
        workflow_id = system.register({"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]})
        first = system.run(workflow_id, {"n": 1}, metadata={"order": "7"}, priority="high")

        again = system.engine.wait(system.engine.replay_execution(first.id), timeout=30)

        assert again.id != first.id
        assert (again.output, again.metadata, again.priority) == (first.output, first.metadata, first.priority)
        assert again.replay_of == first.id
        assert system.ran(again.id) == ["a", "b"]

    def test_from_a_node_on_it_takes_over_what_came_before(self, system: System) -> None:
        workflow_id = system.register(
            {"id": "a", "type": "echo"},
            {"id": "b", "type": "echo", "inputs": ["a"]},
            {"id": "c", "type": "boom", "inputs": ["a"]},
            {"id": "join", "type": "collect", "inputs": ["b", "c"]},
        )
        first = system.run(workflow_id, 5, metadata={"test": f"replay-{system.kind}"})
        assert first.status is ExecutionStatus.FAILED
        system.redis.set(f"mended:replay-{system.kind}", 1)

        again = system.engine.wait(system.engine.replay_execution(first.id, from_node="c"), timeout=30)

        assert again.output == {"b": 5, "c": 5}
        assert sorted(system.ran(again.id)) in (
            ["c", "join"],
            ["b", "c", "join"],
        )  # b may not have ended before c failed
        assert "a" not in system.ran(again.id)
        assert system.engine.store.get_execution(first.id).status is ExecutionStatus.FAILED  # type: ignore[union-attr]

    def test_skips_and_maps_are_taken_over(self, system: System) -> None:
        workflow_id = system.register(
            {"id": "list", "type": "value", "config": {"value": [1, 2, 3]}},
            {"id": "choose", "type": "route", "config": {"to": ["left"]}, "inputs": ["list"]},
            {"id": "left", "type": "name", "inputs": ["choose"]},
            {"id": "right", "type": "name", "inputs": ["choose"]},
            {"id": "each", "type": "tenfold", "map": "nodes.list", "inputs": ["list"]},
            {"id": "end", "type": "collect", "inputs": ["left", "right", "each"]},
        )
        first = system.run(workflow_id)

        again = system.engine.wait(system.engine.replay_execution(first.id, from_node="end"), timeout=30)

        assert again.output == first.output == {"left": "left", "each": [10, 20, 30]}
        assert system.ran(again.id) == ["end"]
        assert system.statuses(again.id)["right"] == "skipped"

    def test_a_newer_version_goes_on_from_the_results_of_an_older_one(self, system: System) -> None:
        nodes = [{"id": "a", "type": "echo"}, {"id": "b", "type": "boom", "inputs": ["a"]}]
        workflow_id = system.register(*nodes)
        first = system.run(workflow_id, "data")
        mended = [nodes[0], {"id": "b", "type": "echo", "inputs": ["a"]}, {"id": "c", "type": "name", "inputs": ["b"]}]
        system.engine.register_workflow(Workflow.model_validate({"id": workflow_id, "nodes": mended}))

        newer = system.engine.replay_execution(first.id, version="latest", from_node="b")

        again = system.engine.wait(newer, timeout=30)
        assert (again.version, again.output) == (2, "c")
        assert system.ran(again.id) == ["b", "c"]

    def test_what_can_not_be_replayed_is_told(self, system: System) -> None:
        workflow_id = system.register(
            {"id": "choose", "type": "route", "config": {"to": []}},
            {"id": "never", "type": "name", "inputs": ["choose"]},
        )
        first = system.run(workflow_id)
        count = system.engine.store.get_execution_count(ExecutionFilter(workflow_id=workflow_id))

        with pytest.raises(UserError, match="did you mean 'never'"):
            system.engine.replay_execution(first.id, from_node="nevre")
        with pytest.raises(UserError, match="was not reached"):
            system.engine.replay_execution(first.id, from_node="never")
        with pytest.raises(UnknownExecution):
            system.engine.replay_execution("00000000-0000-7000-8000-000000000000")
        assert system.engine.store.get_execution_count(ExecutionFilter(workflow_id=workflow_id)) == count


class TestByHand:
    """What an operator ends in place of a worker, or of time."""

    def test_a_node_that_waits_is_completed_and_what_follows_runs(self, system: System) -> None:
        workflow_id = system.register(
            {"id": "wait", "type": "delay", "config": {"seconds": 3600}},
            {"id": "after", "type": "echo", "inputs": ["wait"]},
        )
        execution_id = system.engine.enqueue_workflow(workflow_id, 1)
        system.until(execution_id, "node.waiting", "wait")

        system.engine.update_node_result(execution_id, "wait", data={"by": "hand"})

        assert system.engine.wait(execution_id, timeout=30).output == {"by": "hand"}

    def test_a_node_that_a_worker_runs_is_its_own(self, system: System) -> None:
        gate = f"hand-{system.kind}"
        workflow_id = system.register({"id": "busy", "type": "gate", "config": {"gate": gate}})
        execution_id = system.engine.enqueue_workflow(workflow_id)
        system.arrived(gate)

        with pytest.raises(InvalidTransition, match="running"):
            system.engine.update_node_result(execution_id, "busy", "failed", error="enough")

        system.open_gate(gate)
        assert system.engine.wait(execution_id, timeout=30).status is ExecutionStatus.COMPLETED
        with pytest.raises(InvalidTransition, match="completed"):
            system.engine.update_node_result(execution_id, "busy", data=1)
        with pytest.raises(UserError, match=r"no node 'bussy'.*did you mean 'busy'"):
            system.engine.update_node_result(execution_id, "bussy")

    def test_an_execution_is_failed_and_goes_on_by_a_retry(self, system: System) -> None:
        workflow_id = system.register(
            {"id": "wait", "type": "delay", "config": {"expression": "input"}},
            {"id": "after", "type": "name", "inputs": ["wait"]},
        )
        for seconds in (0.5, 5, 20):  # until it fails before the delay is over
            execution_id = system.engine.enqueue_workflow(workflow_id, seconds)
            system.until(execution_id, "node.waiting", "wait")
            try:
                assert system.engine.set_execution_status(execution_id, "failed", error="wrong customer")
            except InvalidTransition:
                continue
            break

        failed = system.engine.wait(execution_id, timeout=10)
        assert failed.error is not None
        assert failed.error["message"] == "wrong customer"
        assert system.engine.set_execution_status(execution_id, "running")
        assert system.engine.wait(execution_id, timeout=30).output == "after"
        with pytest.raises(InvalidTransition):
            system.engine.set_execution_status(execution_id, "completed")

    def test_an_acknowledged_failure_is_no_dead_letter_until_it_is_retried(self, system: System) -> None:
        workflow_id = system.register({"id": "bad", "type": "boom"})
        dead = ExecutionFilter(workflow_id=workflow_id, status=ExecutionStatus.FAILED, acknowledged=False)
        ids = [system.run(workflow_id, metadata={"test": f"rest-{system.kind}"}).id for _ in range(3)]

        def dead_letters() -> set[str]:
            return {execution.id for execution in system.engine.store.list_executions(dead).items}

        assert dead_letters() == set(ids)
        assert system.engine.acknowledge_execution(ids[0])
        assert not system.engine.acknowledge_execution(ids[0])
        assert dead_letters() == set(ids[1:])
        system.redis.set(f"mended:rest-{system.kind}", 1)
        retried = system.engine.retry_executions(ExecutionFilter(workflow_id=workflow_id))
        assert set(retried.done) == set(ids[1:])
        assert system.engine.retry_execution(ids[0])
        for execution_id in ids:
            assert system.engine.wait(execution_id, timeout=30).status is ExecutionStatus.COMPLETED
        with pytest.raises(InvalidTransition):
            system.engine.acknowledge_execution(ids[0])


def test_many_are_replayed_by_what_they_have_in_common(system: System) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]})
    ids = [system.run(workflow_id, number).id for number in range(3)]

    replayed = system.engine.replay_executions(ExecutionFilter(workflow_id=workflow_id), from_node="b", limit=2)

    assert replayed.done == ids[:2]
    for number, source in enumerate(ids[:2]):
        again = system.engine.wait(replayed.started[source], timeout=30)
        assert (again.output, again.replay_of, system.ran(again.id)) == (number, source, ["b"])


def test_many_are_paused_resumed_and_cancelled_by_what_they_have_in_common(system: System) -> None:
    gate = f"bulk-{system.kind}"
    inner = system.register({"id": "wait", "type": "gate", "config": {"gate": gate}}, name="inner")
    outer = system.register({"id": "child", "type": "workflow", "config": {"workflow": inner}})
    ids = system.engine.enqueue_workflows(outer, range(6), metadata={"batch": gate})
    other = system.engine.enqueue_workflow(outer, metadata={"batch": "other"})
    batch = ExecutionFilter(metadata={"batch": gate})

    paused = system.engine.pause_executions(batch)
    assert set(ids) <= {*paused.done, *paused.unchanged}
    resumed = system.engine.resume_executions(batch)
    assert set(ids) <= {*resumed.done, *resumed.unchanged}
    for _ in range(7):
        system.arrived(gate)
    cancelled = system.engine.cancel_executions(batch, limit=20)
    assert not cancelled.refused
    assert system.engine.cancel_executions(batch).done == []

    for execution_id in ids:
        assert system.engine.wait(execution_id, timeout=30).status is ExecutionStatus.CANCELLED
        assert system.statuses(execution_id) == {"child": "cancelled"}
    system.open_gate(gate, times=7)
    assert system.engine.wait(other, timeout=30).status is ExecutionStatus.COMPLETED


def test_a_purge_never_touches_a_live_family(system: System) -> None:
    gate = f"purge-{system.kind}"
    done = system.register({"id": "a", "type": "echo"}, name="done")
    inner = system.register({"id": "wait", "type": "gate", "config": {"gate": gate}}, name="inner")
    outer = system.register(
        {"id": "quick", "type": "workflow", "config": {"workflow": done}},
        {"id": "child", "type": "workflow", "config": {"workflow": inner}, "inputs": ["quick"]},
    )
    ended = [system.run(done, number).id for number in range(5)]
    live = system.engine.enqueue_workflow(outer, 1)
    system.arrived(gate)
    family = [live, *(child.id for child in system.engine.store.get_child_executions(live))]
    assert len(family) == 3  # one child has completed, one runs

    workers = [threading.Thread(target=system.engine.purge_executions, args=(0,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    system.engine.purge_executions(0)
    for worker in workers:
        worker.join()

    assert all(system.engine.store.get_execution(one) is None for one in ended)
    assert all(system.engine.store.get_execution(one) is not None for one in family)
    system.open_gate(gate)
    assert system.engine.wait(live, timeout=30).status is ExecutionStatus.COMPLETED
    until(lambda: system.engine.purge_executions(0) >= 3)
    assert all(system.engine.store.get_execution(one) is None for one in family)
    assert system.engine.store.get_events(live) == []
    assert system.engine.store.get_node_results(live) == []
