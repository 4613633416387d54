"""Process groups: processes that are kept running, each replaced when it dies, and what they logged."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.fork_server import ForkedProcess

__all__ = ["GroupProcess", "ProcessGroup"]

TESTS = Path(__file__).parent.parent
_LOOK_SECONDS = 0.05
_YOUNG_PAUSE_SECONDS = 0.3  #: before one that could not start is tried again
_END_SECONDS = 40.0


@dataclass(eq=False)
class GroupProcess:
    """One process of a group."""

    name: str
    place: int
    popen: subprocess.Popen[bytes] | ForkedProcess
    log_path: Path
    killed: bool = False
    stopped: bool = False
    _ready: bool = field(default=False, repr=False)

    @property
    def alive(self) -> bool:
        """Whether it runs, or is stopped."""
        return self.popen.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it has ever logged that it is ready to work."""
        self._ready = self._ready or b'_ready"' in self.log_path.read_bytes()
        return self._ready

    @property
    def last_line(self) -> str:
        """What it logged last."""
        return (self.log_path.read_text(errors="replace").splitlines() or ["nothing"])[-1]

    def lines(self) -> Iterator[dict[str, Any]]:
        """Return what it logged: JSON lines as they are, others as an error."""
        for line in self.log_path.read_text(errors="replace").splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                found = {"level": "error", "event": line}
            yield found if isinstance(found, dict) else {"level": "error", "event": line}


class ProcessGroup:
    """Keep `count` processes of one command running; `command` makes the arguments of place 0, 1, … under a name.

    With `ends` a process that exits with 0 is done, and its place stays empty.
    """

    def __init__(
        self,
        what: str,
        count: int,
        command: Callable[[int, str], Sequence[str]],
        environment: Mapping[str, str],
        folder: Path,
        *,
        ends: bool = False,
    ) -> None:
        self.what = what
        self.count = count
        self.processes: list[GroupProcess] = []  # all that ever were
        self.exits: list[tuple[GroupProcess, int]] = []  # those that ended by themselves
        self._command = command
        self._environment = {**os.environ, **environment}
        self._folder = folder
        self._ends = ends
        self._places: dict[int, GroupProcess] = {}
        self._done: set[int] = set()
        self._not_before: dict[int, float] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._maintainer = threading.Thread(target=self._maintain_all, name=f"keep-{what}", daemon=True)

    def start(self) -> None:
        """Begin; returns before the processes are ready."""
        for place in range(self.count):
            self._start(place)
        self._maintainer.start()

    @property
    def done(self) -> bool:
        """Whether every place has ended with 0."""
        with self._lock:
            return len(self._done) == self.count

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Wait until every process has logged that it is ready. Raises TimeoutError, with what they logged."""
        until = time.monotonic() + seconds
        while not all(process.ready for process in list(self._places.values())):
            if time.monotonic() > until:
                logged = "\n".join(process.log_path.read_text(errors="replace") for process in self._places.values())
                raise TimeoutError(f"the {self.what} were not ready after {seconds:g} s:\n{logged}")
            time.sleep(_LOOK_SECONDS)

    def kill(self, chance: random.Random, *, others: int = 0) -> GroupProcess | None:
        """SIGKILL one that works, and return it once it is gone; None if there is none, or too few others are left."""
        with self._lock:
            found = [process for process in self._at_work() if process.ready]
            if len(found) <= others:
                return None
            process = chance.choice(found)
            process.killed = True
            process.popen.kill()
        process.popen.wait()
        return process

    def stop(self, name: str) -> GroupProcess | None:
        """SIGSTOP one by its name; None if it is gone."""
        with self._lock:
            for process in self._at_work():
                if process.name == name:
                    process.stopped = True
                    process.popen.send_signal(signal.SIGSTOP)
                    return process
        return None

    def go_on(self, process: GroupProcess) -> None:
        """SIGCONT one that was stopped."""
        with self._lock:
            process.popen.send_signal(signal.SIGCONT)
            process.stopped = False

    def close(self) -> list[tuple[GroupProcess, int]]:
        """SIGTERM all, and return those that did not end with 0, with their exit codes."""
        self._closing.set()
        if self._maintainer.is_alive():
            self._maintainer.join()
        running = [process for process in self._places.values() if process.alive]
        for process in running:
            self.go_on(process)
            process.popen.terminate()
        until = time.monotonic() + _END_SECONDS
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.1, until - time.monotonic()))
            if process.alive:
                process.popen.kill()
                process.popen.wait()
        return [(one, one.popen.returncode) for one in running if one.popen.returncode != 0 and not self._ends]

    def _at_work(self) -> list[GroupProcess]:
        return [one for one in self._places.values() if one.alive and not one.stopped and not one.killed]

    def _maintain_all(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            for place in range(self.count):
                with self._lock:
                    self._maintain(place)

    def _maintain(self, place: int) -> None:
        process = self._places.get(place)
        if process is not None and not process.alive:
            del self._places[place]
            code = process.popen.returncode
            if self._ends and code == 0:
                self._done.add(place)
            elif not process.killed:
                self.exits.append((process, code))
                self._not_before[place] = time.monotonic() + _YOUNG_PAUSE_SECONDS
        if place not in self._places and place not in self._done and time.monotonic() > self._not_before.get(place, 0):
            self._start(place)

    def _start(self, place: int) -> None:
        name = f"{self.what}-{len(self.processes)}"
        log_path = self._folder / f"{name}.log"
        process = GroupProcess(name, place, self._spawn(self._command(place, name), log_path), log_path)
        self._places[place] = process
        self.processes.append(process)

    def _spawn(self, command: Sequence[str], log_path: Path) -> subprocess.Popen[bytes] | ForkedProcess:
        # In a session of its own: Ctrl-C reaches the program, which then ends its process groups.
        log_path.touch()
        program, *arguments = command
        if program == "spanloom.cli":
            return ForkedProcess(arguments, TESTS, self._environment, log=log_path, new_session=True)
        with log_path.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=TESTS,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
