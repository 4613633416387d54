"""`make bench-cpu`: what one node costs on Postgres: CPU by process and function, commits, WAL, Redis commands.

Two workers with their default settings, no-op nodes, fsync on, on servers of its own. CPU is counted from the first
enqueue to the last end that a caller can see.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
from machine import machine, postgres_versions, redis_version
from meter import FUNCTION, Counters, Meter
from report import write_block
from spanloom_systems import SPANLOOM_SYSTEMS, SpanloomPlayer
from systems import BenchFailed, Ground
from workloads import WORKLOADS, Workload, quick, warm_up

from spanloom.testing.servers import PostgresServer, RedisServer, postgres_server, redis_server
from spanloom.worker.process.log_setup import configure_logging

_WORKLOADS = tuple(work for work in WORKLOADS if not work.one_by_one)
_TIMES = 3  # so many times the executions of `make bench`: some seconds of each workload
_LEAST_US = 1.0  # the time of a function that has a row of its own
_ROWS = (
    ("workers", "workers, µs", 0),
    ("backends", "Postgres backends, µs", 0),
    ("postgres", "Postgres' other processes, µs", 0),
    ("redis", "Redis, µs", 0),
    ("starter", "what starts and waits, µs", 0),
    ("commits", "commits", 2),
    ("wal", "WAL, bytes", 0),
    ("commands", "Redis commands", 1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print medians over the rounds, a node."""
    parser = argparse.ArgumentParser(prog="bench/cpu.py", description="Count what a no-op node costs on Postgres.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each has its turn (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a twelfth of the work, one round: a look, no claim")
    parser.add_argument("--json", action="store_true", help="print JSON, with the figures of every round")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/performance.md, too")
    options = parser.parse_args(arguments)
    configure_logging("auto", logging.WARNING)
    workloads = [
        quick(work) if options.quick else replace(work, executions=work.executions * _TIMES) for work in _WORKLOADS
    ]
    rounds = 1 if options.quick else max(options.rounds, 1)
    try:
        with _running() as (player, redis, postgres):
            ground = machine() | postgres_versions(postgres) | redis_version(redis)
            found = _measure(workloads, rounds, player, redis, postgres)
    except BenchFailed as error:
        print(f"the bench failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped, and cleaned up", file=sys.stderr)
        return 130
    medians = {name: _medians(figures) for name, figures in found.items()}
    table = _as_markdown(ground, workloads, medians, rounds)
    if options.json:
        print(json.dumps({"ground": ground, "medians": medians, "rounds": found}, indent=2, ensure_ascii=False))
    else:
        print(table)
    if options.write:
        write_block(Path(__file__).parents[1] / "docs" / "performance.md", table, "bench-cpu")
    return 0


@contextmanager
def _running() -> Generator[tuple[SpanloomPlayer, RedisServer, PostgresServer]]:
    (system,) = (system for system in SPANLOOM_SYSTEMS if system.needs_postgres)
    with (
        tempfile.TemporaryDirectory(prefix="spanloom-bench-") as directory,
        redis_server() as redis,
        postgres_server() as postgres,
    ):
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("alter system set track_functions = 'all'")
            connection.execute("select pg_reload_conf()")
        with system.playing(Ground(redis, Path(directory), postgres)) as player:
            yield player, redis, postgres


def _measure(
    workloads: Sequence[Workload], rounds: int, player: SpanloomPlayer, redis: RedisServer, postgres: PostgresServer
) -> dict[str, list[Counters]]:
    """Return what a node of each workload used in each round."""
    found: dict[str, list[Counters]] = {work.name: [] for work in workloads}
    for work in _WORKLOADS:
        player.play(warm_up(work))
    with closing(Meter(redis, postgres)) as meter:
        for _ in range(rounds):
            for work in workloads:
                player.begin(work)
                used = meter.count(lambda work=work: player.run_all(work))
                player.check_completed(work)
                found[work.name].append({name: value / work.nodes for name, value in used.items()})
    return found


def _medians(figures: Sequence[Counters]) -> Counters:
    names = {name for one in figures for name in one}
    return {name: statistics.median(one.get(name, 0.0) for one in figures) for name in sorted(names)}


def _as_markdown(
    ground: Mapping[str, Any], workloads: Sequence[Workload], medians: Mapping[str, Counters], rounds: int
) -> str:
    def row(title: str, key: str, digits: int) -> str:
        return (
            f"| {title} | " + " | ".join(f"{medians[work.name].get(key, 0.0):,.{digits}f}" for work in workloads) + " |"
        )

    functions = {
        name
        for used in medians.values()
        for name, spent in used.items()
        if name.startswith(FUNCTION) and spent >= _LEAST_US
    }
    longest = sorted(functions, key=lambda name: -max(used.get(name, 0.0) for used in medians.values()))
    what = [f"{work.name}: {work.title}." for work in workloads]
    of = ", ".join(f"{name} {value}" for name, value in ground.items()) + "."
    return "\n".join(
        [
            "| a node | " + " | ".join(work.name for work in workloads) + " |",
            "|---|" + "---:|" * len(workloads),
            *(row(title, key, digits) for key, title, digits in _ROWS),
            *(row(f"of the backends: `{name.removeprefix(FUNCTION)}` itself, µs", name, 0) for name in longest),
            "",
            textwrap.fill(
                " ".join([*what, f"Medians of {rounds} round{'s' * (rounds > 1)}.", of]), 130, break_long_words=False
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
