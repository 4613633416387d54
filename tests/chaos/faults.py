"""The faults: each does one kind of harm again and again until the scenario is over, and then leaves all healed."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
from redis import Redis
from redis.exceptions import RedisError

from chaos.environment import Environment
from chaos.fault import Fault
from chaos.refusals import OneOutOfMemory, RefuseWrites
from chaos.sabotage import SABOTAGE
from spanloom.engine import QueueUnavailable, StoreUnavailable
from spanloom.engine.queue.keys import RedisKeys
from spanloom.engine.store.requests import NodeJob

__all__ = [
    "FAULTS",
    "Fault",
    "FlushRedis",
    "ForbidScripts",
    "KillEngines",
    "KillRedis",
    "KillWorkers",
    "OneOutOfMemory",
    "PushAgain",
    "RefuseRedis",
    "RefuseWrites",
    "RestartPostgres",
    "SpoilKeys",
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
        return environment.claims


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
        return environment.claims

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


class RefuseRedis(Fault):
    """Let Redis answer with errors for a while: it is out of memory, or a replica of a primary that is not there."""

    name = "refuse-redis"
    every = (2.0, 4.0)

    def __init__(self, *, pace: float = 1.0, lasts: tuple[float, float] = (0.5, 5.0)) -> None:
        super().__init__(pace=pace)
        self.lasts = lasts
        self._times = 0

    def inject(self, environment: Environment, chance: random.Random) -> None:
        begin, end = self.refusals[self._times % len(self.refusals)]
        self._times += 1
        _once_jobs_wait(environment, _LOOK)
        at = time.time()
        with Redis.from_url(environment.redis.url) as client:
            try:
                for command in begin:
                    client.execute_command(*command)
                environment.over.wait(chance.uniform(*self.lasts))
            except RedisError:
                return  # another fault has it down, and it comes back as new
            finally:
                _undo(client, end)
        environment.record(self.name, at)

    refusals: tuple[tuple[Sequence[tuple[str, ...]], tuple[str, ...]], ...] = (
        (
            [("CONFIG", "SET", "maxmemory-policy", "noeviction"), ("CONFIG", "SET", "maxmemory", "1")],
            ("CONFIG", "SET", "maxmemory", "0"),
        ),
        ([("REPLICAOF", "127.0.0.1", "1")], ("REPLICAOF", "NO", "ONE")),
    )


class ForbidScripts(RefuseRedis):
    """Take the right to run scripts from everyone for a while."""

    name = "forbid-scripts"
    refusals = (
        ([("ACL", "SETUSER", "default", "-@scripting")], ("ACL", "SETUSER", "default", "+@scripting")),
        ([("ACL", "SETUSER", "default", "-evalsha", "-blpop")], ("ACL", "SETUSER", "default", "+@all")),
    )


class SpoilKeys(Fault):
    """Write garbage to keys, lists and jobs of the namespace, in turn."""

    name = "spoil-keys"
    every = (0.3, 0.8)

    def __init__(self, *, pace: float = 1.0) -> None:
        super().__init__(pace=pace)
        self._times = 0

    def inject(self, environment: Environment, chance: random.Random) -> None:
        if _once_jobs_wait(environment, _LOOK) is None:
            return  # before the load has begun nothing could stand still
        spoil = _SPOILS[self._times % len(_SPOILS)]
        self._times += 1
        at = time.time()
        with Redis.from_url(environment.redis.url) as client:
            try:
                spoil(client)
            except RedisError:
                return  # another fault has it down
        environment.record(self.name, at)


def _undo(client: Redis, command: tuple[str, ...]) -> None:
    with contextlib.suppress(RedisError):  # it was killed, and comes back as new
        client.execute_command(*command)


def _push_garbage(client: Redis, job_id: bytes, data: bytes) -> None:
    client.hset(b"rq:job:" + job_id, mapping={"data": data})
    client.lpush(_LIST, job_id)


def _replace_key(client: Redis, key: str) -> None:
    client.delete(key)
    client.hset(key, "a", "b")


_SPOILS: tuple[Callable[[Redis], object], ...] = (
    lambda client: client.set("spanloom:epoch", b"\xff garbage"),
    lambda client: client.sadd("rq:queues", b"rq:queue:spanloom.\xff", b"rq:queue:spanloom.a[/]b"),
    lambda client: _replace_key(client, _LIST),
    lambda client: _push_garbage(client, b"\x1b]0;title\x07", b"{"),
    lambda client: _push_garbage(client, b"huge", b"x" * 5_000_000),
    lambda client: client.lpush(_LIST, "nothing", b"\xff" * 10_000),
    lambda client: _replace_key(client, "rq:wip:spanloom.default"),
    lambda client: _replace_key(client, "spanloom:epoch"),
    lambda client: client.set(f"{_LIST}.high", "a"),
    lambda client: _replace_key(client, "rq:failed:spanloom.default"),
)


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
        return environment.claims * environment.workers.count  # the leases of all may lapse meanwhile


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
    RefuseRedis,
    ForbidScripts,
    SpoilKeys,
    RestartPostgres,
    TerminateBackends,
    RefuseWrites,
    OneOutOfMemory,
    PushAgain,
    *SABOTAGE,
)
