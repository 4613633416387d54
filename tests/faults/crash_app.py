"""The application of the crash tests, with a point before and after each step, and what its processes do.

`work` is a worker process; `begin` starts every execution, and does to some what operators do. It may be run again
and again: starts have idempotency keys, and control finds what was done before.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from faults.crash_workflows import LONG_SECONDS, RUNS, WORKFLOWS, is_broken, registry, world
from spanloom.engine import ExecutionStatus, InvalidTransition, NodeStatus, WorkflowEngine
from spanloom.engine.queue import NodeQueue
from spanloom.engine.settings import Settings
from spanloom.stores import open_store
from spanloom.testing.crashing import FOLDER, CrashPoints, crashing_store, steps_of
from spanloom.worker import WorkerOptions, serve
from spanloom.worker.call import Caller
from spanloom.worker.inbox import Inbox
from spanloom.worker.presence import Presence

#: Everything is found soon; a worker that stops keeps its lease for the second that it waits after the grace.
OPTIONS = WorkerOptions(lease_seconds=1.8, sweep_seconds=0.2, suspect_seconds=0.5, grace_seconds=0.1)
NAMES_ONLY = ("ended_channel", "list_name", "rq_queue")  # of the queue: they touch nothing
_END_SECONDS = 60.0


def make_engine(role: str) -> WorkflowEngine:
    """Build the engine of a process of this role, from the environment."""
    points = CrashPoints.from_environment(role)
    steps_of(NodeQueue, "queue", points, leave_out=NAMES_ONLY)
    steps_of(Inbox, "inbox", points)
    steps_of(Presence, "presence", points)
    steps_of(Caller, "caller", points)
    settings = Settings.from_environment()
    store = open_store(settings.store_url or "", namespace=settings.namespace)
    if is_broken("sweep"):
        sweep = store.sweep
        vars(store)["sweep"] = lambda **options: sweep(**{**options, "suspect_seconds": LONG_SECONDS})
    return WorkflowEngine(registry, crashing_store(store, points), settings=settings)


def work() -> int:
    """Be a worker, as `spanloom worker` is one."""
    return serve(make_engine("worker"), OPTIONS)


def begin() -> int:
    """Start everything, tell under which ids, and pause, retry and cancel what is to be."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory())
    with make_engine("engine") as engine:
        for workflow in WORKFLOWS:
            engine.register_workflow(workflow)
        key = (lambda _: None) if is_broken("start") else str
        ids = {
            name: engine.enqueue_workflow(run.workflow_id, run.data, idempotency_key=key(name), **run.options)
            for name, run in RUNS.items()
        }
        folder = Path(os.environ[FOLDER])
        (folder / "ids.new").write_text(json.dumps(ids))
        (folder / "ids.new").rename(folder / "ids")
        with suppress(InvalidTransition):  # it ended: another run of this process did it
            _pause_and_resume(engine, ids["paused"])
        with suppress(InvalidTransition):
            _mend(engine, ids["mended"])
        engine.cancel_execution(ids["cancelled"])
    return 0


def _pause_and_resume(engine: WorkflowEngine, execution_id: str) -> None:
    engine.pause_execution(execution_id)
    world().open_gate("pause")

    def at_rest() -> bool:
        runs = engine.store.get_node_results(execution_id)
        return all(run.status in (NodeStatus.HELD, NodeStatus.COMPLETED) for run in runs)

    _until(at_rest)
    engine.resume_execution(execution_id)


def _mend(engine: WorkflowEngine, execution_id: str) -> None:
    if engine.wait(execution_id, timeout=_END_SECONDS).status is not ExecutionStatus.FAILED:
        return
    world().open_gate("mended")
    engine.retry_execution(execution_id)


def _until(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(_END_SECONDS / 0.05)):
        if holds():
            return
        pause.wait(0.05)
    raise TimeoutError("what an operator waits for did not come")
