"""What a long run holds in memory, on disk and open, and whether it grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil
import psycopg
from redis import Redis

from chaos.processes import ProcessGroup
from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["MEASURES", "Measure", "Sample", "as_text", "grown", "take_sample"]

_MIB = 2**20
_TABLES = """
select coalesce(sum(n_dead_tup), 0)::float8, coalesce(sum(pg_total_relation_size(relid)), 0)::float8
from pg_stat_user_tables where schemaname = 'spanloom'
"""
_RUNS = "select count(*)::float8 from spanloom.node_results"

Sample = dict[str, float]


@dataclass(frozen=True)
class Measure:
    """One thing that is measured; `slack` is what it may differ by between the parts of a run, beside a tenth."""

    name: str
    unit: str
    slack: float


MEASURES = (
    Measure("worker memory", "MiB", 4.0),
    Measure("worker descriptors", "", 4.0),
    Measure("worker threads", "", 2.0),
    Measure("Redis memory", "MiB", 2.0),
    Measure("Redis keys", "", 100.0),
    Measure("dead tuples", "", 10_000.0),
    Measure("tables", "MiB", 16.0),
    Measure("bytes per node run", "B", 500.0),
)
_TENTH = 1.1


def take_sample(workers: ProcessGroup, redis: RedisServer, postgres: PostgresServer, database: str) -> Sample:
    """Measure all. Raises RedisError or psycopg.Error while a server is away.

    Of the workers it is the mean of what each holds for itself (memory) or has open.
    """
    used = [_of_process(process.popen.pid) for process in workers.processes if process.alive]
    with Redis.from_url(redis.url) as client:
        memory, keys = client.info("memory")["used_memory"], client.dbsize()
    with psycopg.connect(postgres.database_url(database), autocommit=True) as connection:
        (dead, size) = connection.execute(_TABLES).fetchone() or (0.0, 0.0)
        (runs,) = connection.execute(_RUNS).fetchone() or (0.0,)
    own, descriptors, threads = (statistics.fmean(column) for column in zip(*used, strict=True))
    values = (own, descriptors, threads, memory / _MIB, keys, dead, size / _MIB, size / max(runs, 1.0))
    return dict(zip((measure.name for measure in MEASURES), values, strict=True))


def grown(samples: Sequence[Sample]) -> list[str]:
    """Return the measures whose median in the last third of a run is above that of the second."""
    return [one.name for one in MEASURES if _after(samples, one) > _before(samples, one) * _TENTH + one.slack]


def as_text(samples: Sequence[Sample]) -> str:
    """Return a table of the medians of each third of a run, and of the highest value."""
    third = len(samples) // 3
    grows = set(grown(samples))
    lines = [f"{'':22}{'first third':>14}{'second':>14}{'last':>14}{'highest':>14}"]
    for one in MEASURES:
        values = [sample[one.name] for sample in samples]
        shown = (statistics.median(values[:third]), _before(samples, one), _after(samples, one), max(values))
        cells = "".join(f"{value:>14,.1f}" for value in shown)
        lines.append(
            f"{f'{one.name}, {one.unit}'.rstrip(', '):22}{cells}  {'GROWS' if one.name in grows else ''}".rstrip()
        )
    return "\n".join(lines)


def _before(samples: Sequence[Sample], measure: Measure) -> float:
    third = len(samples) // 3
    return statistics.median(sample[measure.name] for sample in samples[third : 2 * third])


def _after(samples: Sequence[Sample], measure: Measure) -> float:
    return statistics.median(sample[measure.name] for sample in samples[2 * (len(samples) // 3) :])


def _of_process(pid: int) -> tuple[float, float, float]:
    process = psutil.Process(pid)
    with suppress(psutil.AccessDenied):  # macOS shows what is a process' own to root only
        return process.memory_full_info().uss / _MIB, process.num_fds(), process.num_threads()
    return process.memory_info().rss / _MIB, process.num_fds(), process.num_threads()
