"""Behaviours 12-14: each node's own retry policy, and failures that no retry would mend."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.support.harness import System
from spanloom.engine import ExecutionStatus, NodeStatus

FAST = {"delay": 0.01, "backoff": "fixed", "jitter": 0}


def node(node_id: str, succeeds_at: int, inputs: Any = (), **retry: Any) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": "flaky",
        "config": {"succeeds_at": succeeds_at},
        "inputs": inputs,
        "retry": {**FAST, **retry},
    }


def test_every_node_has_its_own_policy_entry_nodes_too(system: System) -> None:
    workflow_id = system.register(node("first", 3, max_attempts=3), node("second", 2, ["first"], max_attempts=5))

    execution = system.run(workflow_id)

    assert execution.output == 2
    runs = {run.node_id: run.attempt for run in system.engine.store.get_node_results(execution.id)}
    assert runs == {"first": 3, "second": 2}
    assert system.ran(execution.id) == ["first"] * 3 + ["second"] * 2


def test_one_attempt_runs_once(system: System) -> None:
    execution = system.run(system.register(node("once", 2, max_attempts=1)))

    assert execution.status is ExecutionStatus.FAILED
    assert execution.error is not None
    assert execution.error["node_id"] == "once"
    assert execution.error["type"] == "ConnectionError"
    assert system.ran(execution.id) == ["once"]


def test_attempts_end_with_the_last_error_and_their_history_is_kept(system: System) -> None:
    execution = system.run(system.register(node("always", 99, max_attempts=3)))

    assert execution.status is ExecutionStatus.FAILED
    assert execution.error is not None
    assert execution.error["message"] == "attempt 3"
    events = system.engine.store.get_events(execution.id)
    retried = [event for event in events if event.kind == "node.retrying"]
    assert [event.attempt for event in retried] == [1, 2]
    (run,) = system.engine.store.get_node_results(execution.id)
    assert (run.status, run.attempt) == (NodeStatus.FAILED, 3)
    assert run.error is not None
    assert "ConnectionError: attempt 3" in run.error["traceback"]


def test_waits_between_attempts_grow_up_to_their_cap(system: System) -> None:
    policy = {"max_attempts": 6, "backoff": "exponential", "delay": 0.05, "max_delay": 0.3, "jitter": 0}
    workflow_id = system.register({"id": "slow", "type": "flaky", "config": {"succeeds_at": 6}, "retry": policy})

    execution = system.run(workflow_id)

    assert execution.output == 6
    events = system.engine.store.get_events(execution.id)
    retried = [event for event in events if event.kind == "node.retrying"]
    told = [event.data["delay_seconds"] for event in retried]
    assert told == [0.05, 0.1, 0.2, 0.3, 0.3]
    started = [event.at for event in events if event.kind == "node.started"]
    waited = [(begun - event.at).total_seconds() for event, begun in zip(retried, started[1:], strict=True)]
    assert all(took >= wait for took, wait in zip(waited, told, strict=True)), waited


@pytest.mark.parametrize(
    ("policy", "runs"),
    [
        ({"retry_on": ["ConnectionError"]}, 3),
        ({"retry_on": ["OSError"]}, 3),  # a base class
        ({"retry_on": ["ValueError"]}, 1),
        ({"no_retry_on": ["ConnectionError"]}, 1),
        ({"retry_on": ["OSError"], "no_retry_on": ["ConnectionError"]}, 1),
    ],
)
def test_retry_on_and_no_retry_on_name_exception_classes(system: System, policy: dict[str, Any], runs: int) -> None:
    execution = system.run(system.register(node("picky", 3, max_attempts=3, **policy)))

    assert len(system.ran(execution.id)) == runs
    assert execution.status is (ExecutionStatus.COMPLETED if runs == 3 else ExecutionStatus.FAILED)


def test_a_result_that_json_can_not_carry_fails_with_the_node_and_the_type(system: System) -> None:
    workflow_id = system.register({"id": "odd", "type": "unserialisable", "retry": {"max_attempts": 5, **FAST}})

    execution = system.run(workflow_id)

    assert execution.status is ExecutionStatus.FAILED
    assert execution.error is not None
    message = execution.error["message"]
    assert "'odd'" in message
    assert "set" in message
    assert "$.seen[1]" in message
    assert system.ran(execution.id) == ["odd"]  # no retry would mend it
