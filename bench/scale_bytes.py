"""What is taken up: memory of a worker process over many nodes, bytes in Redis and Postgres, dead tuples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import psutil
import psycopg
from redis import Redis
from scale_curve import Curve, Panel, Run, Table
from scale_load import W1, W3, engine_at, played, serving, worker_command
from systems import WORKERS
from workflows import workflow
from workloads import Workload

__all__ = ["growth", "measure_bytes", "measure_memory"]

_MIB = 2**20
_WARM_NODES = 20_000  #: after which memory is expected to stay
_PUBLISHED_SECONDS = 2.0  #: what an ended backend has counted is there
_SIZES = """
select c.relname, pg_relation_size(c.oid), pg_table_size(c.oid), pg_indexes_size(c.oid),
    pg_stat_get_dead_tuples(c.oid)
from pg_class c where c.relnamespace = 'spanloom'::regnamespace and c.relkind = 'r'
"""


def measure_memory(run: Run) -> Curve:
    """Measure the resident memory of one worker process while it runs chains and lone nodes, half of each."""
    steps, step = (10, 1_000) if run.quick else (20, 5_000)
    chains, lone = replace(W1, executions=step // 20), replace(W3, executions=step // 2)
    points: list[tuple[float, float]] = []
    with (
        run.ground.database() as url,
        engine_at(url, run.redis.url) as engine,
        serving(run, engine, url, worker_command("--processes", "1"), 1) as player,
    ):
        (worker,) = engine.store.list_workers()
        process = psutil.Process(worker.pid)
        points.append((0, process.memory_info().rss / _MIB))
        for number in range(1, steps + 1):
            if not run.begins(f"memory after {number * step:,} nodes"):
                break
            played(player, chains)
            played(player, lone)
            points.append((number * step, process.memory_info().rss / _MIB))
    warm = min(_WARM_NODES, steps * step // 5)
    after = [point for point in points if point[0] >= warm]
    half = [point for point in after if point[0] >= steps * step // 2]
    slopes = [growth(some) * 10_000 if len(some) > 1 else None for some in (after, half)]
    table = Table(
        ["worker process, MiB of resident memory", "figure"],
        [0, 2],
        [
            ("when it is ready", points[0][1]),
            (f"after {after[0][0]:,.0f} nodes: warm" if after else "warm", after[0][1] if after else None),
            (f"after {points[-1][0]:,.0f} nodes", points[-1][1]),
            ("growth in 10,000 nodes, once warm", slopes[0]),
            ("growth in 10,000 nodes, second half", slopes[1]),
        ],
    )
    notes = [
        "One process with its default settings; half of the nodes in chains of ten, half alone. Growth: the slope "
        f"of the line of least squares through samples every {step:,} nodes.",
        *run.notes,
    ]
    return Curve([table], [Panel("", "nodes run", "MiB, resident", {"worker process": points})], notes)


def growth(points: list[tuple[float, float]]) -> float:
    """Return the slope of the line of least squares through points."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def measure_bytes(run: Run) -> Curve:
    """Measure the bytes of a queued job in Redis, and bytes and dead tuples of a node in each table of Postgres."""
    jobs, executions = (1_000, 200) if run.quick else (10_000, 2_000)
    with psycopg.connect(run.postgres.url, autocommit=True) as connection:
        connection.execute("alter system set autovacuum = off")
        connection.execute("select pg_reload_conf()")
    queued = Table(["queued job", "bytes in Redis", "keys in Redis"], [0, 0, 2])
    for work in (W1, W3):
        if run.begins(f"queued jobs of {work.name}"):
            queued.rows.append((f"{work.name}: {work.graph}", *_queued(run, work, jobs)))
    tables = [
        _by_table(work.name, _stored(run, replace(work, executions=executions)))
        for work in (W1, W3)
        if run.begins(f"rows of {work.name}")
    ]
    notes = [
        f"Redis: used_memory and keys of {jobs:,} executions that were started and that no worker fetches. Postgres: "
        f"bytes and dead tuples a node after {executions:,} executions, without autovacuum, and dead tuples after a "
        "vacuum; tables that less than a byte a node is added to are in the sum alone.",
        *run.notes,
    ]
    return Curve([queued, *tables], [], notes)


def _by_table(workload: str, found: Mapping[str, Sequence[float]]) -> Table:
    """Return the table of what a node adds to each table of Postgres, the largest first."""
    columns = ("heap", "TOAST and maps", "indexes", "bytes in all", "dead tuples", "after a vacuum")
    table = Table([f"{workload}, a node", *columns], [0, 0, 0, 0, 0, 2, 2])
    for name in sorted(found, key=lambda name: -found[name][3]):
        if found[name][3] >= 1:
            table.rows.append((f"`{name}`", *found[name]))
    table.rows.append(("all tables", *(sum(column) for column in zip(*found.values(), strict=True))))
    return table


def _queued(run: Run, work: Workload, jobs: int) -> tuple[float, float]:
    with (
        run.ground.database() as url,
        engine_at(url, run.redis.url) as engine,
        Redis.from_url(run.redis.url) as redis,
    ):
        engine.register_workflow(workflow(work))
        engine.enqueue_workflows(work.name, [{"id": 7}] * 100)  # lists, scripts and buffers are there
        before, keys = _used(redis), redis.dbsize()
        for _ in range(jobs // 1_000):
            engine.enqueue_workflows(work.name, [{"id": 7}] * 1_000)
        return (_used(redis) - before) / jobs, (redis.dbsize() - keys) / jobs


def _used(redis: Redis) -> int:
    return int(redis.info("memory")["used_memory"])


def _stored(run: Run, work: Workload) -> dict[str, tuple[float, ...]]:
    """Run a workload on an empty store; return by table the bytes and dead tuples that a node of it adds."""
    with run.ground.database() as url:
        with (
            engine_at(url, run.redis.url) as engine,
            serving(run, engine, url, worker_command("--processes", str(WORKERS)), WORKERS) as player,
        ):
            empty = _sizes(url)
            played(player, work)
        before = _sizes(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("vacuum")
        dead = {name: figures[-1] for name, figures in _sizes(url).items()}
    return {
        name: tuple(
            figure / work.nodes
            for figure in (*(now - then for now, then in zip(figures, empty[name], strict=True)), dead[name])
        )
        for name, figures in before.items()
    }


def _sizes(url: str) -> dict[str, tuple[int, ...]]:
    """Return by table the bytes of heap, of TOAST and maps, of indexes, and of all, and the dead tuples."""
    time.sleep(_PUBLISHED_SECONDS)
    with psycopg.connect(url) as connection:
        return {
            name: (heap, table - heap, indexes, table + indexes, dead)
            for name, heap, table, indexes, dead in connection.execute(_SIZES)
        }
