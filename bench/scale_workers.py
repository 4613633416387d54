"""A hundred workers on one Postgres and one Redis: nodes a second, connections, CPU by process, what limits first."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Self

import psutil
import psycopg
from meter import Counters, Meter
from redis import Redis
from scale_curve import Curve, Panel, Run, Table
from scale_load import SLOTS, W1, W3, engine_at, played, serving, sized
from workloads import Workload

from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["Waits", "first_limit", "measure_workers"]

_PROCESSES = 5
_SAMPLE_SECONDS = 0.1
_FULL = 0.85  #: of a core, or of all of them
_SAMPLE = """
select coalesce(wait_event_type, ''), coalesce(wait_event, ''), count(*)
from pg_stat_activity where datname = 'bench' and (state = 'active' or state like 'idle in transaction%') group by 1, 2
"""
_CONNECTIONS = "select count(*) from pg_stat_activity where datname = 'bench'"
_PARTS = {
    "workers": "worker processes",
    "backends": "Postgres backends",
    "postgres": "Postgres' other processes",
    "redis": "Redis",
    "starter": "program that starts and waits",
}
_THROUGHPUT = {
    "workers": 0,
    "workload": 0,
    "nodes/s": 0,
    "connections to Postgres": 0,
    "to Redis": 0,
    "commits a node": 2,
    "limits first": 0,
}
_SPENT = {
    "workers": 0,
    "workload": 0,
    "CPU a node, µs: workers": 0,
    "backends": 0,
    "Redis": 0,
    "starter": 0,
    "cores busy, %": 0,
    "idle, %": 0,
    "backends at work": 1,
    "in a commit": 1,
    "waiting for locks": 1,
}
_COMMIT = (
    "LWLock WALWrite",
    "IO WalSync",
    "IO WalWrite",
    "IO WALSync",
    "IO WALWrite",
)  #: one writes, others wait for it


class Waits:
    """What the backends of the database `bench` do, looked at every 100 ms while the block lasts."""

    def __init__(self, postgres: PostgresServer, redis: RedisServer) -> None:
        self._postgres = psycopg.connect(postgres.url, autocommit=True)
        self._redis = Redis.from_url(redis.url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._samples = 0
        self._seen: Counter[tuple[str, str]] = Counter()
        self.postgres_connections = 0  #: at most
        self.redis_connections = 0  #: at most

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._postgres.close()
        self._redis.close()

    @property
    def found(self) -> dict[str, float]:
        """How many backends on average did or waited for what, such as `at work` or `LWLock WALWrite`."""
        return {
            f"{kind} {event}".strip() or "at work": number / max(self._samples, 1)
            for (kind, event), number in self._seen.most_common()
        }

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._samples += 1
            for kind, event, number in self._postgres.execute(_SAMPLE):
                self._seen[kind, event] += number
            (connections,) = self._postgres.execute(_CONNECTIONS).fetchone() or (0,)
            self.postgres_connections = max(self.postgres_connections, connections)
            clients = int(self._redis.info("clients")["connected_clients"]) - 1
            self.redis_connections = max(self.redis_connections, clients)


def measure_workers(run: Run) -> Curve:
    """Measure the workloads under more and more workers, of few processes."""
    numbers = (1, 10) if run.quick else (1, 10, 25, 50, 100)
    tables = [Table(list(columns), list(columns.values())) for columns in (_THROUGHPUT, _SPENT)]
    series: dict[str, list[tuple[float, float]]] = {"W1": [], "W3": []}
    spent: dict[str, list[tuple[float, float]]] = {"workers": [], "backends": [], "Redis": []}
    seen = []
    for number in numbers:
        if not run.begins(f"{number} workers"):
            continue
        processes = min(number, _PROCESSES)
        command = [sys.executable, "simulated.py", str(number // processes)]
        with (
            run.ground.database() as url,
            engine_at(url, run.redis.url) as engine,
            serving(run, engine, url, command, number, copies=processes) as player,
            closing(_Idle(run)) as idle,
        ):
            for work in (W1, W3):
                wanted = sized(player, work, run.point_seconds)
                if wanted.executions < number * SLOTS:
                    wanted = replace(wanted, executions=number * SLOTS)
                point = _Point(wanted, run, processes, idle.busy)
                used = idle.meter.count(partial(point.measure, partial(played, player, wanted)))
                for table, cells in zip(tables, (point.throughput(used), point.spent(used)), strict=True):
                    table.rows.append((number, work.name, *cells))
                series[work.name].append((number, wanted.nodes / point.seconds))
                seen.append(f"{number} worker{'s' * (number > 1)}, {work.name}: {point.waits_shown}")
                if work is W3:
                    cpu = (("workers", "workers"), ("backends", "backends"), ("Redis", "redis"))
                    for name, part in cpu:
                        spent[name].append((number, used[part] / wanted.nodes))
    notes = [
        f"Simulated workers: {_PROCESSES} processes (one for one worker) have a fifth of them each. A worker has an "
        "engine of its own, so its own connections, lease, heartbeat, sweep, fetch loop and 8 slots, as a process has; "
        "those of a process share its interpreter. Connections: the most at a time, with those of the starter, the "
        "program that starts and waits. Cores busy: all of them, with other programs. Idle: before a start. "
        "Backends: how many on average, by pg_stat_activity every 100 ms; in a commit: one writes the log, others wait "
        "for it. Every slot has an execution of W1 at least.",
        f"The most frequent waits, in backends: {'; '.join(seen)}.",
        *run.notes,
    ]
    panels = [
        Panel("throughput", "workers", "nodes/s", series, log_x=True),
        Panel("CPU of W3", "workers", "µs a node", spent, log_x=True),
    ]
    return Curve(tables, panels, notes)


class _Idle:
    """A meter, and the part of the cores that was busy while it was made: for twenty seconds workers have idled."""

    def __init__(self, run: Run) -> None:
        before = psutil.cpu_times()
        self.meter = Meter(run.redis, run.postgres)
        self.busy = _busy(before, psutil.cpu_times())

    def close(self) -> None:
        """Close its connections."""
        self.meter.close()


class _Point:
    """One workload under so many workers, and what was seen of the servers and the cores meanwhile."""

    def __init__(self, workload: Workload, run: Run, processes: int, idle: float) -> None:
        self._workload = workload
        self._run = run
        self._processes = processes
        self._idle = idle
        self.seconds = 0.0
        self.busy = 0.0

    def measure(self, play: Callable[[], float]) -> None:
        """Run it, by a call that returns its seconds."""
        before = psutil.cpu_times()
        with Waits(self._run.postgres, self._run.redis) as self._waits:
            self.seconds = play()
        self.busy = _busy(before, psutil.cpu_times())

    @property
    def waits_shown(self) -> str:
        """The most frequent waits of backends."""
        shown = [f"{name} {number:.1f}" for name, number in self._waits.found.items() if name != "at work"]
        return ", ".join(shown[:3]) or "none"

    def throughput(self, used: Counters) -> tuple[str | float, ...]:
        """Return its cells of the table of throughput."""
        return (
            self._workload.nodes / self.seconds,
            self._waits.postgres_connections,
            self._waits.redis_connections,
            used["commits"] / self._workload.nodes,
            first_limit(
                self.busy,
                {part: used[part] / 1e6 / self.seconds for part in _PARTS},
                self._processes,
                self._waits.found,
            ),
        )

    def spent(self, used: Counters) -> tuple[str | float, ...]:
        """Return its cells of the table of CPU and waits."""
        waits = self._waits.found
        locks = [name for name in waits if name.startswith(("Lock ", "LWLock ")) and name not in _COMMIT]
        return (
            *(used[part] / self._workload.nodes for part in ("workers", "backends", "redis", "starter")),
            self.busy * 100,
            self._idle * 100,
            waits.get("at work", 0.0),
            sum(waits.get(name, 0.0) for name in _COMMIT),
            sum(waits[name] for name in locks),
        )


def first_limit(busy: float, cores: Mapping[str, float], processes: int, waits: Mapping[str, float]) -> str:
    """Return what is full: all cores, one core of what has one thread, or else what most backends wait for.

    `busy` is the part of all cores that is, `cores` the cores that each part uses, `waits` the backends that do what.
    """
    if busy >= _FULL:
        total = sum(cores.values()) or 1.0
        most = max(cores, key=lambda part: cores[part])
        return f"the {os.cpu_count()} cores: {_PARTS[most]} have {cores[most] / total:.0%} of ours"
    if cores["redis"] >= _FULL:
        return "Redis: its one thread"
    if cores["starter"] >= _FULL:
        return "the program that starts and waits"
    if cores["workers"] / processes >= _FULL:
        return "the worker processes: a core each"
    waiting = {name: number for name, number in waits.items() if name.startswith(("Lock", "LWLock", "IO"))}
    most = max(waiting, key=lambda name: waiting[name], default="")
    if most and waiting[most] > waits.get("at work", 0.0):
        return f"backends wait: {most}"
    return "nothing is full: round trips"


def _busy(before: object, after: object) -> float:
    spent = {name: getattr(after, name) - getattr(before, name) for name in after._fields}  # type: ignore[attr-defined]
    spent.pop("guest", None)  # they are in user and nice
    spent.pop("guest_nice", None)
    idle = spent.get("idle", 0.0) + spent.get("iowait", 0.0)
    return 1 - idle / max(sum(spent.values()), time.get_clock_info("perf_counter").resolution)
