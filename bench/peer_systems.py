"""Other systems beside Spanloom: each a program in `peers/`, installed at fixed versions into a place of its own.

A program runs as two worker processes and as one driver, which starts workloads, sees them end in the system's own
terms, and checks that every node ran once. Nothing of theirs is imported here: the driver
reads and writes lines of JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from systems import END_SECONDS, IDLE_SECONDS, BenchFailed, Ground, Player, System
from workers import log_tail, worker_processes
from workloads import Workload

__all__ = ["PEER_SYSTEMS"]

_ROOT = Path(__file__).parents[1]
_PROGRAMS = Path(__file__).parent / "peers"


class PeerSystem(System):
    """A system whose program is run by its own interpreter, with what `make` installs at `home`."""

    optional = True

    def __init__(self, name: str, title: str, home: str, *, needs_postgres: bool = False, note: str = "") -> None:
        self.name = name
        self.title = title
        self.needs_postgres = needs_postgres
        self.note = note
        self._home = _ROOT / home

    def prepare(self) -> Mapping[str, str]:
        target = str(self._home.relative_to(_ROOT) / "ready")
        make = ["make", "--silent", "--no-print-directory", target]
        done = subprocess.run(make, cwd=_ROOT, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise BenchFailed(f"`make {target}` failed:\n{done.stderr.strip()}")
        return self._versions()

    @contextmanager
    def playing(self, ground: Ground) -> Generator[Player]:
        ready = ground.directory / "ready"
        ready.mkdir()
        environment = {
            "BENCH_HOME": str(self._home),
            "BENCH_REDIS": str(ground.redis.socket_path),
            "BENCH_LEDGER": str(ground.directory / "ledger"),
            "BENCH_READY": str(ready),
        }
        with ExitStack() as stack:
            if self.needs_postgres:
                environment["BENCH_POSTGRES"] = stack.enter_context(ground.database())
            driver = stack.enter_context(_driver(self._command("drive"), environment, ground.directory / "driver.log"))
            stack.enter_context(
                worker_processes(
                    self._command("work"), environment, ground.log_path, count_ready=lambda: len(list(ready.iterdir()))
                )
            )
            yield driver

    def _command(self, role: str) -> list[str]:
        return [str(self._home / "bin" / "python"), str(_PROGRAMS / f"{self.name}_peer.py"), role]

    def _versions(self) -> Mapping[str, str]:
        pinned = (_PROGRAMS / f"{self.name}.txt").read_text()
        return dict(re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)", pinned, re.MULTILINE)[:1])


class NodeSystem(PeerSystem):
    """A system of Node.js, where `node` and `npm` are found."""

    def prepare(self) -> Mapping[str, str]:
        if lacking := [program for program in ("node", "npm") if shutil.which(program) is None]:
            raise BenchFailed(f"there is no {' and no '.join(lacking)} on the PATH")
        return super().prepare()

    def _command(self, role: str) -> list[str]:
        return ["node", str(_PROGRAMS / f"{self.name}_peer.mjs"), role]

    def _versions(self) -> Mapping[str, str]:
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        pinned: dict[str, str] = json.loads((_PROGRAMS / "package.json").read_text())["dependencies"]
        return {self.name: pinned[self.name], "Node.js": node.removeprefix("v")}


@contextmanager
def _driver(command: list[str], environment: Mapping[str, str], log_path: Path) -> Generator[_Driver]:
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the bench, which then ends it
        ) as process,
    ):
        try:
            driver = _Driver(process, log_path)
            driver.answer()
            yield driver
        finally:
            process.kill()  # it holds nothing that another needs


class _Driver(Player):
    def __init__(self, process: subprocess.Popen[str], log_path: Path) -> None:
        self._process = process
        self._log_path = log_path

    def play(self, workload: Workload) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**asdict(workload), "idle_seconds": IDLE_SECONDS}) + "\n")
        self._process.stdin.flush()
        answer = self.answer()
        if answer["wrong"]:
            raise BenchFailed(f"{workload.name}: {answer['wrong']}")
        seconds: list[float] = answer["seconds"]
        return seconds

    def answer(self) -> dict[str, Any]:
        """Return its next line; end it, and raise BenchFailed, if there is none in time."""
        assert self._process.stdout is not None
        timer = threading.Timer(END_SECONDS, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise BenchFailed(f"its driver hung or failed:\n{log_tail(self._log_path)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


PEER_SYSTEMS = (
    PeerSystem(
        "absurd",
        "Absurd, Postgres",
        ".venv-peers/absurd",
        needs_postgres=True,
        note="A task's steps run one after the other, in W2 all fifty.",
    ),
    PeerSystem("dbos", "DBOS, Postgres", ".venv-peers/dbos", needs_postgres=True),
    NodeSystem("bullmq", "BullMQ, raw jobs", ".npm-peers"),
    PeerSystem("dramatiq", "Dramatiq, 8 threads", ".venv-peers/dramatiq"),
    PeerSystem("celery", "Celery, solo", ".venv-peers/celery"),
)
