"""Crash points: what is noted of a process, and when it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from spanloom.engine import ConfigurationError
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.crash_points import EXIT_CODE, CrashPoints, crashes, crashing_store, passed, steps_of


def test_a_store_does_what_it_did_and_each_method_has_two_points(tmp_path: Path) -> None:
    good = InMemoryExecutionStore()
    store = crashing_store(good, CrashPoints(tmp_path, "engine"))

    assert store.list_executions(limit=7).items == []
    assert (store.url, store.shared) == (good.url, good.shared)

    assert passed(tmp_path) == {"engine.store.list_executions.before": 1, "engine.store.list_executions.after": 1}


def test_a_step_that_raises_is_passed_to_its_end(tmp_path: Path) -> None:
    store = crashing_store(InMemoryExecutionStore(), CrashPoints(tmp_path, "engine"))

    with pytest.raises(ConfigurationError):
        store.list_executions(limit=0)

    assert "engine.store.list_executions.after" in passed(tmp_path)


def test_threads_beside_a_worker_have_roles_of_their_own(tmp_path: Path) -> None:
    class Steps:
        def first(self) -> str:
            return self._hidden()

        def left_out(self) -> None:
            return

        def _hidden(self) -> str:
            return "done"

    steps_of(Steps, "steps", CrashPoints(tmp_path, "worker"), exclude=["left_out"])

    assert Steps().first() == "done"
    Steps().left_out()
    for name in ("spanloom-sweep", "spanloom-lease-host-1", "spanloom-heartbeat-host-1", "spanloom-host-1_0"):
        thread = threading.Thread(target=Steps().first, name=name)
        thread.start()
        thread.join()

    assert {point for point in passed(tmp_path) if point.endswith("before")} == {
        f"{role}.steps.first.before" for role in ("worker", "sweep", "lease", "heartbeat")
    }


def test_a_process_crashes_at_the_passing_it_is_told_and_no_other_one_does_again(tmp_path: Path) -> None:
    def walk() -> None:
        points = CrashPoints(tmp_path, "worker", {"worker.step": (2, 1)})
        for _ in range(5):
            points.pass_by("step")

    codes = [_code_of(walk) for _ in range(3)]

    assert codes == [EXIT_CODE, 0, 0]
    assert crashes(tmp_path) == ["worker.step"]


def test_two_processes_crash_if_they_are_told(tmp_path: Path) -> None:
    def walk() -> None:
        CrashPoints(tmp_path, "worker", {"worker.step": (1, 2)}).pass_by("step")

    assert [_code_of(walk) for _ in range(3)] == [EXIT_CODE, EXIT_CODE, 0]
    assert crashes(tmp_path) == ["worker.step", "worker.step"]


def _code_of(walk: Callable[[], None]) -> int:
    """Run it in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            walk()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
