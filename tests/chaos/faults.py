"""The faults: each does one kind of harm again and again until the scenario is over, and then leaves all healed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
from redis import Redis
from redis.exceptions import RedisError

from chaos.environment import Environment
from chaos.fault import Fault
from chaos.refusals import OneOutOfMemory, RefuseWrites
from spanloom.engine import QueueUnavailable, StoreUnavailable
from spanloom.engine.queue.keys import RedisKeys
from spanloom.engine.store.requests import NodeJob

__all__ = [
    "FAULTS",
    "Fault",
    "FlushRedis",
    "KillEngines",
    "KillRedis",
    "KillWorkers",
    "OneOutOfMemory",
    "PushAgain",
    "RefuseWrites",
    "RestartPostgres",
    "StopWorkers",
    "TerminateBackends",
]


_AWAIT_SECONDS = 1.0
_LIST = RedisKeys.of("spanloom").queue("spanloom.default")
_LOOK = "return redis.call('llen', KEYS[1]) > 0"
_FLUSH = "if redis.call('llen', KEYS[1]) > 0 then return redis.call('flushall') end"


class KillWorkers(Fault):
    """SIGKILL a worker while another one works; a new one is started at once."""

    name = "kill-workers"
    every = (1.0, 1.0)

    def inject(self, environment: Environment, chance: random.Random) -> None:
        at = time.time()
        if (process := environment.workers.kill(chance, others=1)) is not None:
            environment.record(self.name, at, worker=process.name)

    def explains(self, environment: Environment) -> int:
        return environment.slots


class StopWorkers(Fault):
    """SIGSTOP a worker that holds claims until one to two seconds after its lease has lapsed, then SIGCONT."""

    name = "stop-workers"
    every = (0.2, 0.6)
    beyond = (1.0, 2.0)
    needs_postgres = True  # a SQLite writer stopped inside its transaction stops all writers

    def inject(self, environment: Environment, chance: random.Random) -> None:
        name = self._holder(environment, chance)
        process = environment.workers.stop(name) if name is not None else None
        if process is None:
            return
        at = time.time()
        try:
            if name not in self._holders(environment):  # what it did last ended just now: nothing would be refused
                return
            environment.record(self.name, at, at + environment.lease_seconds, worker=name)
            # To the end, or nothing would be refused.
            time.sleep(environment.lease_seconds + chance.uniform(*self.beyond))
        finally:
            environment.workers.go_on(process)

    def explains(self, environment: Environment) -> int:
        return environment.slots

    def _holder(self, environment: Environment, chance: random.Random) -> str | None:
        return chance.choice(found) if (found := self._holders(environment)) else None

    def _holders(self, environment: Environment) -> list[str]:
        try:
            return [lease.name for lease in environment.engine.store.list_workers() if lease.running]
        except StoreUnavailable:
            return []


class KillEngines(Fault):
    """SIGKILL an engine process that starts executions; another one goes on."""

    name = "kill-engines"
    every = (0.5, 1.5)

    def inject(self, environment: Environment, chance: random.Random) -> None:
        at = time.time()
        if environment.engines.kill(chance) is not None:
            environment.record(self.name, at)


class FlushRedis(Fault):
    """FLUSHALL, at a moment when jobs wait."""

    name = "flush-redis"
    every = (2.0, 2.0)

    def inject(self, environment: Environment, chance: random.Random) -> None:
        if (at := _once_jobs_wait(environment, _FLUSH)) is not None:
            environment.record(self.name, at)


class KillRedis(Fault):
    """SIGKILL Redis at a moment when jobs wait, and start it again, empty, up to a second later."""

    name = "kill-redis"
    every = (2.5, 4.0)
    down = (0.0, 1.0)

    def inject(self, environment: Environment, chance: random.Random) -> None:
        at = _once_jobs_wait(environment, _LOOK) or time.time()
        environment.redis.kill()
        try:
            environment.over.wait(chance.uniform(*self.down))
        finally:
            environment.redis.start()
        environment.record(self.name, at)


class RestartPostgres(Fault):
    """Stop Postgres in good order, or kill it, in turn, and start it again up to nine seconds later."""

    name = "restart-postgres"
    every = (2.0, 4.0)
    needs_postgres = True

    def __init__(self, *, pace: float = 1.0, down: tuple[float, float] = (0.0, 9.0)) -> None:
        super().__init__(pace=pace)
        self.down = down
        self._times = 0

    def inject(self, environment: Environment, chance: random.Random) -> None:
        assert environment.postgres is not None
        at = time.time()
        end: Callable[[], Any] = (environment.postgres.stop, environment.postgres.kill)[self._times % 2]
        self._times += 1
        end()
        try:
            environment.over.wait(chance.uniform(*self.down))
        finally:
            environment.postgres.start()
        environment.record(self.name, at)

    def explains(self, environment: Environment) -> int:
        return environment.slots * environment.workers.count  # the leases of all may lapse meanwhile


class TerminateBackends(Fault):
    """End every session at Postgres, from there."""

    name = "terminate-backends"
    every = (0.2, 0.6)
    needs_postgres = True

    def inject(self, environment: Environment, chance: random.Random) -> None:
        assert environment.postgres is not None
        at = time.time()
        try:
            with psycopg.connect(environment.postgres.url, autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'spanloom'"
                )
        except psycopg.OperationalError:
            return  # another fault has it down
        environment.record(self.name, at)


class PushAgain(Fault):
    """Push the jobs of all nodes of an execution by hand, 2 to 10 times each, wherever they stand."""

    name = "push-again"
    every = (0.05, 0.2)

    def inject(self, environment: Environment, chance: random.Random) -> None:
        execution_id = environment.recent_execution(chance)
        if execution_id is None:
            return
        at = time.time()
        try:
            runs = environment.engine.store.get_node_results(execution_id)
            now = datetime.now(UTC)
            jobs = [
                NodeJob(run.execution_id, run.node_id, run.item, run.node_type, "default", "normal", push, now)
                for run in runs
                for push in range(1, chance.randint(2, 10) + 1)
            ]
            chance.shuffle(jobs)
            environment.engine.queue.push(jobs)
        except (StoreUnavailable, QueueUnavailable):
            return  # another fault has it down
        environment.record(self.name, at)


def _once_jobs_wait(environment: Environment, script: str) -> float | None:
    """Run a script in Redis until it finds jobs waiting: those that workers take at once are not lost with it.

    Returns when that was; None if none came within a second, or Redis is away.
    """
    until = time.monotonic() + _AWAIT_SECONDS
    with Redis.from_url(environment.redis.url) as client:
        while time.monotonic() < until and not environment.over.is_set():
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
    RefuseWrites,
    OneOutOfMemory,
    PushAgain,
)
