"""Behaviours 13 and 22: waits that survive, and failures and delays that handlers ask for."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rq.registry import FailedJobRegistry

from e2e.support.harness import System, until
from spanloom.engine import ExecutionStatus, WorkflowInvalid


def delay(node_id: str, *inputs: str, **config: Any) -> dict[str, Any]:
    return {"id": node_id, "type": "delay", "config": config, "inputs": list(inputs)}


def echo(node_id: str, *inputs: str) -> dict[str, Any]:
    return {"id": node_id, "type": "echo", "inputs": list(inputs)}


@pytest.mark.parametrize("config", [{}, {"seconds": -1}, {"seconds": None}, {"seconds": "soon"}, {"until": "tomorrow"}])
def test_a_missing_or_negative_duration_is_refused_at_registration(system: System, config: dict[str, Any]) -> None:
    with pytest.raises(WorkflowInvalid, match="node 'wait'"):
        system.register({"id": "wait", "type": "delay", "config": config})


def test_data_passes_through_a_delay_that_takes_its_time(system: System) -> None:
    began = datetime.now(UTC)
    execution = system.run(system.register(echo("a"), delay("wait", "a", seconds=0.3), echo("b", "wait")), {"x": [0]})

    assert execution.output == {"x": [0]}
    assert execution.ended_at is not None
    assert execution.ended_at - began >= timedelta(seconds=0.3)
    assert system.ran(execution.id) == ["a", "b"]


def test_delays_until_a_time_and_by_an_expression(system: System) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    flow = [
        delay("until", until=soon.isoformat()),
        delay("asked", expression="input.wait"),
        echo("b", "until", "asked"),
    ]
    execution = system.run(system.register(*flow), {"wait": soon.isoformat()})
    assert execution.ended_at is not None
    assert execution.ended_at >= soon

    assert system.run(system.register(delay("asked", expression="input")), 0).output == 0
    execution = system.run(system.register(delay("asked", expression="input")), "never")
    assert execution.error is not None
    assert "no ISO 8601 time" in execution.error["message"]


def test_a_delay_whose_time_came_while_every_worker_was_down_fires_when_one_is_back(idle_system: System) -> None:
    system = idle_system
    workflow_id = system.register(delay("wait", expression="input"), echo("a", "wait"))
    for seconds in (1.5, 6, 24):  # until it comes after the worker has gone
        execution_id = system.engine.enqueue_workflow(workflow_id, seconds)
        with system.working(1):
            system.until(execution_id, "node.waiting", "wait")
        if system.statuses(execution_id) == {"wait": "waiting"}:
            break
    (run,) = system.engine.store.get_node_results(execution_id)
    assert run.due_at is not None
    threading.Event().wait((run.due_at - datetime.now(UTC)).total_seconds() + 0.1)  # the time itself is what is awaited
    assert system.statuses(execution_id) == {"wait": "waiting"}

    with system.working(1):
        assert system.engine.wait(execution_id, timeout=30).output == seconds


@pytest.mark.parametrize(("how", "error_type"), [("returned", "OutOfStock"), ("permanent", "PermanentError")])
def test_a_returned_failure_and_a_permanent_error_are_not_retried_and_leave_a_dead_letter(
    system: System, how: str, error_type: str
) -> None:
    node = {"id": "bad", "type": "boom", "config": {"how": how}, "retry": {"max_attempts": 5, "delay": 0}}
    execution = system.run(system.register(node))

    assert execution.status is ExecutionStatus.FAILED
    assert execution.error is not None
    assert execution.error["type"] == error_type
    assert system.ran(execution.id) == ["bad"]
    dead = FailedJobRegistry(queue=system.engine.queue.rq_queue("spanloom.default"))

    def letters() -> list[str]:
        return [job_id for job_id in dead.get_job_ids() if job_id.startswith(execution.id)]

    until(letters)  # Redis is told after the store
    assert len(letters()) == 1


def test_asking_for_later_costs_no_attempt(system: System) -> None:
    node = {"id": "busy", "type": "later", "config": {"times": 3}, "retry": {"max_attempts": 1}}
    execution = system.run(system.register(node))

    assert execution.output == 1
    assert system.ran(execution.id) == ["busy"] * 4
    attempts = system.engine.store.get_attempts(execution.id, "busy")
    assert [(one.attempt, one.ended_as) for one in attempts] == [(1, "retrying")] * 3 + [(1, "completed")]
