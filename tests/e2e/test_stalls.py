"""A worker process that can't move is ended by its supervisor; the node that stood still in it ends, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from e2e.support.harness import TESTS, until
from e2e.support.stalling_app import registry
from spanloom.engine import Execution, Workflow, WorkflowEngine
from spanloom.engine.limits import MAX_SPAN_NAME

APP = "e2e.support.stalling_app:engine"
SHORT = ("--lease", "1", "--stall", "2", "--grace", "4", "--max-recovery-attempts", "2")


class Supervised:
    """An engine, and `spanloom worker` processes for it, each with its own log file."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SPANLOOM_STORE_URL": f"sqlite:///{folder}/spanloom.db",
            "SPANLOOM_REDIS_URL": redis_url,
            "SPANLOOM_LOG_FORMAT": "json",
            "STALLING_FOLDER": str(folder),
        }
        self.engine = WorkflowEngine(registry, self.environment["SPANLOOM_STORE_URL"], redis_url)

    @contextmanager
    def worker(
        self, *options: str, app: str = APP, folder: Path = TESTS, flags: tuple[str, ...] = (), shell: str = ""
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run `spanloom worker` while the block lasts, in an interpreter of its own; kill it if it goes on then."""
        if "--processes" not in options:
            options = ("--processes", "1", *options)
        command = [sys.executable, *flags, "-P", "-m", "spanloom.cli", "worker", app, *options]
        if shell:
            command = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *command]
        environment = {**self.environment, "PYTHONPATH": str(TESTS)} if folder != TESTS else self.environment
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            until(lambda: self.engine.store.list_workers() or process.poll() is not None)
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, kind: str, **node: Any) -> str:
        """Start a workflow of one node of this type."""
        self.engine.register_workflow(
            Workflow.model_validate({"id": kind, "nodes": [{"id": "a", "type": kind, **node}]})
        )
        return self.engine.enqueue_workflow(kind)

    def wait(self, execution_id: str) -> Execution:
        return self.engine.wait(execution_id, timeout=60)


@pytest.fixture
def system(tmp_path: Path, own_redis_url: str) -> Iterator[Supervised]:
    with Redis.from_url(own_redis_url) as client:
        client.flushall()
    made = Supervised(tmp_path, own_redis_url)
    made.engine.open()
    yield made
    made.engine.close()


def test_a_handler_that_holds_the_interpreter_is_lost_with_its_process_and_its_neighbours_end(
    system: Supervised,
) -> None:
    with system.worker(*SHORT, "--max-recovery-attempts", "1") as process:
        held = system.start("holds")
        others = [system.start("pause", config={"seconds": 0.1}) for _ in range(3)]

        failed = system.wait(held)

        assert failed.error is not None
        assert failed.error["type"] == "WorkerLost"
        assert "in holds" in system.log  # where it stood
        assert process.poll() is None
    for one in others:
        assert system.wait(one).status.ended


def test_slots_that_are_all_past_their_timeouts_are_given_up_with_their_process(system: Supervised) -> None:
    with system.worker(*SHORT, "--concurrency", "2"):
        retry = {"max_attempts": 2, "delay": 0.01}
        blocked = [system.start("deadlocks", timeout=0.5, config={"times": 1}, retry=retry) for _ in range(2)]
        after = system.start("echo")

        assert [system.wait(one).output for one in blocked] == ["done", "done"]  # at the second attempt

        assert system.wait(after).status == "completed"
        runs = [run for one in blocked for run in system.engine.store.get_node_results(one)]
        assert [(run.attempt, run.recovery_attempts) for run in runs] == [(2, 0), (2, 0)]
    assert "can't be ended: a" in system.log
    assert '"exit_code": 75' in system.log


def test_a_handler_in_a_process_of_its_own_is_killed_by_its_timeout_and_by_a_cancel(system: Supervised) -> None:
    retry = {"max_attempts": 2, "delay": 0.01, "retry_on": ["e2e.support.stalling_app.Refused"]}
    before = system.start("isolated", timeout=3.0, retry=retry)  # the timeout begins once its process has started
    store = system.engine.store
    with system.worker("--stall", "0", "--grace", "1") as process:
        system.wait(before)  # or its process and the first one's would be idle, in either order
        executions = [
            system.wait(system.engine.enqueue_workflow("isolated", data)) for data in (1, 2, "fails", "dies", "day")
        ]
        held = system.engine.enqueue_workflow("isolated", "holds")
        beside = system.wait(system.start("pause"))
        errors = [(one.error or {}).get("type") for one in [*executions, system.wait(held)]]
        waits = system.start("aisolated")
        system_wide = {worker.pid for worker in store.list_workers()}
        until(lambda: any(run.status == "running" for run in store.get_node_results(waits)))
        system.engine.cancel_execution(waits)
        last = system.start("aisolated")
        until(lambda: any(run.status == "running" for run in store.get_node_results(last)))
        process.terminate()
        assert process.wait(15) == 0

    first, second, failed, _, day = executions
    assert day.output == "2026-01-02"  # written by the annotation
    assert first.output == second.output  # the same process runs one after the other
    assert system_wide == {process.pid, beside.output}
    assert errors == [None, None, "e2e.support.stalling_app.Refused", "HandlerDied", None, "NodeTimeout"]
    assert [run.attempt for run in store.get_node_results(failed.id)] == [2]
    lines = [(line.level, line.message) for line in store.get_logs(failed.id)]
    assert lines[:3] == [("info", "by ctx.log"), ("warning", "by logging"), ("warning", "Refused: 1 and 2")]
    spans = {span.name[:6]: len(span.name) for span in store.get_trace(first.id)}
    assert spans == {"run a": 5, "inside": 6, "long l": MAX_SPAN_NAME}
    assert store.get_node_results(last)[0].status == "queued"  # given back


@pytest.mark.one_in(7)
@pytest.mark.parametrize("kind", ["shuts", "leaks", "shallow", "freezes", "breaks_clock", "traces", "stops"])
def test_what_a_handler_does_to_its_process_costs_a_process_at_most(system: Supervised, kind: str) -> None:
    with system.worker(*SHORT, "--concurrency", "2"):
        ids = [system.start(kind), *(system.start("pause", config={"seconds": 0.1}) for _ in range(3))]
        assert [system.wait(one).status for one in ids] == ["completed"] * 4
        threading.Event().wait(0.5)
        retry = {"max_attempts": 2, "delay": 0.1}
        flaky = system.start("flaky", retry=retry)  # needs a sweep
        assert system.wait(flaky).status == "completed"


@pytest.mark.parametrize("processes", [pytest.param("1", marks=pytest.mark.torture), "2"])
def test_a_busy_thread_pool_of_a_handler_does_not_keep_its_process(system: Supervised, processes: str) -> None:
    with system.worker("--grace", "2", "--processes", processes) as process:
        system.wait(system.start("keeps_a_pool"))
        process.terminate()
        assert process.wait(15) == 0


@pytest.mark.torture
def test_burst_ends_though_a_thread_pool_of_a_handler_is_busy(system: Supervised) -> None:
    kept = system.start("keeps_a_pool")
    with system.worker("--grace", "1", "--burst") as process:
        assert process.wait(20) == 0
    assert system.wait(kept).status == "completed"


def test_a_lifespan_that_ran_a_loop_with_signal_handlers_leaves_ours(system: Supervised) -> None:
    with system.worker("--stall", "0", app="e2e.support.stalling_app:loops_first") as process:
        assert system.wait(system.start("echo")).status == "completed"
        process.terminate()
        assert process.wait(15) == 0
    assert "worker_stopping" in system.log


@pytest.mark.parametrize("number", [signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.torture)])
def test_a_process_alone_drains_at_a_signal(system: Supervised, number: signal.Signals) -> None:
    with system.worker("--stall", "0") as process:
        paused = system.start("pause", config={"seconds": 1.0})
        until(lambda: any(worker.running for worker in system.engine.store.list_workers()))
        process.send_signal(number)
        assert process.wait(15) == 0
    assert system.wait(paused).status == "completed"


def test_a_second_signal_ends_the_grace_of_supervised_processes(system: Supervised) -> None:
    with system.worker("--grace", "600") as process:
        paused = system.start("pause", config={"seconds": 600.0})
        until(lambda: system.engine.store.get_node_results(paused)[0].status == "running")
        process.terminate()
        until(lambda: "worker_stopping" in system.log)
        process.terminate()
        assert process.wait(30) == 0
    assert system.engine.store.get_node_results(paused)[0].status == "queued"  # given back


def test_a_signal_to_each_process_of_a_service_ends_no_grace(system: Supervised) -> None:
    with system.worker("--grace", "20") as process:
        system.wait(system.start("ipause"))  # its process has started
        isolated = system.start("ipause", config={"seconds": 2.0})
        paused = system.start("pause", config={"seconds": 2.0})
        started = [isolated, paused]
        until(lambda: all(system.engine.store.get_node_results(one)[0].status == "running" for one in started))
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.send_signal(signal.SIGTERM)
        assert process.wait(25) == 0
    executions = [system.engine.store.get_execution(one) for one in (paused, isolated)]
    assert [one and one.status for one in executions] == ["completed"] * 2


@pytest.mark.parametrize(
    "options",
    [("--stall", "0"), pytest.param(("--processes", "1"), marks=pytest.mark.torture), ("--processes", "2")],
)
def test_modules_beside_the_app_hide_none_of_pythons_own_and_streams_may_be_closed(
    system: Supervised, options: tuple[str, ...], tmp_path: Path
) -> None:
    place = tmp_path / "project"
    place.mkdir()
    for name in ("queue", "types", "random", "wave"):
        (place / f"{name}.py").write_text("raise ImportError('the wrong one')")
    (place / "shop.py").write_text("import wave\nfrom e2e.support.stalling_app import engine")
    started = system.start("optimized")

    with system.worker(
        *options, app="shop:engine", folder=place, flags=("-O", "-Xshop=open"), shell="<&- >&- 2>&-"
    ) as process:
        assert system.wait(started).output == [1, "open"]
        process.terminate()
        assert process.wait(20) == 0
