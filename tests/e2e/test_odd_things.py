"""Handlers that do what none should, and jobs that nobody wrote: each ends, and nothing else suffers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.support.harness import APP, TESTS, System, WorkerProcess
from spanloom.engine import ExecutionStatus
from spanloom.engine.queue.message import JOB_FUNCTION


@pytest.mark.parametrize(
    ("kind", "config", "error"),
    [
        ("exits", {}, "SystemExit"),
        ("aexits", {"how": "exit"}, "SystemExit"),
        ("aexits", {"how": "interrupt"}, "KeyboardInterrupt"),
        ("unspeakable", {}, "Unspeakable"),
        ("mute", {}, "Mute"),
        ("wrongly_lost", {}, "LeaseLost"),
        ("acancelled", {}, "CancelledError"),
        ("atask", {"how": "task"}, "SystemExit"),
        ("atask", {"how": "callback"}, "PermanentError"),
        ("atask", {"how": "stop"}, "PermanentError"),
    ],
)
def test_whatever_a_handler_raises_is_its_nodes_failure_and_no_more(
    system: System, kind: str, config: dict[str, Any], error: str
) -> None:
    bystander = system.register({"id": "a", "type": "aecho"}, {"id": "b", "type": "aecho", "inputs": ["a"]})
    gate = f"odd-{system.kind}"
    beside = system.register({"id": "a", "type": "agate", "config": {"gate": gate}})
    waiting = [system.engine.enqueue_workflow(beside) for _ in range(2)]
    for _ in waiting:
        system.arrived(gate)  # async handlers that run on the same loops
    workflow_id = system.register({"id": "odd", "type": kind, "config": config})

    executions = [system.engine.enqueue_workflow(workflow_id) for _ in range(4)]

    for execution_id in executions:
        execution = system.engine.wait(execution_id, timeout=30)
        assert execution.status is ExecutionStatus.FAILED
        assert execution.error is not None
        assert execution.error["type"].endswith(error)
        assert system.ran(execution_id) == ["odd"]
    system.open_gate(gate, times=2)
    assert [system.engine.wait(one, timeout=30).output for one in waiting] == ["a", "a"]
    assert [system.run(bystander, number).output for number in range(4)] == list(range(4))


def test_whatever_a_handler_tells_does_not_fail_it(system: System) -> None:
    teller = system.register({"id": "a", "type": "odd_teller"})
    words = system.register({"id": "a", "type": "odd_words", "retry": {"max_attempts": 2, "delay": 0.01}})

    told, found = system.run(teller, timeout=20), system.run(words, timeout=20)

    assert (told.status, told.output) == (ExecutionStatus.COMPLETED, "told"), told.error
    lines = system.engine.store.get_logs(told.id)
    assert [line.level for line in lines] == ["info", "warning"]
    assert lines[0].fields.keys() == {"circle", "odd"}
    assert len(system.engine.store.get_trace(told.id)) == 2
    assert (found.status, found.output) == (ExecutionStatus.COMPLETED, "found"), (
        found.error
    )  # its first error is no other


@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("raise", 1), ("return", 1), ("terminated", -15)])
@pytest.mark.stores("sqlite", "postgres", why="here it would be the test that is forked")
def test_a_process_that_a_handler_forks_records_nothing(system: System, how: str, code: int) -> None:
    workflow_id = system.register({"id": "a", "type": "forks", "config": {"how": how}})

    executions = system.engine.enqueue_workflows(workflow_id, range(8))

    assert [system.engine.wait(one, timeout=30).output for one in executions] == [code] * 8


@pytest.mark.parametrize("end", ["a full disk", "a closed pipe"])
@pytest.mark.stores("sqlite", why="the log has nothing to do with the store")
def test_a_worker_works_on_when_its_log_can_not_be_written(idle_system: System, end: str) -> None:
    system = idle_system
    flaky = {"id": "a", "type": "flaky", "config": {"succeeds_at": 2}, "retry": {"max_attempts": 2, "delay": 0.01}}
    workflow_id = system.register(flaky, {"id": "b", "type": "telling", "inputs": ["a"], "retry": flaky["retry"]})
    read, write = os.pipe()
    log = os.open("/dev/full", os.O_WRONLY) if end == "a full disk" else os.dup(write)
    os.close(read)  # nobody reads the pipe
    os.close(write)
    with worker_into(log, system) as worker:
        for _ in range(3):
            assert system.run(workflow_id, timeout=30).status is ExecutionStatus.COMPLETED
        assert worker.poll() is None


@contextmanager
def worker_into(log: int, system: System) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker whose log goes into this file, which is closed here."""
    urls = {"SPANLOOM_STORE_URL": system.store_url, "SPANLOOM_REDIS_URL": system.redis_url}
    worker = subprocess.Popen(
        [sys.executable, "-m", "spanloom.cli", "worker", APP, "--processes", "1"],
        cwd=TESTS,
        env={**os.environ, **urls, "BEHAVIOUR_REDIS_URL": system.redis_url, "SPANLOOM_LOG_FORMAT": "json"},
        stdout=log,
        stderr=log,
    )
    os.close(log)
    try:
        yield worker
    finally:
        worker.terminate()
        worker.wait(30)


