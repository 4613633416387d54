"""What the bench asks of a system: start, run a workload, prove that it was run right, and be gone."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from workloads import Workload

from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["END_SECONDS", "WORKERS", "BenchFailed", "Ground", "Player", "System"]

WORKERS = 2
END_SECONDS = 120.0  #: a workload that takes longer has hung
_IDLE_SECONDS = 0.02  #: between two executions of a latency workload: the workers are to be waiting again


class BenchFailed(Exception):
    """Say that a figure can't be trusted: a system lost, repeated or failed a node, or hung."""


@dataclass(frozen=True)
class Ground:
    """What a system runs on: an empty Redis and an empty directory of its own, and the run's one Postgres server."""

    redis: RedisServer
    directory: Path
    postgres: PostgresServer | None

    @property
    def log_path(self) -> Path:
        """Where its worker processes log to."""
        return self.directory / "workers.log"


class Player(ABC):
    """A running system whose workers are ready."""

    def measure(self, workload: Workload) -> float:
        """Run a workload, check that it was run right, and return its figure in the workload's unit.

        Time counts from the first enqueue to the last end that a caller can see. Raises BenchFailed.
        """
        self.begin(workload)
        if workload.one_by_one:
            figure = statistics.median(self._latencies(workload)) * 1000
        else:
            started = time.perf_counter()
            self.run_all(workload)
            figure = workload.nodes / (time.perf_counter() - started)
        self.check(workload)
        return figure

    def _latencies(self, workload: Workload) -> list[float]:
        seconds = []
        for number in range(workload.executions):
            time.sleep(_IDLE_SECONDS)
            started = time.perf_counter()
            self.run_one(workload, number)
            seconds.append(time.perf_counter() - started)
        return seconds

    @abstractmethod
    def begin(self, workload: Workload) -> None:
        """Prepare what is not measured."""

    @abstractmethod
    def run_all(self, workload: Workload) -> None:
        """Start all executions and return once the last one's end can be seen."""

    @abstractmethod
    def run_one(self, workload: Workload, number: int) -> None:
        """Start one execution and return once its result can be seen."""

    @abstractmethod
    def check(self, workload: Workload) -> None:
        """Raise BenchFailed unless every node since begin() was run and recorded once."""


class System(ABC):
    """A system under measurement: started afresh, with two workers, in every round."""

    name: str  #: what `--only` calls it
    title: str  #: what the table calls it
    needs_postgres = False

    @abstractmethod
    def playing(self, ground: Ground) -> AbstractContextManager[Player]:
        """Start it, wait for its workers, and end all of it with the block."""
