"""Stock RQ, two worker processes, as it comes but for `--quiet`: its SimpleWorker, and its default, forking Worker.

RQ has no workflows, so it plays them as its users do: a job enqueues the next one from within itself, a stage of
several with one `enqueue_many`; jobs that join count themselves in Redis, and the last one goes on. W3 is plain jobs.
An end is seen in RQ's own terms: the finished registry has every job; a single result is awaited with RQ's blocking
`latest_result`. Nothing is kept but what Redis holds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from redis import Redis
from rq import Worker
from rq.job import Job
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq_jobs import QUEUE, enqueue_stage, job_id
from systems import END_SECONDS, BenchFailed, Ground, LocalPlayer, Player, System
from workers import worker_processes
from workloads import Workload

__all__ = ["RQ_SYSTEMS"]

_LOOK_SECONDS = 0.005  #: between two looks at the finished registry, one ZCARD each
_SETTLE_SECONDS = 5.0  #: a job that enqueued the last one may be booked as finished after it


class RqSystem(System):
    """RQ with one of its own worker classes."""

    def __init__(self, name: str, title: str, worker_class: str) -> None:
        self.name = name
        self.title = title
        self._worker_class = worker_class

    @contextmanager
    def playing(self, ground: Ground) -> Generator[Player]:
        url = ground.redis.url
        command = [sys.executable, "-m", "rq.cli", "worker", "--quiet", "--worker-class", self._worker_class]
        command += ["--url", url, QUEUE]
        with (
            Redis.from_url(url) as redis,
            worker_processes(command, {}, ground.log_path, count_ready=lambda: Worker.count(connection=redis)),
        ):
            yield _RqPlayer(redis)


class _RqPlayer(LocalPlayer):
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._finished = FinishedJobRegistry(QUEUE, connection=redis)
        self._failed = FailedJobRegistry(QUEUE, connection=redis)
        self._begun = 0
        self._expected = 0  # jobs since the workers started: what the registry and the workers are to count

    def begin(self, workload: Workload) -> None:
        self._begun += 1
        self._expected += workload.nodes

    def run_all(self, workload: Workload) -> None:
        runs = [self._run_id(workload, number) for number in range(workload.executions)]
        enqueue_stage(self._redis, runs, workload.stages, 0)
        self._wait_until_finished(END_SECONDS)

    def run_one(self, workload: Workload, number: int) -> None:
        run = self._run_id(workload, number)
        enqueue_stage(self._redis, [run], workload.stages, 0)
        last = Job(job_id(run, len(workload.stages) - 1, 0), connection=self._redis)
        if last.latest_result(timeout=int(END_SECONDS)) is None:
            raise BenchFailed(f"{workload.name}: RQ did not end run {run} within {END_SECONDS:g} s")

    def check(self, workload: Workload) -> None:
        self._wait_until_finished(_SETTLE_SECONDS)
        finished = self._finished.get_job_count(cleanup=False)
        failed = self._failed.get_job_count(cleanup=False)
        # Each worker counts the jobs it ran, in the very step that puts them into the registry.
        ran = sum(worker.successful_job_count for worker in Worker.all(connection=self._redis))
        if (finished, ran, failed) != (self._expected, self._expected, 0):
            raise BenchFailed(
                f"{workload.name}: of {self._expected:,} jobs so far RQ finished {finished:,}, "
                f"its workers ran {ran:,}, and {failed:,} failed"
            )

    def _wait_until_finished(self, seconds: float) -> None:
        """Return once RQ has every job in its finished registry, or after so many seconds; check() says what lacks."""
        deadline = time.monotonic() + seconds
        while self._finished.get_job_count(cleanup=False) < self._expected and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)

    def _run_id(self, workload: Workload, number: int) -> str:
        return f"{workload.name}-{self._begun}-{number}"


RQ_SYSTEMS = (
    RqSystem("rq-simple", "RQ, SimpleWorker", "rq.worker.SimpleWorker"),
    RqSystem("rq-fork", "RQ, Worker (forks)", "rq.worker.Worker"),
)
