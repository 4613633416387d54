"""Workers over Postgres under load: started by a command, and the nodes a second that they make of a workload."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from redis import Redis
from scale_curve import Run
from spanloom_systems import SpanloomPlayer
from workers import worker_processes
from workflows import WAIT_SECONDS, registry
from workloads import WORKLOADS, Workload

from spanloom.engine import WorkflowEngine

__all__ = ["SLOTS", "W1", "W3", "WAITS", "engine_at", "played", "rate", "serving", "sized", "worker_command"]

SLOTS = 8  #: of a worker, by default
W1, W3 = (next(work for work in WORKLOADS if work.name == name) for name in ("W1", "W3"))
WAITS = Workload(
    "waits", f"one node whose async handler waits for {WAIT_SECONDS * 1000:g} ms", (1,), 2000, node_type="waits"
)


def worker_command(*options: str) -> list[str]:
    """Return the command of a worker that serves the workloads, with its default settings but for `options`."""
    return [sys.executable, "-m", "spanloom.cli", "worker", "app:engine", *options]


@contextmanager
def engine_at(url: str, redis_url: str) -> Generator[WorkflowEngine]:
    """Open an engine on a database, whose schema it makes if it is missing, and on a Redis that it empties."""
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
    engine = WorkflowEngine(registry, url, redis_url)
    try:
        engine.store.migrate()
        engine.open()
        yield engine
    finally:
        engine.close()


@contextmanager
def serving(
    run: Run, engine: WorkflowEngine, url: str, command: Sequence[str], workers: int, *, copies: int = 1
) -> Generator[SpanloomPlayer]:
    """Run `copies` of a command, which are so many workers together, while the block lasts."""
    environment = {"SPANLOOM_STORE_URL": url, "SPANLOOM_REDIS_URL": run.redis.url}
    with worker_processes(
        command,
        environment,
        run.ground.log_path,
        count_ready=lambda: len(engine.store.list_workers()),
        copies=copies,
        workers=workers,
    ):
        yield SpanloomPlayer(engine)


def played(player: SpanloomPlayer, workload: Workload) -> float:
    """Run a workload, check by one count that all of it completed, and return the seconds that it took."""
    player.begin(workload)
    started = time.perf_counter()
    player.run_all(workload)
    seconds = time.perf_counter() - started
    player.check_completed(workload)
    return seconds


def sized(player: SpanloomPlayer, workload: Workload, seconds: float) -> Workload:
    """Warm up with some of the workload, and return as much of it as takes about so many seconds."""
    few = replace(workload, executions=max(workload.executions // 8, 1))
    taken = played(player, few)
    return replace(workload, executions=max(few.executions, round(few.executions * seconds / taken)))


def rate(player: SpanloomPlayer, workload: Workload, seconds: float) -> float:
    """Return the nodes a second of a workload that is run for about so many seconds, after a warm-up."""
    wanted = sized(player, workload, seconds)
    return wanted.nodes / played(player, wanted)
