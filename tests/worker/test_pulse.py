"""A worker gives up for what stands still in it; the nodes that are to blame for that end, and the others go on."""

from __future__ import annotations

import asyncio
import errno
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer
from structlog.testing import capture_logs

from spanloom.engine import (
    ConfigurationError,
    ExecutionFailed,
    NodeRegistry,
    NodeStatus,
    StoreUnavailable,
    WorkerStalled,
    Workflow,
    WorkflowEngine,
)
from spanloom.stores import InMemoryExecutionStore
from spanloom.worker.node.caller import Caller
from spanloom.worker.node.event_loop import Awaited, EventLoopThread
from spanloom.worker.process.resource_limits import limit_failure, watch_limits
from spanloom.worker.watch.threads import check_threads

SHORT: dict[str, Any] = {"lease_seconds": 0.4, "stall_seconds": 0.8, "grace_seconds": 5.0, "sweep_seconds": 0.1}


class Gate:
    """What handlers wait at, until the test is over."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.arrived = threading.Event()

    def wait(self) -> None:
        self.arrived.set()
        self.opened.wait(30)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


@pytest.fixture
def engine(gate: Gate) -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()

    @registry.node("waits")
    def waits() -> None:
        gate.wait()

    @registry.node("swallows")
    async def swallows() -> None:
        while not gate.opened.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    @registry.node("blocks")
    async def blocks() -> str:
        await asyncio.to_thread(lambda: None)  # in a later turn of the loop
        time.sleep(3)  # noqa: ASYNC251  as users write it
        return "late"

    @registry.node("echo")
    def echo(data: Any) -> Any:
        return data

    @registry.node("lowers")
    def lowers() -> str:
        sys.setrecursionlimit(80)
        sys.settrace(lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
        return "done"

    with WorkflowEngine(registry, InMemoryExecutionStore(), FakeRedis(server=FakeServer())) as made:
        for name in registry.types:
            timed = {"timeout": 0.3} if name in ("waits", "swallows", "blocks") else {}
            made.register_workflow(Workflow.model_validate({"id": name, "nodes": [{"id": "a", "type": name, **timed}]}))
        yield made


def error_of(engine: WorkflowEngine, execution_id: str) -> str | None:
    execution = engine.wait(execution_id, timeout=20)
    return None if execution.error is None else execution.error["type"]


@pytest.mark.parametrize("kind", ["waits", "swallows"])
def test_a_handler_that_no_timeout_ends_ends_its_worker_and_counts_as_timed_out(
    engine: WorkflowEngine, gate: Gate, kind: str
) -> None:
    with (
        pytest.raises(WorkerStalled, match="after its timeout, and can't be ended: a"),
        engine.start_workers(1, concurrency=1, **SHORT),
    ):
        execution_id = engine.enqueue_workflow(kind)
        waiting = engine.enqueue_workflow("echo", 1)

        assert error_of(engine, execution_id) == "NodeTimeout"
        gate.opened.set()

    with engine.start_workers(1, **SHORT):
        assert engine.wait(waiting, timeout=20).output == 1


def test_a_handler_that_blocks_the_event_loop_is_named_and_its_timeout_holds(engine: WorkflowEngine) -> None:
    with capture_logs() as logged, engine.start_workers(1, **{**SHORT, "stall_seconds": 60.0}):
        assert error_of(engine, engine.enqueue_workflow("blocks")) == "NodeTimeout"

    line, *_ = [line for line in logged if line["event"] == "event_loop_blocked"]
    assert (line["node_id"], line["waiting"]) == ("a", 0)
    assert line["seconds"] >= 1
    assert "time.sleep(3)" in line["stack"]


def test_records_that_make_no_way_though_the_store_answers_end_their_worker(
    engine: WorkflowEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: Any, **__: Any) -> Any:
        gate.wait()
        raise StoreUnavailable("over")

    with (
        pytest.raises(WorkerStalled, match="its recorder has stood still"),
        monkeypatch.context() as patch,
        engine.start_workers(1, **SHORT),
    ):
        patch.setattr(engine.store, "record", hang)
        execution_id = engine.enqueue_workflow("echo", 1)
        assert gate.arrived.wait(10)
        until(lambda: not engine.store.list_workers())  # its lease has lapsed
        gate.opened.set()

    with engine.start_workers(1, **SHORT):
        assert engine.wait(execution_id, timeout=20).output == 1
    (run,) = engine.store.get_node_results(execution_id)
    assert (run.status, run.recovery_attempts) == (NodeStatus.COMPLETED, 1)


def test_what_a_handler_leaves_in_the_interpreter_reaches_no_other(engine: WorkflowEngine) -> None:
    limit = sys.getrecursionlimit()
    try:
        with engine.start_workers(1, concurrency=1, **SHORT):
            assert engine.run("lowers", timeout=20) == "done"
            assert engine.run("echo", 1, timeout=20) == 1
            assert sys.getrecursionlimit() == limit
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    "lacks",
    [
        OSError(errno.EMFILE, "Too many open files"),
        MemoryError(),
        ImportError("x"),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_run_for_which_the_process_lacked_something_is_given_back(
    engine: WorkflowEngine, lacks: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = Caller._context, iter([lacks, lacks])

    def fail(*args: Any) -> Any:
        for failure in failures:
            raise failure
        return real(*args)

    monkeypatch.setattr(Caller, "_context", fail)
    with engine.start_workers(1, **SHORT):
        execution_id = engine.enqueue_workflow("echo", 1)
        assert engine.wait(execution_id, timeout=20).output == 1

    (run,) = engine.store.get_node_results(execution_id)
    assert (run.attempt, run.recovery_attempts) == (1, 0)


def test_threads_that_are_none_are_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    patched = type(sys)("gevent.monkey")
    patched.is_module_patched = lambda name: name == "threading"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    with pytest.raises(ConfigurationError, match="gevent has replaced Python's threads"):
        check_threads()


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    end, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        pause.wait(0.02)


def test_an_event_loop_that_is_being_started_has_not_died(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, seen, start = EventLoopThread("loop"), [], threading.Thread.start

    def starting(thread: threading.Thread) -> None:
        seen.append(loop.died)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    try:
        assert loop.run(Awaited(asyncio.sleep(0, "done"))) == "done"
        assert seen == [False]
        assert not loop.died
    finally:
        loop.close()


class TestTheLoopBelongsToAll:
    @pytest.fixture
    def loop_engine(self) -> Iterator[WorkflowEngine]:
        registry = NodeRegistry()
        begun = threading.Event()

        @registry.node("others")
        async def others() -> str:
            begun.set()
            await asyncio.sleep(0.3)
            return "others"

        @registry.node("cancels")
        async def cancels() -> str:
            await asyncio.to_thread(begun.wait, 30)
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            return "cancels"

        @registry.node("factory")
        async def factory() -> str:
            asyncio.get_running_loop().set_task_factory(lambda *_, **__: None)  # type: ignore[arg-type]
            return "factory"

        @registry.node("own")
        async def own() -> None:
            task = asyncio.create_task(asyncio.sleep(30))
            task.cancel("why")
            await task

        with WorkflowEngine(registry, InMemoryExecutionStore(), FakeRedis(server=FakeServer())) as engine:
            for name in ("others", "cancels", "factory", "own"):
                engine.register_workflow(Workflow.model_validate({"id": name, "nodes": [{"id": "a", "type": name}]}))
            yield engine

    def test_who_cancels_all_tasks_fails_no_other_node(self, loop_engine: WorkflowEngine) -> None:
        with loop_engine.start_workers(1):
            neighbour = loop_engine.enqueue_workflow("others")
            assert loop_engine.run("cancels", timeout=30) == "cancels"
            assert loop_engine.wait(neighbour, 30).output == "others"
        (run,) = loop_engine.store.get_node_results(neighbour)
        assert run.attempt == 1

    def test_a_cancelled_error_of_the_handlers_own_is_its_failure(self, loop_engine: WorkflowEngine) -> None:
        with loop_engine.start_workers(1), pytest.raises(ExecutionFailed, match=r"asyncio.exceptions.CancelledError"):
            loop_engine.run("own", timeout=30)

    def test_a_task_factory_that_makes_none_keeps_no_node_from_running(self, loop_engine: WorkflowEngine) -> None:
        with loop_engine.start_workers(1):
            assert loop_engine.run("factory", timeout=30) == "factory"
            assert loop_engine.run("others", timeout=30) == "others"


def test_a_limit_that_a_handler_lowered_is_a_failure_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_FSIZE: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda number: (limits.get(number, 1000), 1000))
    watch_limits()
    assert limit_failure() is None

    limits[resource.RLIMIT_FSIZE] = 500
    assert "RLIMIT_FSIZE" in str(limit_failure())
    limits[resource.RLIMIT_FSIZE] = resource.RLIM_INFINITY
    assert limit_failure() is None
