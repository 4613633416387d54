"""A whole system in one process: workflows that put every kind of key in Redis. Prints what came of them as JSON.

For a process of its own: RQ reads its key prefix once, when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from rq import Queue, Worker
from rq.registry import FailedJobRegistry, StartedJobRegistry

from spanloom.engine import Node, NodeContext, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.ids import uuid7
from spanloom.engine.store.requests import NodeJob
from spanloom.worker.queue.consumer import JobConsumer

LIST = "spanloom.default"
registry = NodeRegistry()


@registry.node("echo")
def echo(ctx: NodeContext) -> Any:
    return ctx.config.get("says", "echo")


@registry.node("flaky")
def flaky(ctx: NodeContext) -> int:
    if ctx.attempt == 1:
        raise RuntimeError("once")
    return ctx.attempt


@registry.node("broken")
def broken(ctx: NodeContext) -> None:
    raise ValueError("for good")


CHILD = Workflow.model_validate({"id": "child", "nodes": [{"id": "only", "type": "echo", "config": {"says": "child"}}]})
PARENT = Workflow.model_validate(
    {
        "id": "parent",
        "nodes": [
            {"id": "first", "type": "echo"},
            {"id": "urgent", "type": "echo", "inputs": ["first"]},
            {"id": "again", "type": "flaky", "inputs": ["first"], "retry": {"max_attempts": 2, "delay": 0.05}},
            {"id": "pause", "type": "delay", "config": {"seconds": 0.05}, "inputs": ["first"]},
            {"id": "below", "type": "workflow", "config": {"workflow": "child"}, "inputs": ["pause"]},
            {"id": "end", "type": "echo", "inputs": ["urgent", "again", "below"], "config": {"says": "done"}},
        ],
    }
)
FAILING = Workflow(id="failing", nodes=[Node(id="a", type="broken")])


def play(store_url: str, redis_url: str) -> dict[str, Any]:
    """Return what came of it, and what RQ's own classes see."""
    with WorkflowEngine(registry, store_url, redis_url) as engine:
        for workflow in (CHILD, PARENT, FAILING):
            engine.register_workflow(workflow)
        _leave_a_started_job(engine)
        engine.queue.rq_queue(LIST).enqueue("os.system", "true")
        followed = engine.enqueue_workflow("parent", priority="high")
        events = engine.events(followed, timeout=60)
        with engine.start_workers(2, concurrency=2, lease_seconds=1) as workers:
            kinds = [event.kind for event in events]  # until its end, while its changes are announced
            failed = engine.wait(engine.enqueue_workflow("failing"), timeout=60)
            seen = {worker.name for worker in Worker.all(connection=engine.queue.redis)}
            lists = {queue.name for queue in Queue.all(connection=engine.queue.redis)}
            names = {worker.name for worker in workers}
        started, refused = (
            registry(LIST, connection=engine.queue.redis, serializer="json")
            for registry in (StartedJobRegistry, FailedJobRegistry)
        )
        return {
            "output": engine.wait(followed).output,
            "events": kinds,
            "failed": failed.status.value,
            "workers seen by RQ": names == seen,
            "lists": sorted(lists),
            "started": started.get_job_ids(cleanup=False),
            "failed jobs": len(refused.get_job_ids(cleanup=False)),
            "epoch": engine.epoch.number,
        }


def _leave_a_started_job(engine: WorkflowEngine) -> None:
    """Fetch a job as a worker does that is then killed, after it has put one back and renewed the other."""
    execution_id = uuid7()
    engine.queue.push(
        [NodeJob(execution_id, node, 0, "echo", "default", "normal", 1, datetime.now(UTC)) for node in ("a", "b")]
    )
    dead = JobConsumer(engine.queue, ["default"], "dead")
    back, left = dead.fetch(2, 0.0)
    dead.requeue([back])
    dead.renew()
    assert left.node_id == "b"
    (again,) = dead.fetch(1, 0.0)
    dead.discard(again)
    dead.flush()


def play_apart(store_url: str, redis_url: str, prefix: str | None = None) -> dict[str, Any]:
    """Play in a process of its own, with this key prefix of RQ's, and return what came of it."""
    environment = {key: value for key, value in os.environ.items() if key != "RQ_KEY_PREFIX"}
    if prefix is not None:
        environment["RQ_KEY_PREFIX"] = prefix
    done = subprocess.run(
        [sys.executable, __file__, store_url, redis_url],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    played: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return played


if __name__ == "__main__":
    print(json.dumps(play(*sys.argv[1:])))
