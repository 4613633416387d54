"""Behaviours 26 to 28 for maps, children and delays: workers are killed and Redis is emptied while they run."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack
from typing import Any

import pytest

from e2e.support.harness import System, WorkerProcess
from spanloom.engine import ExecutionStatus

pytestmark = pytest.mark.every_store

EXECUTIONS = 12
FAULTS = 6


def workflow_of_everything(system: System) -> str:
    """A map, children of a map that map themselves, a delay, a skipped branch, a handled failure and a retry."""
    inner = system.register(
        {"id": "each", "type": "plain", "map": {"over": "input", "max_concurrency": 2}},
        {"id": "wait", "type": "delay", "config": {"seconds": 0.2}, "inputs": ["each"]},
        name="inner",
    )
    return system.register(
        {"id": "list", "type": "plain"},
        {"id": "rows", "type": "workflow", "config": {"workflow": inner}, "inputs": ["list"], "map": "nodes.list"},
        {"id": "big", "type": "plain", "inputs": [{"node": "list", "when": "length(@) > `100`"}]},
        {"id": "bad", "type": "boom", "config": {"how": "permanent"}, "inputs": ["list"]},
        {"id": "mend", "type": "plain", "inputs": [{"node": "bad", "on": "failure"}], "mapping": "input[0]"},
        {"id": "flaky", "type": "flaky", "config": {"succeeds_at": 2}, "inputs": ["list"],
         "retry": {"max_attempts": 2, "delay": 0.1}},
        {"id": "end", "type": "collect", "inputs": ["rows", "big", "mend", "flaky"]},
    )  # fmt: skip


def test_nothing_is_lost_while_workers_are_killed_and_redis_is_emptied(idle_system: System) -> None:
    system = idle_system
    workflow_id = workflow_of_everything(system)
    inputs: list[Any] = [[[row, row + 1, row + 2] for row in range(number % 4 + 1)] for number in range(EXECUTIONS)]
    chance = random.Random(7)

    with ExitStack() as stack:
        if system.kind == "memory":  # no process to kill: only Redis suffers
            stack.enter_context(system.engine.start_workers(2, lease_seconds=2))
        workers: list[WorkerProcess] = []

        def hire() -> None:
            worker = WorkerProcess(system.store_url, system.redis_url, "--lease", "2s", "--concurrency", "4")
            worker.wait_ready()
            workers.append(worker)
            stack.callback(worker.stop)

        if system.kind != "memory":
            hire()
            hire()
        ids = system.engine.enqueue_workflows(workflow_id, inputs)
        for fault in range(FAULTS):
            system.until(ids[fault], "node.completed", "list")
            if fault % 2:
                system.redis.flushall()
            elif workers:
                victim = workers.pop(chance.randrange(len(workers)))
                victim.send(signal.SIGKILL)
                victim.wait()
                hire()
        executions = [system.engine.wait(execution_id, timeout=90) for execution_id in ids]

    for execution, rows in zip(executions, inputs, strict=True):
        assert execution.status is ExecutionStatus.COMPLETED, execution.error
        assert execution.output == {"rows": rows, "mend": rows[0], "flaky": 2}
        children = system.engine.store.get_child_executions(execution.id)
        assert [child.status for child in children] == [ExecutionStatus.COMPLETED] * len(rows)
    assert sum(system.engine.store.stats().open_node_runs.values()) == 0
