"""The processes of the crash tests, as the test sees them: started by a nursery, signalled, and awaited."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
_START_SECONDS = 30.0


class Process:
    """One process: what it is, and how it ended."""

    def __init__(self, role: str, log: Path) -> None:
        self.role = role
        self._log = log
        self.forked: Future[int] = Future()
        self.ended: Future[int] = Future()

    @property
    def pid(self) -> int:
        return self.forked.result(_START_SECONDS)

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.ended.result() if self.ended.done() else None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Signal it; no error if it has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return


class Nursery:
    """Start processes by forking them from one that has imported everything."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.nursery"],
            cwd=HERE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._numbers = itertools.count(1)
        self._started: dict[int, Process] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="crash-nursery")
        self._reader.start()

    def start(self, role: str, environment: Mapping[str, str], folder: Path) -> Process:
        """Start a process that does what crash_app has under the name of its role."""
        assert self._process.stdin is not None
        with self._lock:
            number = next(self._numbers)
            log = folder / f"{role}-{number}.log"
            process = self._started[number] = Process(role, log)
            asked = {"number": number, "role": role, "environment": dict(environment), "log": str(log)}
            self._process.stdin.write(f"{json.dumps(asked)}\n")
            self._process.stdin.flush()
        return process

    def close(self) -> None:
        """End it, and what it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_START_SECONDS)
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            process = self._started[told["number"]]
            if "pid" in told:
                process.forked.set_result(told["pid"])
            else:
                process.ended.set_result(told["code"])


@contextmanager
def nursery() -> Iterator[Nursery]:
    """Run a nursery while the block lasts."""
    made = Nursery()
    try:
        yield made
    finally:
        made.close()
