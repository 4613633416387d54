"""What the bench asks of a system: start, run a workload, prove that it was run right, and be gone."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from workloads import Workload

from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["END_SECONDS", "IDLE_SECONDS", "WORKERS", "BenchFailed", "Ground", "LocalPlayer", "Player", "System"]

WORKERS = 2
END_SECONDS = 120.0  #: a workload that takes longer has hung
IDLE_SECONDS = 0.02  #: between two executions of a latency workload: the workers are to be waiting again


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

    @contextmanager
    def database(self) -> Generator[str]:
        """Make an empty database and drop it at the end, so that no round finds another one's tables."""
        assert self.postgres is not None
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute("create database bench")
            try:
                yield self.postgres.database_url("bench")
            finally:
                connection.execute("drop database bench with (force)")


class Player(ABC):
    """A running system whose workers are ready."""

    def measure(self, workload: Workload) -> float:
        """Run a workload, check that it was run right, and return its figure in the workload's unit.

        Time counts from the first enqueue to the last end that a caller can see. Raises BenchFailed.
        """
        seconds = self.play(workload)
        if workload.one_by_one:
            return statistics.median(seconds) * 1000
        return workload.nodes / sum(seconds)

    @abstractmethod
    def play(self, workload: Workload) -> list[float]:
        """Run and check a workload, and return the seconds of all its executions, or of each if one by one."""


class LocalPlayer(Player):
    """A system that this process drives."""

    def play(self, workload: Workload) -> list[float]:
        self.begin(workload)
        if workload.one_by_one:
            seconds = self._latencies(workload)
        else:
            started = time.perf_counter()
            self.run_all(workload)
            seconds = [time.perf_counter() - started]
        self.check(workload)
        return seconds

    def _latencies(self, workload: Workload) -> list[float]:
        seconds = []
        for number in range(workload.executions):
            time.sleep(IDLE_SECONDS)
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
    optional = False  #: left out, with a word about it, where it can't be run
    note = ""  #: what a reader of its figures is to know

    def prepare(self) -> Mapping[str, str]:
        """Install what it needs beside this project, and return the versions of that. Raises BenchFailed."""
        return {}

    @abstractmethod
    def playing(self, ground: Ground) -> AbstractContextManager[Player]:
        """Start it, wait for its workers, and end all of it with the block."""
