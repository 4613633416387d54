"""The application of the crash tests, with a point before and after each step, and what its processes do.

`work` is a worker process; `begin` starts every execution, and does to some what operators do; `operate` does what is
left for operators to do. Both may be run again and again: starts have idempotency keys, and control finds what was done
before.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from faults.crash_workflows import LONG_SECONDS, RUNS, WORKFLOWS, is_broken, is_met, registry, world
from spanloom.engine import ExecutionStatus, InvalidTransition, NodeStatus, WorkflowEngine
from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.settings import Settings
from spanloom.engine.store.requests import LogLine, SpanLine
from spanloom.stores import open_store
from spanloom.testing.crash_points import FOLDER, CrashPoints, crashing_store, steps_of
from spanloom.worker import WorkerOptions, serve
from spanloom.worker.node.caller import Caller
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.rq_registration import RqRegistration
from spanloom.worker.service import Phase, WorkerState

#: Everything is found soon; a worker that stops keeps its lease for the second that it waits after the grace.
OPTIONS = WorkerOptions(lease_seconds=1.8, sweep_seconds=0.2, lost_job_after_seconds=0.5, grace_seconds=0.1)
NAMES_ONLY = ("list_name", "rq_queue")  # of the queue: they touch nothing
_END_SECONDS = 60.0


def make_engine(role: str) -> WorkflowEngine:
    """Build the engine of a process of this role, from the environment."""
    points = CrashPoints.from_environment(role)
    steps_of(NodeQueue, "queue", points, exclude=NAMES_ONLY)
    steps_of(JobConsumer, "inbox", points)
    steps_of(RqRegistration, "presence", points)
    steps_of(Caller, "caller", points)
    settings = Settings.from_environment()
    store = open_store(settings.store_url or "", namespace=settings.namespace)
    if is_met("stop"):
        _stop_with_jobs_in_hand()
    if is_broken("sweep"):
        sweep = store.sweep
        vars(store)["sweep"] = lambda **options: sweep(**{**options, "lost_job_after_seconds": LONG_SECONDS})
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


def operate() -> int:
    """Do, one after the other, what an operator may do by hand; all of it may be done again."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory())
    with make_engine("operator") as engine:
        store, ids = engine.store, json.loads((Path(os.environ[FOLDER]) / "ids").read_text())
        trace, span = "1" * 32, "2" * 16
        store.add_log(ids["failed"], LogLine("info", "looked at", datetime.now(UTC)))
        store.add_span(ids["failed"], SpanLine(trace, span, None, "look", "internal", "unset", 1, None))
        store.update_span(ids["failed"], span, end_ns=2, status="ok")
        engine.set_execution_status(ids["failed"], ExecutionStatus.FAILED, error="enough")
        engine.acknowledge_execution(ids["failed"])
        with suppress(InvalidTransition):  # it has ended: another run of this process did it
            engine.update_node_result(ids["by hand"], "n1", data=10)
        engine.purge_executions(0, statuses=[ExecutionStatus.CANCELLED])
        store.deactivate_workflow("chain")
        store.activate_workflow("chain")
        replayed = engine.replay_execution(ids["source"], idempotency_key="again")
        (Path(os.environ[FOLDER]) / "replayed").write_text(replayed)
    return 0


def _stop_with_jobs_in_hand() -> None:
    """Have one worker told to stop between the fetch of a job and its claim."""
    fetch, advance, stopping = JobConsumer.fetch, WorkerState.advance, threading.Event()

    def advancing(self: WorkerState, phase: Phase) -> bool:
        moved = advance(self, phase)
        if self.draining:
            stopping.set()
        return moved

    def fetching(self: JobConsumer, *args: Any, **options: Any) -> list[NodeMessage]:
        found = fetch(self, *args, **options)
        if found and once_in_a_play("stop"):
            os.kill(os.getpid(), signal.SIGTERM)
            stopping.wait(_END_SECONDS)
        return found

    vars_of: Any = (WorkerState, JobConsumer)
    vars_of[0].advance, vars_of[1].fetch = advancing, fetching


def once_in_a_play(what: str) -> bool:
    """Tell the first who asks, of all processes of a play."""
    try:
        (Path(os.environ[FOLDER]) / f"once-{what}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


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
