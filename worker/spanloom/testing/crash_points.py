"""Crash points: named steps at which a process ends if they are armed, as a power cut would end it.

Production code has no crash points. A test's own application wraps the store, and the classes whose methods are steps,
before it builds its engine. Each call of theirs then has a point before it and one after it, named
`role.part.method.before` or `.after`. The role follows from the process and the thread: a worker process has `worker`
for its loop and slots, and `sweep`, `lease`, `heartbeat` and `claims` for the threads beside them.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from spanloom.engine.store.port import ExecutionStore

__all__ = ["AT", "EXIT_CODE", "FOLDER", "NOTED", "CrashPoints", "crashes", "crashing_store", "passed", "steps_of"]

EXIT_CODE = 137  #: the exit code of a process that crashed: as if by SIGKILL, as a shell reports it
AT = "SPANLOOM_CRASH_AT"  #: the environment variable that arms points
FOLDER = "SPANLOOM_CRASH_FOLDER"  #: the environment variable with the folder of the log of points
NOTED = 3  #: the number of passings of a point that a process logs
_THREADS = ("sweep", "lease", "heartbeat", "claims")  # of a worker, each named spanloom-<role>…


class CrashPoints:
    """The log of the points that this process passes, and the crash at those that are armed.

    `armed` holds, by point, the passing at which to crash, counted in each process, and the number of crashes in all.
    Before each crash a file is created in `folder`, which limits their number over all processes that share the folder.
    """

    def __init__(self, folder: Path, role: str, armed: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.folder = folder
        self._role = role
        self._armed = dict(armed or {})
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, role: str) -> CrashPoints:
        """Read SPANLOOM_CRASH_FOLDER, and SPANLOOM_CRASH_AT: `point passing times`, one to a line."""
        armed: dict[str, tuple[int, int]] = {}
        for line in os.environ.get(AT, "").splitlines():
            point, passing, times = line.split()
            armed[point] = int(passing), int(times)
        return cls(Path(os.environ[FOLDER]), role, armed)

    def pass_by(self, step: str) -> None:
        """Pass a point of this thread's role; may not return."""
        point = f"{_role_of(threading.current_thread(), self._role)}.{step}"
        with self._lock:
            self._passed[point] += 1
            passing = self._passed[point]
        if passing <= NOTED:
            _append(self.folder / "passed", f"{point} {passing}")
        at, times = self._armed.get(point, (0, 0))
        if passing == at and any(_made(self.folder / f"crash-{number}-{point}") for number in range(1, times + 1)):
            os._exit(EXIT_CODE)


def passed(folder: Path) -> dict[str, int]:
    """Return the points that the processes of a folder have passed, and the most passings (up to NOTED) in one."""
    most: dict[str, int] = {}
    path = folder / "passed"
    for line in path.read_text().splitlines() if path.exists() else ():
        point, passing = line.split()
        most[point] = max(most.get(point, 0), int(passing))
    return most


def crashes(folder: Path) -> list[str]:
    """Return the point of each crash that happened in a folder."""
    return [path.name.split("-", 2)[2] for path in sorted(folder.glob("crash-*"))]


def crashing_store(store: ExecutionStore, points: CrashPoints) -> ExecutionStore:
    """Return `store` with a point before and after each method of the port."""

    def member(name: str) -> Any:
        if isinstance(inspect.getattr_static(ExecutionStore, name), property):
            return property(lambda _: getattr(store, name))
        return staticmethod(_with_points(getattr(store, name), f"store.{name}", points))

    kind = type("CrashingStore", (ExecutionStore,), {name: member(name) for name in ExecutionStore.__abstractmethods__})
    made: ExecutionStore = kind()
    return made


def steps_of(owner: type, part: str, points: CrashPoints, exclude: Collection[str] = ()) -> None:
    """Put a point before and after each public method that a class defines, for the rest of this process."""
    for name, found in list(vars(owner).items()):
        if inspect.isfunction(found) and not name.startswith("_") and name not in exclude:
            setattr(owner, name, _with_points(found, f"{part}.{name}", points))


def _with_points(function: Callable[..., Any], step: str, points: CrashPoints) -> Callable[..., Any]:
    @functools.wraps(function)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        points.pass_by(f"{step}.before")
        try:
            return function(*args, **kwargs)
        finally:
            points.pass_by(f"{step}.after")

    return stepped


def _role_of(thread: threading.Thread, role: str) -> str:
    beside = [role_name for role_name in _THREADS if thread.name.startswith(f"spanloom-{role_name}")]
    return beside[0] if beside else role


def _made(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
