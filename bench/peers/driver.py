"""What the programs in Python have in common: how they count a node's run, and how the bench drives them."""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Driver", "ran", "ready"]

_LEDGER_PATH = Path(os.environ["BENCH_LEDGER"])
_LEDGER = os.open(_LEDGER_PATH, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def ran(run: str, stage: int, number: int) -> None:
    """Note that a node ran, within some microseconds: its driver finds lost and repeated ones by these lines."""
    os.write(_LEDGER, f"{run} {stage} {number}\n".encode())


def ready() -> None:
    """Say that this worker process is ready."""
    (Path(os.environ["BENCH_READY"]) / str(os.getpid())).touch()


class Driver(ABC):
    """One that starts executions and sees them end."""

    @abstractmethod
    def start(self, runs: Sequence[str], stages: Sequence[int]) -> None:
        """Start an execution for each name in `runs`: so many nodes side by side, stage after stage."""

    @abstractmethod
    def wait(self) -> None:
        """Return once all that was started can be seen to have ended."""

    def wait_for_one(self) -> None:
        """Return once the one that was started last can be seen to have ended."""
        self.wait()

    def drive(self) -> None:
        """Run the workloads that the bench writes to stdin, one a line, and write what they took to stdout."""
        read = 0
        print("{}", flush=True)
        for begun, line in enumerate(sys.stdin):
            workload = json.loads(line)
            stages = workload["stages"]
            runs = [f"{workload['name']}-{begun}-{number}" for number in range(workload["executions"])]
            seconds = []
            if workload["one_by_one"]:
                for run in runs:
                    time.sleep(workload["idle_seconds"])
                    started = time.perf_counter()
                    self.start([run], stages)
                    self.wait_for_one()
                    seconds.append(time.perf_counter() - started)
            else:
                started = time.perf_counter()
                self.start(runs, stages)
                self.wait()
                seconds.append(time.perf_counter() - started)
            lines = _LEDGER_PATH.read_text().splitlines()
            wrong = _compare(lines[read:], runs, stages)
            read = len(lines)
            print(json.dumps({"seconds": seconds, "wrong": wrong}), flush=True)


def _compare(lines: Sequence[str], runs: Sequence[str], stages: Sequence[int]) -> str:
    """Return what is wrong with the nodes that ran, or nothing."""
    found = Counter(lines)
    expected = Counter(
        f"{run} {stage} {number}" for run in runs for stage, width in enumerate(stages) for number in range(width)
    )
    if found == expected:
        return ""
    return f"not every node ran once: {len(expected - found)} lost, {len(found - expected)} too often"
