"""What a handler does to its process is the failure of its node at most, and never the result of another."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakeredis import FakeRedis, FakeServer

from spanloom.engine import Execution, Workflow, WorkflowEngine
from spanloom.stores import InMemoryExecutionStore
from spanloom.worker.isolated.child import _pickled  # pyright: ignore[reportPrivateUsage]
from spanloom.worker.isolated.frames import FrameBuffer, MalformedFrame, frame_of
from support import isolated_app


class Isolated:
    """An engine with one slot, so that each node gets the process of the one before."""

    def __init__(self, engine: WorkflowEngine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder

    def start(self, kind: str, data: Any = None, **node: Any) -> str:
        """Start an execution of one node."""
        definition = {"id": kind, "nodes": [{"id": "a", "type": kind, **node}]}
        self.engine.register_workflow(Workflow.model_validate(definition))
        return self.engine.enqueue_workflow(kind, data)

    def run(self, kind: str, data: Any = None, **node: Any) -> Execution:
        """Run an execution of one node to its end."""
        return self.engine.wait(self.start(kind, data, **node), timeout=30)

    def until(self, condition: Callable[[], object]) -> None:
        """Return once it holds."""
        give_up, pause = time.monotonic() + 30, threading.Event()
        while not condition():
            assert time.monotonic() < give_up
            pause.wait(0.02)


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Isolated]:
    engine = WorkflowEngine(isolated_app.registry, InMemoryExecutionStore(), FakeRedis(server=FakeServer()))
    monkeypatch.setenv("ISOLATED_FOLDER", str(tmp_path))
    monkeypatch.setattr(isolated_app, "engine", engine)  # the worker finds its name there
    with engine, engine.start_workers(1, concurrency=1):
        yield Isolated(engine, tmp_path)


def test_a_copy_that_a_handler_forks_answers_nothing_and_ends(isolated: Isolated) -> None:
    for kind, code in {"forks": 1, "aforks": 1, "fork_waits": -signal.SIGTERM}.items():
        assert isolated.run(kind, timeout=15).output == code
        assert [isolated.run("echo", number).output for number in (1, 2)] == [1, 2]


def test_lines_and_spans_of_an_ended_call_are_not_the_next_nodes(isolated: Isolated) -> None:
    isolated.run("leaves_thread")
    after = isolated.run("releases")
    assert after.output == 1
    assert [line.message for line in isolated.engine.store.get_logs(after.id)] == ["own"]
    assert "late" not in [span.name for span in isolated.engine.store.get_trace(after.id)]


def test_a_timeout_bounds_the_sending_of_a_large_input(isolated: Isolated) -> None:
    os.kill(isolated.run("pid").output, signal.SIGSTOP)
    assert (isolated.run("echo", "x" * 900_000, timeout=0.5).error or {})["type"] == "NodeTimeout"
    assert isolated.run("echo", "x" * 900_000).output == 900_000


def test_a_death_is_seen_while_idle_and_though_a_program_keeps_the_connection_open(isolated: Isolated) -> None:
    process = psutil.Process(isolated.run("pid").output)
    process.kill()
    threads = Path(f"/proc/{process.pid}/task")  # the first is a zombie while others still end
    isolated.until(lambda: process.status() == psutil.STATUS_ZOMBIE and len(list(threads.iterdir())) == 1)
    assert isolated.run("echo", 3).output == 3
    died = isolated.run("dies", True)
    os.kill(int((isolated.folder / "program").read_text()), signal.SIGKILL)
    assert (died.error or {})["message"].endswith("with exit code 7")


def test_a_process_that_sends_anything_else_is_killed(isolated: Isolated) -> None:
    for sent, reason in {"bytes": "no message", "other": "answered another call"}.items():
        error = isolated.run("writes", sent).error or {}
        assert error["type"] == "HandlerDied"
        assert reason in error["message"]


def test_a_lifespan_that_fails_for_a_moment_costs_no_attempt(isolated: Isolated) -> None:
    (isolated.folder / "fails").touch()
    started = isolated.start("echo", 5)
    isolated.until((isolated.folder / "has_failed").exists)
    (isolated.folder / "fails").unlink()
    assert isolated.engine.wait(started, timeout=30).output == 5
    assert isolated.engine.store.get_node_results(started)[0].attempt == 1


def test_a_cancel_ends_the_wait_for_a_lifespan_that_hangs(isolated: Isolated) -> None:
    (isolated.folder / "hangs").touch()
    started = isolated.start("echo", 6)
    isolated.until((isolated.folder / "is_hanging").exists)
    (isolated.folder / "hangs").unlink()
    isolated.engine.cancel_execution(started)
    assert isolated.run("echo", 7).output == 7


def test_an_exception_is_sent_with_its_attributes_up_to_a_limit() -> None:
    small, large = ValueError("x"), ValueError("x")
    large.blob = bytearray(3 << 20)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    assert _pickled(small) is not None
    assert _pickled(large) is None


def test_a_frame_longer_than_any_message_is_refused_before_it_comes() -> None:
    buffer = FrameBuffer(100)
    buffer.feed(frame_of("x" * 200)[:20])
    with pytest.raises(MalformedFrame, match="more than 100"):
        buffer.take()
