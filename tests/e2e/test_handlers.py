"""What handlers get and may do: context, timeouts in sync and async code, logs, spans, state."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from e2e.support.harness import System
from spanloom.engine import ExecutionFailed, ExecutionStatus, UnknownExecution, WaitTimeout


def test_a_handler_knows_its_place(system: System) -> None:
    workflow_id = system.register(
        {"id": "first", "type": "value", "config": {"value": [1]}},
        {"id": "second", "type": "context", "config": {"k": {"n": 1}}, "inputs": ["first"]},
    )

    execution = system.run(workflow_id, {"order": 7}, metadata={"customer": "17"})

    assert execution.output == {
        "execution_id": execution.id,
        "workflow_id": workflow_id,
        "version": 1,
        "node_id": "second",
        "item": 0,
        "attempt": 1,
        "config": {"k": {"n": 1}},
        "results": {"first": [1]},
        "input": {"order": 7},
        "metadata": {"customer": "17"},
        "depth": 0,
        "parent_execution_id": None,
        "cancelled": False,
        "data": [1],
        "entered": True,
    }


@pytest.mark.parametrize("handler", ["timed", "atimed"])
def test_a_handler_that_runs_past_its_timeout_is_ended_and_its_slot_is_free_again(system: System, handler: str) -> None:
    retry = {"max_attempts": 2, "delay": 0.01, "jitter": 0}
    workflow_id = system.register({"id": "slow", "type": handler, "timeout": 0.2, "retry": retry})

    executions = [system.engine.enqueue_workflow(workflow_id) for _ in range(10)]  # more than there are slots

    for execution_id in executions:
        execution = system.engine.wait(execution_id, timeout=60)
        assert execution.status is ExecutionStatus.FAILED
        assert execution.error is not None
        assert execution.error["type"] == "NodeTimeout"
        assert "0.2 s" in execution.error["message"]
        (run,) = system.engine.store.get_node_results(execution_id)
        assert run.attempt == 2


def test_logs_and_spans_of_every_attempt_are_stored(system: System) -> None:
    retry = {"max_attempts": 2, "delay": 0.01}
    execution = system.run(system.register({"id": "t", "type": "telling", "retry": retry}))

    assert execution.output == f"{execution.id}:t:0"
    logs = system.engine.store.get_logs(execution.id)
    assert [(line.attempt, line.level, line.message) for line in logs] == [
        (1, "info", "began"),
        (1, "warning", "inside"),
        (1, "warning", "ConnectionError: once"),
        (2, "info", "began"),
        (2, "warning", "inside"),
    ]
    assert "raise ConnectionError" in logs[2].fields["exception"]
    assert logs[0].fields == {"attempt_seen": 1}
    spans = system.engine.store.get_trace(execution.id)
    by_id = {span.span_id: span for span in spans}
    told = [(span.attempt, span.name, span.status) for span in spans]
    assert told == [
        (1, "run t", "error"),
        (1, "outer", "unset"),
        (1, "inner", "unset"),
        (1, "breaks", "error"),
        (2, "run t", "unset"),
        (2, "outer", "unset"),
        (2, "inner", "unset"),
    ]
    parents = {span.name: by_id[span.parent_span_id].name for span in spans if span.parent_span_id in by_id}
    assert parents == {"outer": "run t", "inner": "outer", "breaks": "run t"}
    assert {span.trace_id for span in spans} == {str(execution.trace_parent).split("-")[1]}
    roots = {span.parent_span_id for span in spans if span.name == "run t"}
    assert roots == {str(execution.trace_parent).split("-")[2]}
    assert logs[1].span_id in {span.span_id for span in spans if span.name == "inner"}
    assert all(span.end_ns is not None and span.end_ns >= span.start_ns for span in spans)


def test_an_asyncio_user_starts_and_awaits_many_at_once_without_a_thread_each(system: System) -> None:
    import threading

    workflow_id = system.register({"id": "a", "type": "aecho"})

    async def main() -> list[Any]:
        runs = [asyncio.create_task(system.engine.arun(workflow_id, number, timeout=60)) for number in range(100)]
        handle = await system.engine.astart(workflow_id, "handle")
        most = 0
        while not all(run.done() for run in runs):
            most = max(most, threading.active_count())
            await asyncio.sleep(0.005)
        assert await handle.aresult(timeout=30) == "handle"
        assert most < 80, most
        return await asyncio.gather(*runs)

    assert asyncio.run(main()) == list(range(100))


def test_waiting_has_a_limit_and_the_execution_goes_on(system: System) -> None:
    gate = f"wait-{system.kind}"
    workflow_id = system.register({"id": "a", "type": "gate", "config": {"gate": gate}})
    handle = system.engine.start(workflow_id)
    system.arrived(gate)

    with pytest.raises(WaitTimeout, match="still running"):
        handle.result(timeout=0.1)
    with pytest.raises(WaitTimeout):
        asyncio.run(handle.aresult(timeout=0.1))
    system.open_gate(gate)

    assert handle.result(timeout=30) == "a"


def test_a_failure_is_raised_with_the_node_and_its_error(system: System) -> None:
    workflow_id = system.register({"id": "bad", "type": "unserialisable"})

    with pytest.raises(ExecutionFailed, match="at node 'bad'") as failed:
        system.engine.run(workflow_id, timeout=30)

    assert failed.value.execution.status is ExecutionStatus.FAILED
    json.dumps(failed.value.execution.error)


def test_an_unknown_execution_is_named(system: System) -> None:
    for unknown in ("no-uuid", "01890000-0000-7000-8000-000000000000"):
        with pytest.raises(UnknownExecution, match=unknown):
            system.engine.wait(unknown, timeout=1)
        assert system.engine.store.get_execution(unknown) is None
