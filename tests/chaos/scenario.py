"""A scenario: a load on real workers, faults all the while, and the proof of what became of every execution."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from chaos.app import TRACE_LOG, registry
from chaos.deeds import ORDERS
from chaos.environment import Environment
from chaos.faults import Fault
from chaos.processes import ProcessGroup
from chaos.verify import ScenarioResult, verify
from chaos.workflows import WORKFLOWS
from spanloom.engine import NodeStatus, StoreUnavailable, WorkflowEngine
from spanloom.testing.servers import PostgresServer, RedisServer
from spanloom.worker.briefness import MOST

__all__ = ["Load", "injecting", "run_scenario", "set_up", "wait_settled", "worker_command"]

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
    stall_seconds: float = 0.0  # 0: workers without supervisors
    most_seconds: float = 300.0  # after which no further fault is done
    patience_seconds: float = 60.0  # without an end, and without a fault: what is open then has hung


def run_scenario(
    name: str,
    faults: Sequence[Fault],
    load: Load,
    *,
    folder: Path,
    store_url: str,
    redis: RedisServer,
    postgres: PostgresServer | None = None,
    seed: int = 0,
) -> ScenarioResult:
    """Run the load on a migrated, empty store while all of `faults` are injected, and verify it."""
    began = time.monotonic()
    load = replace(load, stall_seconds=max(fault.stall_seconds for fault in faults))
    with set_up(load, folder, store_url, redis, postgres) as environment:
        with injecting(environment, faults, seed):
            _wait_generated(environment, load)
        healed = time.monotonic()
        wait_settled(environment, load)
        settling = time.monotonic() - healed
        unclean = environment.workers.close()
        environment.engines.close()
        return verify(name, environment, faults, load.executions, unclean, time.monotonic() - began, settling)


@contextmanager
def set_up(
    load: Load, folder: Path, store_url: str, redis: RedisServer, postgres: PostgresServer | None
) -> Generator[Environment]:
    """Run the workers and the engines of a load on a migrated, empty store while the block lasts."""
    variables = {
        "SPANLOOM_STORE_URL": store_url,
        "SPANLOOM_REDIS_URL": redis.url,
        "SPANLOOM_LOG_FORMAT": "json",
        TRACE_LOG: str(folder / "trace-log"),
        ORDERS: str(folder / "orders"),
    }

    (folder / "orders").mkdir()

    def starter(place: int, name: str) -> list[str]:
        share_of_rate = load.rate / load.engines
        return ["chaos.load", *map(str, (folder, load.executions, place, load.engines, share_of_rate, load.window))]

    with ExitStack() as stack:
        engine = WorkflowEngine(registry, store_url, redis.url)
        stack.callback(engine.close)
        for one in WORKFLOWS:
            engine.register_workflow(one.workflow)
        workers = ProcessGroup("worker", load.workers, lambda _, name: worker_command(load, name), variables, folder)
        engines = ProcessGroup("engine", load.engines, starter, variables, folder, ends=True)
        environment = Environment(
            folder, engine, redis, postgres, workers, engines, load.slots * MOST, load.lease_seconds, variables
        )
        for group in (workers, engines):
            stack.callback(group.close)
        workers.start()
        workers.wait_ready()
        engines.start()
        yield environment


def worker_command(load: Load, name: str) -> list[str]:
    """Return the command of one worker."""
    options = [
        "--lease",
        f"{load.lease_seconds}s",
        "--concurrency",
        str(load.slots),
        "--name",
        name,
        "--stall",
        f"{load.stall_seconds}s",
    ]
    return ["spanloom.cli", "worker", "chaos.app:engine", *options]


@contextmanager
def injecting(environment: Environment, faults: Sequence[Fault], seed: int) -> Generator[None]:
    """Inject all faults, each on a thread of its own, while the block lasts; all is healed after it."""
    failed: list[BaseException] = []

    def inject(fault: Fault) -> None:
        try:
            fault.run(environment, random.Random(f"{seed} {fault.name}"))
        except BaseException as error:
            failed.append(error)
            environment.over.set()

    threads = [threading.Thread(target=inject, args=[fault], name=fault.name) for fault in faults]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        environment.over.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def _wait_generated(environment: Environment, load: Load) -> None:
    """Wait until every execution was started, or until the time for faults is over."""
    until = time.monotonic() + load.most_seconds
    while not environment.over.wait(_LOOK_SECONDS) and not environment.engines.done and time.monotonic() < until:
        pass


def wait_settled(environment: Environment, load: Load) -> None:
    """Wait, now that nothing more is done to them, for all executions, unless nothing changes for too long."""
    seen: int | None = -1
    since = time.monotonic()
    while (still_open := _open(environment)) != 0 or not environment.engines.done:
        if still_open != seen:
            seen, since = still_open, time.monotonic()
        elif time.monotonic() - since > load.patience_seconds:
            return
        time.sleep(_LOOK_SECONDS)


def _open(environment: Environment) -> int | None:
    """Return how many executions are open, and runs that may go on; None while the store is away."""
    try:
        stats = environment.engine.store.stats()
    except StoreUnavailable:
        return None
    executions = sum(number for status, number in stats.executions.items() if not status.ended)
    return executions + sum(stats.open_node_runs.get(status, 0) for status in _GOING_ON)
