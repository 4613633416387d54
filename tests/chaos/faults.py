"""The faults: each does one kind of harm again and again until it is told to stop, and then leaves all healed."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
from redis import Redis
from redis.exceptions import RedisError

from chaos.stage import Stage
from spanloom.engine import QueueUnavailable, StoreUnavailable
from spanloom.engine.records import NodeJob
from spanloom.engine.redis_keys import RedisKeys

__all__ = [
    "FAULTS",
    "Fault",
    "FlushRedis",
    "KillEngines",
    "KillRedis",
    "KillWorkers",
    "PushAgain",
    "RestartPostgres",
    "StopWorkers",
    "TerminateBackends",
]


_AWAIT_SECONDS = 1.0
_LIST = RedisKeys.of("spanloom").queue("spanloom.default")
_LOOK = "return redis.call('llen', KEYS[1]) > 0"
_FLUSH = "if redis.call('llen', KEYS[1]) > 0 then return redis.call('flushall') end"


class Fault(ABC):
    """One kind of fault. `every` is the pause between two of them, in seconds, from and to; `pace` stretches it."""

    name: str
    every: tuple[float, float]
    needs_postgres = False

    def __init__(self, *, pace: float = 1.0) -> None:
        self.pace = pace

    def run(self, stage: Stage, chance: random.Random) -> None:
        """Do harm until the stage says that it is over."""
        while not stage.over.wait(chance.uniform(*self.every) * self.pace):
            self.strike(stage, chance)

    @abstractmethod
    def strike(self, stage: Stage, chance: random.Random) -> None:
        """Do it once, heal it, and mark it."""

    def explains(self, stage: Stage) -> int:
        """Return how many node runs one strike may take from their workers, and so have run again, at most."""
        return 0


class KillWorkers(Fault):
    """SIGKILL a worker while another one works; a new one is started at once."""

    name = "kill-workers"
    every = (1.0, 1.0)

    def strike(self, stage: Stage, chance: random.Random) -> None:
        at = time.time()
        if (hand := stage.workers.kill(chance, others=1)) is not None:
            stage.mark(self.name, at, worker=hand.name)

    def explains(self, stage: Stage) -> int:
        return stage.slots


class StopWorkers(Fault):
    """SIGSTOP a worker that holds claims until one to two seconds after its lease has lapsed, then SIGCONT."""

    name = "stop-workers"
    every = (0.2, 0.6)
    beyond = (1.0, 2.0)
    needs_postgres = True  # a SQLite writer stopped inside its transaction stops all writers

    def strike(self, stage: Stage, chance: random.Random) -> None:
        name = self._holder(stage, chance)
        hand = stage.workers.stop(name) if name is not None else None
        if hand is None:
            return
        at = time.time()
        try:
            if name not in self._holders(stage):  # what it did last ended just now: nothing would be refused
                return
            stage.mark(self.name, at, at + stage.lease_seconds, worker=name)
            time.sleep(stage.lease_seconds + chance.uniform(*self.beyond))  # to the end, or nothing would be refused
        finally:
            stage.workers.go_on(hand)

    def explains(self, stage: Stage) -> int:
        return stage.slots

    def _holder(self, stage: Stage, chance: random.Random) -> str | None:
        return chance.choice(found) if (found := self._holders(stage)) else None

    def _holders(self, stage: Stage) -> list[str]:
        try:
            return [lease.name for lease in stage.engine.store.list_workers() if lease.running]
        except StoreUnavailable:
            return []


class KillEngines(Fault):
    """SIGKILL an engine process that starts executions; another one goes on."""

    name = "kill-engines"
    every = (0.5, 1.5)

    def strike(self, stage: Stage, chance: random.Random) -> None:
        at = time.time()
        if stage.engines.kill(chance) is not None:
            stage.mark(self.name, at)


class FlushRedis(Fault):
    """FLUSHALL, at a moment when jobs wait."""

    name = "flush-redis"
    every = (2.0, 2.0)

    def strike(self, stage: Stage, chance: random.Random) -> None:
        if (at := _once_jobs_wait(stage, _FLUSH)) is not None:
            stage.mark(self.name, at)


class KillRedis(Fault):
    """SIGKILL Redis at a moment when jobs wait, and start it again, empty, up to a second later."""

    name = "kill-redis"
    every = (2.5, 4.0)
    down = (0.0, 1.0)

    def strike(self, stage: Stage, chance: random.Random) -> None:
        at = _once_jobs_wait(stage, _LOOK) or time.time()
        stage.redis.kill()
        try:
            stage.over.wait(chance.uniform(*self.down))
        finally:
            stage.redis.start()
        stage.mark(self.name, at)


class RestartPostgres(Fault):
    """Stop Postgres in good order, or kill it, in turn, and start it again up to nine seconds later."""

    name = "restart-postgres"
    every = (2.0, 4.0)
    needs_postgres = True

    def __init__(self, *, pace: float = 1.0, down: tuple[float, float] = (0.0, 9.0)) -> None:
        super().__init__(pace=pace)
        self.down = down
        self._times = 0

    def strike(self, stage: Stage, chance: random.Random) -> None:
        assert stage.postgres is not None
        at = time.time()
        end: Callable[[], Any] = (stage.postgres.stop, stage.postgres.kill)[self._times % 2]
        self._times += 1
        end()
        try:
            stage.over.wait(chance.uniform(*self.down))
        finally:
            stage.postgres.start()
        stage.mark(self.name, at)

    def explains(self, stage: Stage) -> int:
        return stage.slots * stage.workers.count  # the leases of all may lapse meanwhile


class TerminateBackends(Fault):
    """End every session at Postgres, from there."""

    name = "terminate-backends"
    every = (0.2, 0.6)
    needs_postgres = True

    def strike(self, stage: Stage, chance: random.Random) -> None:
        assert stage.postgres is not None
        at = time.time()
        try:
            with psycopg.connect(stage.postgres.url, autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'spanloom'"
                )
        except psycopg.OperationalError:
            return  # another fault has it down
        stage.mark(self.name, at)


class PushAgain(Fault):
    """Push the jobs of all nodes of an execution by hand, 2 to 10 times each, wherever they stand."""

    name = "push-again"
    every = (0.05, 0.2)

    def strike(self, stage: Stage, chance: random.Random) -> None:
        execution_id = stage.recent_execution(chance)
        if execution_id is None:
            return
        at = time.time()
        try:
            runs = stage.engine.store.get_node_results(execution_id)
            now = datetime.now(UTC)
            jobs = [
                NodeJob(run.execution_id, run.node_id, run.item, run.node_type, "default", "normal", push, now)
                for run in runs
                for push in range(1, chance.randint(2, 10) + 1)
            ]
            chance.shuffle(jobs)
            stage.engine.queue.push(jobs)
        except (StoreUnavailable, QueueUnavailable):
            return  # another fault has it down
        stage.mark(self.name, at)


def _once_jobs_wait(stage: Stage, script: str) -> float | None:
    """Run a script in Redis until it finds jobs waiting: those that workers take at once are not lost with it.

    Returns when that was; None if none came within a second, or Redis is away.
    """
    until = time.monotonic() + _AWAIT_SECONDS
    with Redis.from_url(stage.redis.url) as client:
        while time.monotonic() < until and not stage.over.is_set():
            at = time.time()
            try:
                if client.eval(script, 1, _LIST):
                    return at
            except RedisError:
                return None  # another fault has it down
            time.sleep(0.001)
    return None


FAULTS: tuple[type[Fault], ...] = (
    KillWorkers,
    StopWorkers,
    KillEngines,
    FlushRedis,
    KillRedis,
    RestartPostgres,
    TerminateBackends,
    PushAgain,
)
