"""A play: a load on real workers, faults all the while, and the proof of what became of every execution."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.app import JOURNAL, registry
from chaos.crew import Crew
from chaos.faults import Fault
from chaos.shapes import SHAPES
from chaos.stage import Stage
from chaos.verdict import Verdict, judge
from spanloom.engine import NodeStatus, StoreUnavailable, WorkflowEngine
from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["Load", "play"]

_LOOK_SECONDS = 0.2
_GOING_ON = (NodeStatus.QUEUED, NodeStatus.RUNNING, NodeStatus.WAITING)


@dataclass(frozen=True)
class Load:
    """How much is run by whom. `rate` is executions a second in all, `window` how many may be open at once."""

    executions: int
    rate: float = 40.0
    window: int = 60
    workers: int = 4
    slots: int = 2
    engines: int = 2
    lease_seconds: float = 2.0
    most_seconds: float = 300.0  # after which no further fault is done
    patience_seconds: float = 60.0  # without an end, and without a fault: what is open then has hung


def play(
    name: str,
    faults: Sequence[Fault],
    load: Load,
    *,
    folder: Path,
    store_url: str,
    redis: RedisServer,
    postgres: PostgresServer | None = None,
    seed: int = 0,
) -> Verdict:
    """Run the load on a migrated, empty store while all of `faults` strike, and judge it."""
    began = time.monotonic()
    with _stage(load, folder, store_url, redis, postgres) as stage:
        with _striking(stage, faults, seed):
            _wait_fed(stage, load)
        healed = time.monotonic()
        _wait_settled(stage, load)
        settling = time.monotonic() - healed
        unclean = stage.workers.close()
        stage.engines.close()
        return judge(name, stage, faults, load.executions, unclean, time.monotonic() - began, settling)


@contextmanager
def _stage(
    load: Load, folder: Path, store_url: str, redis: RedisServer, postgres: PostgresServer | None
) -> Generator[Stage]:
    environment = {
        "SPANLOOM_STORE_URL": store_url,
        "SPANLOOM_REDIS_URL": redis.url,
        "SPANLOOM_LOG_FORMAT": "json",
        JOURNAL: str(folder / "journal"),
    }

    def feeder(place: int, name: str) -> list[str]:
        share_of_rate = load.rate / load.engines
        return ["chaos.feeder", *map(str, (folder, load.executions, place, load.engines, share_of_rate, load.window))]

    def worker(place: int, name: str) -> list[str]:
        options = ["--lease", f"{load.lease_seconds}s", "--concurrency", str(load.slots), "--name", name]
        return ["spanloom.cli", "worker", "chaos.app:engine", *options]

    with ExitStack() as stack:
        engine = WorkflowEngine(registry, store_url, redis.url)
        stack.callback(engine.close)
        for shape in SHAPES:
            engine.register_workflow(shape.workflow)
        workers = Crew("worker", load.workers, worker, environment, folder)
        engines = Crew("engine", load.engines, feeder, environment, folder, ends=True)
        stage = Stage(folder, engine, redis, postgres, workers, engines, load.slots, load.lease_seconds)
        for crew in (workers, engines):
            stack.callback(crew.close)
        workers.start()
        workers.wait_ready()
        engines.start()
        yield stage


@contextmanager
def _striking(stage: Stage, faults: Sequence[Fault], seed: int) -> Generator[None]:
    """Let all faults strike, each on a thread of its own, while the block lasts; all is healed after it."""
    failed: list[BaseException] = []

    def strike(fault: Fault) -> None:
        try:
            fault.run(stage, random.Random(f"{seed} {fault.name}"))
        except BaseException as error:
            failed.append(error)
            stage.over.set()

    threads = [threading.Thread(target=strike, args=[fault], name=fault.name) for fault in faults]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stage.over.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def _wait_fed(stage: Stage, load: Load) -> None:
    """Wait until every execution was started, or until the time for faults is over."""
    until = time.monotonic() + load.most_seconds
    while not stage.over.wait(_LOOK_SECONDS) and not stage.engines.done and time.monotonic() < until:
        pass


def _wait_settled(stage: Stage, load: Load) -> None:
    """Wait, now that nothing more is done to them, for all executions, unless nothing changes for too long."""
    seen: int | None = -1
    since = time.monotonic()
    while (still_open := _open(stage)) != 0 or not stage.engines.done:
        if still_open != seen:
            seen, since = still_open, time.monotonic()
        elif time.monotonic() - since > load.patience_seconds:
            return
        time.sleep(_LOOK_SECONDS)


def _open(stage: Stage) -> int | None:
    """Return how many executions are open, and runs that may go on; None while the store is away."""
    try:
        stats = stage.engine.store.stats()
    except StoreUnavailable:
        return None
    executions = sum(number for status, number in stats.executions.items() if not status.ended)
    return executions + sum(stats.open_node_runs.get(status, 0) for status in _GOING_ON)
