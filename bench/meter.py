"""What a run has used so far: CPU time by kind of process, and what Postgres and Redis count for themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import psutil
import psycopg
from redis import Redis

from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["FUNCTION", "Counters", "Meter"]

#: CPU time in microseconds, or how many, by what it is of. What begins with FUNCTION is a function of Postgres.
Counters = dict[str, float]

FUNCTION = "function "
_PUBLISHED_SECONDS = 11.0  #: a backend that idles publishes its counters after ten
_COMMITS = "select xact_commit from pg_stat_database where datname = current_database()"
_FUNCTIONS = "select funcname, sum(self_time) * 1000 from pg_stat_user_functions group by funcname"
_BACKENDS = "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
_WAL = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"


class Meter:
    """The counters of a system with two servers, whose workers are processes below this one.

    Made while its workers idle: it first counts what they do while they do, and takes twenty seconds for that.
    """

    def __init__(self, redis_server: RedisServer, postgres_server: PostgresServer) -> None:
        self._redis = Redis.from_url(redis_server.url)
        self._postgres = psycopg.connect(postgres_server.database_url("bench"), autocommit=True)
        self._redis_server = redis_server
        self._postgres_server = postgres_server
        time.sleep(_PUBLISHED_SECONDS)
        before = self._published()
        time.sleep(_PUBLISHED_SECONDS)
        self._idle = _difference(before, self._published())

    def close(self) -> None:
        """Close its connections."""
        self._redis.close()
        self._postgres.close()

    def count(self, run: Callable[[], None]) -> Counters:
        """Return what `run` uses.

        What Postgres counts is published late: waits for that, and takes off what idle workers do meanwhile.
        """
        published, used = self._published(), self._used()
        run()
        used = _difference(used, self._used())
        time.sleep(_PUBLISHED_SECONDS)
        return used | _difference(self._idle, _difference(published, self._published()))

    def _used(self) -> Counters:
        backends = {int(pid) for (pid,) in self._postgres.execute(_BACKENDS)}
        postgres = _below(self._postgres_server.pid)
        own = psutil.Process()
        servers = postgres | self._postgres_server.pids | self._redis_server.pids
        (wal,) = self._postgres.execute(_WAL).fetchone() or (0,)
        return {
            "workers": _cpu(_below(own.pid) - servers),
            "backends": _cpu(backends),
            "postgres": _cpu(postgres - backends),
            "redis": _cpu({self._redis_server.pid}),
            "starter": _cpu({own.pid}),
            "wal": float(wal),
            "commands": float(self._redis.info("stats")["total_commands_processed"]),
        }

    def _published(self) -> Counters:
        (commits,) = self._postgres.execute(_COMMITS).fetchone() or (0,)
        functions = self._postgres.execute(_FUNCTIONS).fetchall()
        return {"commits": float(commits), **{FUNCTION + name: float(spent) for name, spent in functions}}


def _below(pid: int) -> set[int]:
    return {process.pid for process in psutil.Process(pid).children(recursive=True)}


def _cpu(pids: Iterable[int]) -> float:
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue  # between the list and the look
        total += times.user + times.system
    return total * 1e6


def _difference(before: Counters, after: Counters) -> Counters:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