def _message(**fields: Any) -> bytes:
    message = {"format": 1, "execution": "e", "node": "n", "item": 0, "type": "echo", "push": 1, "at": 1.0, **fields}
    return json.dumps([JOB_FUNCTION, None, [message], {}]).encode()


ODD_JOBS: list[tuple[bytes, bytes]] = [
    (b"infinite", _message(item=1).replace(b'"item": 1', b'"item": 1e999')),
    (b"huge", _message(item=2**70)),
    (b"large", _message(item=2**40)),
    (b"negative", _message(push=-1)),
    (b"future", _message(at=1e20)),
    (b"surrogate", _message(node="\ud800")),
    (b"nul", _message(node="\u0000")),
    (b"deep", b"[" * 100_000),
    (b"\xff\xfe", _message()),
    (b"no-uuid", _message(execution="e")),
    (b"empty", b""),
]


def test_odd_jobs_on_the_lists_stop_no_worker_and_no_sweep(system: System) -> None:
    for number, (job_id, data) in enumerate(ODD_JOBS):
        for name in ("spanloom.default", f"spanloom.unserved{number}"):
            system.redis.hset(b"rq:job:" + job_id, "data", data)
            system.redis.sadd("rq:queues", f"rq:queue:{name}")
            system.redis.rpush(f"rq:queue:{name}", job_id)
    retry = {"max_attempts": 2, "delay": 0.2}
    flaky = system.register({"id": "a", "type": "flaky", "config": {"succeeds_at": 2}, "retry": retry})

    assert system.run(flaky, timeout=20).output == 2  # the sweep goes on
    assert system.run(flaky, delay=0.2, timeout=20).output == 2
    if system.kind != "memory":
        assert all(worker.process.poll() is None for worker in system.workers)


@pytest.mark.stores("sqlite", why="the name is registered in Redis, whatever the store")
def test_a_named_worker_starts_again_after_it_was_killed(idle_system: System) -> None:
    system = idle_system
    first = WorkerProcess(system.store_url, system.redis_url, "--name", "w1")
    first.wait_ready()
    first.send(signal.SIGKILL)
    first.wait()

    second = WorkerProcess(system.store_url, system.redis_url, "--name", "w1")
    second.wait_ready()

    assert second.stop() == 0


@pytest.mark.stores("sqlite", why="signals have nothing to do with the store")
def test_a_storm_of_signals_ends_a_worker_with_zero(idle_system: System) -> None:
    system = idle_system
    for _ in range(3):
        worker = WorkerProcess(system.store_url, system.redis_url)
        worker.wait_ready()
        until = time.monotonic() + 20
        while worker.process.poll() is None and time.monotonic() < until:
            for number in (signal.SIGTERM, signal.SIGINT) * 50:
                worker.send(number)
        assert worker.wait() == 0


def test_an_engine_closes_while_others_wait(system: System) -> None:
    import threading

    gate = f"close-{system.kind}"
    workflow_id = system.register({"id": "a", "type": "gate", "config": {"gate": gate}})
    execution_id = system.engine.enqueue_workflow(workflow_id)
    outputs: list[Any] = []
    waiters = [
        threading.Thread(target=lambda: outputs.append(system.engine.wait(execution_id, timeout=30).output))
        for _ in range(4)
    ]
    for waiter in waiters:
        waiter.start()
    system.arrived(gate)
    for _ in range(20):
        closing = threading.Thread(target=system.engine._listener.close)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
        with system.engine._listener.watch("another", lambda: None):
            pass
    system.open_gate(gate)
    for waiter in waiters:
        waiter.join(30)
    assert outputs == ["a"] * 4
