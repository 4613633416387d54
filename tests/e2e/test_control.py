"""Behaviours 15, 20 and 21: pause, resume, cancel and retry, and the counters that survive them."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.support.harness import System
from spanloom.engine import ExecutionStatus, InvalidTransition, NodeStatus, StaleVersion, UnknownExecution


def node(node_id: str, node_type: str, *inputs: Any, **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": node_type, "inputs": list(inputs), **more}


def gate(node_id: str, name: str, *inputs: str) -> dict[str, Any]:
    return node(node_id, "gate", *inputs, config={"gate": name})


def test_a_handle_controls_its_execution_in_every_way_that_the_engine_can(system: System) -> None:
    name = f"handled-{system.kind}"
    workflow_id = system.register(gate("wait", name), node("a", "echo", "wait"))
    handle = system.engine.start(workflow_id)
    system.arrived(name)

    with pytest.raises(StaleVersion):
        handle.pause(expected_revision=7)
    assert handle.set_status("failed", error="enough") is True
    assert handle.acknowledge() is True
    assert handle.retry(expected_revision=2) is True
    system.open_gate(name)
    assert handle.result(timeout=30) == "wait"


def test_a_paused_execution_starts_nothing_and_can_be_resumed(system: System) -> None:
    name = f"pause-{system.kind}"
    workflow_id = system.register(gate("wait", name), node("a", "echo", "wait"), node("b", "echo", "a"))
    handle = system.engine.start(workflow_id)
    system.arrived(name)

    assert handle.pause() is True
    assert handle.pause() is False
    system.open_gate(name)
    system.until(handle.id, "node.held", "a")

    assert handle.status is ExecutionStatus.PAUSED
    assert system.statuses(handle.id) == {"wait": "completed", "a": "held"}
    assert system.ran(handle.id) == ["wait"]
    assert handle.resume() is True
    assert handle.resume() is False
    assert handle.result(timeout=30) == "wait"
    assert system.ran(handle.id) == ["wait", "a", "b"]


def test_a_paused_execution_can_be_cancelled(system: System) -> None:
    name = f"pause-cancel-{system.kind}"
    handle = system.engine.start(system.register(gate("wait", name), node("a", "echo", "wait")))
    system.arrived(name)
    handle.pause()

    assert handle.cancel() is True
    system.open_gate(name)
    with pytest.raises(InvalidTransition):
        handle.resume()
    assert handle.status is ExecutionStatus.CANCELLED
    assert system.ran(handle.id) == ["wait"]


def test_the_last_node_of_a_paused_execution_may_complete_it(system: System) -> None:
    name = f"pause-last-{system.kind}"
    handle = system.engine.start(system.register(gate("wait", name)))
    system.arrived(name)
    handle.pause()
    system.open_gate(name)
    assert handle.result(timeout=30) == "wait"


def test_resuming_does_not_fire_a_delay_early(system: System) -> None:
    workflow_id = system.register(
        {"id": "wait", "type": "delay", "config": {"seconds": 3600}}, node("a", "echo", "wait")
    )
    handle = system.engine.start(workflow_id, 1)
    system.until(handle.id, "node.waiting", "wait")
    (before,) = system.engine.store.get_node_results(handle.id)

    handle.pause()
    handle.resume()

    (after,) = system.engine.store.get_node_results(handle.id)
    assert (after.status, after.due_at) == (NodeStatus.WAITING, before.due_at)
    handle.cancel()


def test_what_the_state_forbids_is_refused_and_changes_nothing(system: System) -> None:
    execution = system.run(system.register(node("a", "echo")), 1)
    engine = system.engine

    for forbidden in (engine.cancel_execution, engine.pause_execution, engine.resume_execution, engine.retry_execution):
        with pytest.raises(InvalidTransition, match="completed"):
            forbidden(execution.id)
        with pytest.raises(UnknownExecution):
            forbidden("00000000-0000-7000-8000-000000000000")
    assert engine.store.get_execution(execution.id) == execution


def test_whoever_acts_on_what_is_no_longer_so_is_told(system: System) -> None:
    handle = system.engine.start(system.register({"id": "w", "type": "delay", "config": {"seconds": 3600}}))
    handle.pause()
    with pytest.raises(StaleVersion) as caught:
        system.engine.resume_execution(handle.id, expected_revision=0)
    assert (caught.value.expected, caught.value.actual) == (0, 1)
    assert caught.value.current.status is ExecutionStatus.PAUSED
    assert system.engine.cancel_execution(handle.id, expected_revision=1) is True


def test_a_retry_keeps_what_completed_and_joins_that_had_counted_some_parents_end_right(system: System) -> None:
    test = f"retry-{system.kind}"
    flow = [node("start", "echo"), *(node(f"ok{n}", "echo", "start") for n in range(5))]
    flow += [node("bad1", "boom", "start"), node("bad2", "boom", "ok1")]
    parents = [one["id"] for one in flow[1:]]
    flow += [node("join", "collect", *parents), node("end", "count", "join", "start")]
    handle = system.engine.start(system.register(*flow), 1, metadata={"test": test})
    assert system.settled(handle.id).status is ExecutionStatus.FAILED

    assert handle.retry() is True  # what failed fails again
    assert system.settled(handle.id).status is ExecutionStatus.FAILED
    with pytest.raises(InvalidTransition, match="failed"):
        handle.resume()
    system.redis.set(f"mended:{test}", 1)
    handle.retry()

    assert handle.result(timeout=30) == 2
    assert system.data(handle.id)["join"] == dict.fromkeys(parents, 1)
    ran = system.ran(handle.id)
    assert [ran.count(name) for name in ("start", "ok0", "ok1", "ok4", "join", "end")] == [1] * 6
    execution = system.engine.store.get_execution(handle.id)
    assert execution is not None
    assert (execution.error, execution.revision) == (None, 2)


def test_a_retry_does_anew_what_came_after_a_failure_that_was_handled(system: System) -> None:
    test = f"anew-{system.kind}"
    workflow_id = system.register(
        node("pay", "boom"),
        node("ship", "echo", "pay"),
        node("refund", "echo", {"node": "pay", "on": "failure"}),
        node("report", "collect", "ship", "refund"),
        node("other", "boom"),
        node("end", "collect", "report", "other"),
    )
    handle = system.engine.start(workflow_id, 5, metadata={"test": test})
    system.settled(handle.id)
    system.redis.set(f"mended:{test}", 1)
    handle.retry()

    assert handle.result(timeout=30) == {"report": {"ship": 5}, "other": 5}
    assert system.statuses(handle.id) == {
        "pay": "completed", "ship": "completed", "refund": "skipped", "report": "completed", "other": "completed",
        "end": "completed",
    }  # fmt: skip


def test_a_retry_continues_a_failed_child_where_it_failed(system: System) -> None:
    test = f"child-{system.kind}"
    inner = system.register(node("ok", "echo"), node("bad", "boom", "ok"), name="inner")
    outer = system.register(
        {"id": "call", "type": "workflow", "config": {"workflow": inner}}, node("end", "echo", "call")
    )
    handle = system.engine.start(outer, 3, metadata={"test": test})
    system.engine.wait(handle.id, timeout=30)
    (made,) = system.engine.store.get_child_executions(handle.id)

    system.redis.set(f"mended:{test}", 1)
    handle.retry()

    assert handle.result(timeout=30) == 3
    assert [one.id for one in system.engine.store.get_child_executions(handle.id)] == [made.id]
    assert system.ran(made.id) == ["ok", "bad", "bad"]


def test_the_attempts_of_a_node_are_told_with_their_errors_and_workers(system: System) -> None:
    test = f"attempts-{system.kind}"
    workflow_id = system.register(node("bad", "boom", retry={"max_attempts": 2, "delay": 0}))
    handle = system.engine.start(workflow_id, 1, metadata={"test": test})
    system.engine.wait(handle.id, timeout=30)
    system.redis.set(f"mended:{test}", 1)
    handle.retry()
    handle.result(timeout=30)

    attempts = system.engine.store.get_attempts(handle.id, "bad")
    assert [(one.attempt, one.ended_as) for one in attempts] == [(1, "retrying"), (2, "failed"), (1, "completed")]
    assert all(one.worker_id and one.ended_at and one.ended_at >= one.started_at for one in attempts)
    for one in attempts[:2]:
        assert one.error is not None
        assert (one.error["type"], one.error["message"]) == ("ConnectionError", "told to")
        assert "behaviour_app.py" in one.error["traceback"]
    assert attempts[2].error is None


def test_a_deadline_fails_the_execution_and_its_children(system: System) -> None:
    inner = system.register({"id": "long", "type": "delay", "config": {"seconds": 3600}}, name="inner")
    outer = system.register({"id": "call", "type": "workflow", "config": {"workflow": inner}})
    for deadline in (1.0, 5.0, 20.0):  # until it comes after the child was started
        execution = system.run(outer, deadline=deadline)
        assert execution.error is not None
        assert execution.error["type"] == "DeadlineExceeded"
        if children := system.engine.store.get_child_executions(execution.id):
            break
    (made,) = children
    assert system.engine.wait(made.id, timeout=30).status is ExecutionStatus.FAILED
