"""Runs a whole system for a test: a store, a Redis, an engine, and real worker processes (threads over memory)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from e2e.support.behaviour_app import make_engine
from spanloom.engine import Execution, Node, Workflow, WorkflowEngine
from support.fork_server import ForkedProcess

TESTS = Path(__file__).parents[2]
APP = "e2e.support.behaviour_app:engine"  #: what a worker runs, from the folder TESTS
READY_SECONDS = 30


#: A worker process that is the command itself, forked in no time; a supervisor would start an interpreter for it.
ALONE = ("--stall", "0")


class WorkerProcess:
    """One `spanloom worker` process, and what it logged. It is supervised if it is one of several, or given a stall."""

    def __init__(
        self,
        store_url: str,
        redis_url: str,
        *options: str,
        handlers_redis_url: str | None = None,
        new_session: bool = False,
    ) -> None:
        environment = {
            **os.environ,
            "SPANLOOM_STORE_URL": store_url,
            "SPANLOOM_REDIS_URL": redis_url,
            "SPANLOOM_LOG_FORMAT": "json",
            "BEHAVIOUR_REDIS_URL": handlers_redis_url or redis_url,
        }
        if "--processes" not in options:
            options = (*options, "--processes", "1", *(() if "--stall" in options else ALONE))
        self.process = ForkedProcess(["worker", APP, *options], TESTS, environment, new_session=new_session)
        self.lines: list[str] = []
        self.waited = False  # somebody has looked at its exit code
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> None:
        assert self._ready.wait(READY_SECONDS), self.log
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one kind."""
        found = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [line for line in found if line.get("event") == event]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.wait(timeout)

    def wait(self, timeout: float = 20) -> int:
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"worker {self.pid} did not end:\n{self.log}") from None
        finally:
            self._reader.join(5)
            self.waited = True
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line.rstrip())
                if "worker_ready" in line:
                    self._ready.set()
        self._ready.set()  # it ended; wait_ready() says why


@contextmanager
def worker_processes(
    count: int, store_url: str, redis_url: str, *options: str, handlers_redis_url: str | None = None
) -> Iterator[list[WorkerProcess]]:
    """Run worker processes while the block lasts; each must end with 0 when told to."""
    workers = [
        WorkerProcess(store_url, redis_url, *options, handlers_redis_url=handlers_redis_url) for _ in range(count)
    ]
    try:
        for worker in workers:
            worker.wait_ready()
        yield workers
    finally:
        codes = [0 if worker.waited else worker.stop() for worker in workers]
    assert all(code == 0 for code in codes), [worker.log for worker in workers]


@dataclass
class System:
    """What a test works with. `redis` is where the handlers leave their traces."""

    kind: str
    engine: WorkflowEngine
    redis: Redis
    store_url: str
    redis_url: str
    workers: list[Any] = field(default_factory=list)
    numbers: int = 0

    def register(self, *nodes: Node | dict[str, Any], name: str = "flow") -> str:
        """Register a workflow of its own and return its id."""
        self.numbers += 1
        workflow_id = f"{name}-{self.kind}-{self.numbers}"
        self.engine.register_workflow(Workflow.model_validate({"id": workflow_id, "nodes": nodes}))
        return workflow_id

    def run(self, workflow_id: str, data: Any = None, timeout: float = 60, **options: Any) -> Execution:
        """Start one execution and wait for its end, however it ends."""
        return self.engine.wait(self.engine.enqueue_workflow(workflow_id, data, **options), timeout=timeout)

    def ran(self, execution_id: str) -> list[str]:
        """The nodes whose handlers really ran, in order, once per run."""
        return [entry.decode().split(":")[0] for entry in self.redis.lrange(f"ran:{execution_id}", 0, -1)]

    def statuses(self, execution_id: str) -> dict[str, str]:
        """How each node stands, without the items of mapped ones."""
        runs = self.engine.store.get_node_results(execution_id)
        return {run.node_id: run.status.value for run in runs if run.item == 0}

    def data(self, execution_id: str) -> dict[str, Any]:
        """The data of each node that has some, without the items of mapped ones."""
        runs = self.engine.store.get_node_results(execution_id)
        return {run.node_id: run.data for run in runs if run.item == 0 and run.data is not None}

    def until(self, execution_id: str, kind: str, node_id: str | None = None, timeout: float = 30) -> None:
        """Wait for an event of an execution."""
        give_up, pause = time.monotonic() + timeout, threading.Event()
        while True:
            events = self.engine.store.get_events(execution_id, limit=1000)
            if any(event.kind == kind and node_id in (None, event.node_id) for event in events):
                return
            told = [(event.kind, event.node_id) for event in events[-20:]]
            assert time.monotonic() < give_up, f"no {kind} of {node_id} came, after {told}"
            pause.wait(0.02)

    def settled(self, execution_id: str, timeout: float = 30) -> Execution:
        """Wait for the end of an execution and of what of it still runs then: a failure does not stop the others."""
        execution = self.engine.wait(execution_id, timeout=timeout)
        give_up, pause = time.monotonic() + timeout, threading.Event()
        while running := [name for name, status in self.statuses(execution_id).items() if status == "running"]:
            assert time.monotonic() < give_up, f"{running} run on"
            pause.wait(0.02)
        return execution

    @contextmanager
    def working(self, workers: int = 2) -> Iterator[None]:
        """Run workers while the block lasts, for a system that has none."""
        with ExitStack() as stack:
            if self.kind == "memory":
                stack.enter_context(self.engine.start_workers(workers, concurrency=4))
            else:
                stack.enter_context(worker_processes(workers, self.store_url, self.redis_url, "--concurrency", "4"))
            yield

    def arrived(self, gate: str, timeout: float = 30) -> str:
        """Wait until a handler stands before a gate, and return its execution."""
        found = self.redis.blpop([f"waits:{gate}"], timeout=timeout)
        assert found is not None, f"nobody came to gate {gate}"
        return found[1].decode()

    def open_gate(self, gate: str, times: int = 1) -> None:
        self.redis.rpush(f"gate:{gate}", *["open"] * times)


def until(condition: Callable[[], object], timeout: float = 30) -> None:
    """Return once it holds."""
    give_up, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < give_up, "it did not come to pass"
        pause.wait(0.02)


@contextmanager
def system(
    kind: str,
    store_url: str,
    redis_url: str,
    workers: int = 2,
    concurrency: int = 4,
    handlers_redis_url: str | None = None,
) -> Iterator[System]:
    """A whole system with workers: threads of this process over memory, else processes."""
    traces_url = handlers_redis_url or redis_url
    with ExitStack() as stack:
        os.environ["BEHAVIOUR_REDIS_URL"] = traces_url
        engine = make_engine(store_url, redis_url)
        stack.callback(engine.close)
        redis = stack.enter_context(Redis.from_url(traces_url, socket_timeout=90))
        engine.open()
        made = System(kind, engine, redis, store_url, redis_url)
        if workers and kind == "memory":
            made.workers = stack.enter_context(engine.start_workers(workers, concurrency=concurrency))
        elif workers:
            options = ("--concurrency", str(concurrency))
            made.workers = stack.enter_context(
                worker_processes(workers, store_url, redis_url, *options, handlers_redis_url=handlers_redis_url)
            )
        yield made
