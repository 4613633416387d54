"""What a store costs that has been in use for a month: reads, purges, and the workloads beside an empty store.

`bench/big_store.py --executions 1000000` fills a Postgres of its own (15 GB, in a directory that is deleted afterwards)
and prints Markdown. With `--directory` the server's files stay, and a second run finds them filled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import psycopg
from big_queries import time_reads
from big_rows import fill, register
from machine import machine, postgres_versions
from spanloom_systems import SpanloomPlayer
from systems import BenchFailed
from workers import worker_processes
from workflows import registry
from workloads import WORKLOADS, Workload, quick, warm_up

from spanloom.engine import ExecutionStatus, SpanloomError, WorkflowEngine
from spanloom.testing.servers import PostgresServer, RedisServer, postgres_server, redis_server

PARTS = ("reads", "sizes", "load", "purge")
_BIG, _EMPTY = "big", "little"
_FAST = ("max_wal_size = '8GB'", "autovacuum = off")  #: while it is filled
_PURGE_SECONDS = 5.0
_SIZES = """
select relname, greatest(reltuples, 1), pg_table_size(oid), pg_indexes_size(oid), pg_total_relation_size(oid)
from pg_class where relnamespace = 'spanloom'::regnamespace and relkind = 'r' and reltuples > 100 order by 5 desc
"""
_PURGED = (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill, measure, print, and return the exit code: 1 if a figure can't be trusted."""
    options = _parser().parse_args(arguments)
    try:
        with ExitStack() as stack:
            if options.directory is None:
                made = stack.enter_context(tempfile.TemporaryDirectory(prefix="spanloom-big-"))
                Path(made).chmod(0o755)
                options.directory = Path(made) / "postgres"
            _fill(options.directory, options.executions)
            server = stack.enter_context(postgres_server(options.directory))
            ground = machine() | postgres_versions(server)
            print(", ".join(f"{name} {value}" for name, value in ground.items()))
            for part in options.only:
                print(flush=True)
                globals()[f"_print_{part}"](server, options)
    except (BenchFailed, SpanloomError) as error:
        print(f"the bench failed: {error}", file=sys.stderr)
        return 1
    return 0


def _fill(directory: Path, executions: int) -> None:
    """Fill the big database and make the empty one, unless a run before this one has; without fsync, for speed."""
    with postgres_server(directory, fsync=False) as server, psycopg.connect(server.url, autocommit=True) as connection:
        found = {name for (name,) in connection.execute("select datname from pg_database")}
        if _BIG not in found:
            for setting in _FAST:
                connection.execute(f"alter system set {setting}".encode())
            connection.execute("select pg_reload_conf()")
            connection.execute(f"create database {_BIG}")
            with _engine(server.database_url(_BIG)) as engine:
                register(engine)
            fill(server.database_url(_BIG), executions, _progress)
            connection.execute("alter system reset all")


@contextmanager
def _engine(url: str, redis_url: str = "redis://127.0.0.1:1/0") -> Generator[WorkflowEngine]:
    engine = WorkflowEngine(registry, url, redis_url)
    try:
        engine.store.migrate()
        yield engine
    finally:
        engine.close()


@contextmanager
def _playing(url: str, redis: RedisServer) -> Generator[SpanloomPlayer]:
    """Run two worker processes with their default settings on a database that exists."""
    with _engine(url, redis.url) as engine, tempfile.TemporaryDirectory(prefix="spanloom-big-") as directory:
        engine.open()
        command = [sys.executable, "-m", "spanloom.cli", "worker", "app:engine"]
        environment = {"SPANLOOM_STORE_URL": url, "SPANLOOM_REDIS_URL": redis.url}
        with worker_processes(
            command, environment, Path(directory) / "workers.log", count_ready=lambda: len(engine.store.list_workers())
        ):
            yield SpanloomPlayer(engine)


def _print_reads(server: PostgresServer, options: argparse.Namespace) -> None:
    print("| read | by | ms p50 | ms p95 | found |\n|---|---|---|---|---|")
    with _engine(server.database_url(_BIG)) as engine:
        timings = []
        for timing in time_reads(engine.store):
            print(timing.line, flush=True)
            timings.append(timing)
    print(
        "\n| read | kinds | ms p50, median of kinds | ms p95, worst of kinds | over the limit |\n|---|---|---|---|---|"
    )
    for kind in dict.fromkeys(timing.kind for timing in timings):
        some = [timing for timing in timings if timing.kind == kind]
        over = sum(timing.p95 > timing.limit_ms for timing in some)
        median, worst = statistics.median(one.p50 for one in some), max(one.p95 for one in some)
        print(f"| {kind} | {len(some)} | {median:,.1f} | {worst:,.1f} | {over} |", flush=True)


def _print_sizes(server: PostgresServer, options: argparse.Namespace) -> None:
    print("| table | rows | bytes a row | bytes of indexes a row | bytes a node run |\n|---|---|---|---|---|")
    with psycopg.connect(server.database_url(_BIG)) as connection:
        (runs,) = connection.execute("select count(*) from spanloom.node_results").fetchone() or (1,)
        for name, rows, heap, indexes, total in connection.execute(_SIZES):
            print(f"| {name} | {rows:,.0f} | {heap / rows:,.0f} | {indexes / rows:,.0f} | {total / runs:,.0f} |")
        (size,) = connection.execute("select pg_database_size(current_database())").fetchone() or (0,)
        print(f"\n{size / 1e9:,.1f} GB in all: {size / runs:,.0f} bytes a node run.", flush=True)


def _print_load(server: PostgresServer, options: argparse.Namespace) -> None:
    """Run the workloads on both databases in turns, and print how the big one compares."""
    workloads = [quick(one) if options.quick else one for one in WORKLOADS]
    figures: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        _make_empty(server)
        players = {}
        for name in (_EMPTY, _BIG):
            redis = stack.enter_context(redis_server())
            players[name] = stack.enter_context(_playing(server.database_url(name), redis))
            for workload in workloads:
                players[name].measure(warm_up(workload))
        for number in range(options.rounds):
            for workload in workloads:
                for name, player in list(players.items())[:: 1 if number % 2 else -1]:
                    _progress(f"round {number + 1} of {options.rounds}: {workload.name}, {name} store")
                    figures.setdefault((workload.name, name), []).append(_measured(server, player, workload))
    print("| workload | empty | big | big to empty | rounds | Postgres us a node, empty | big | big to empty |")
    print("|---|---|---|---|---|---|---|---|")
    for workload in workloads:
        empty, big = figures[workload.name, _EMPTY], figures[workload.name, _BIG]
        ratios = [one[0] / other[0] for one, other in zip(big, empty, strict=True)]
        shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
        cells = [statistics.median(one[0] for one in some) for some in (empty, big)]
        spent = [statistics.median(one[1] for one in some) for some in (empty, big)]
        print(
            f"| {workload.name} ({workload.unit}) | {cells[0]:,.1f} | {cells[1]:,.1f}",
            f"| {statistics.median(ratios):.2f} | {shown} | {spent[0]:,.0f} | {spent[1]:,.0f}",
            f"| {spent[1] / spent[0]:.2f} |",
            flush=True,
        )


def _make_empty(server: PostgresServer) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"drop database if exists {_EMPTY} with (force)")
        connection.execute(f"create database {_EMPTY}")


def _measured(server: PostgresServer, player: SpanloomPlayer, workload: Workload) -> tuple[float, float]:
    """Return the workload's figure, and the microseconds of CPU that Postgres took for a node."""
    before = _server_seconds(server)
    figure = player.measure(workload)
    return figure, (_server_seconds(server) - before) / workload.nodes * 1e6


def _server_seconds(server: PostgresServer) -> float:
    """Return the CPU time of the server and of all its processes, those that have ended too."""
    parent = psutil.Process(server.pid)
    total = 0.0
    for process in (parent, *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
        if process is parent:
            total += times.children_user + times.children_system
    return total


def _print_purge(server: PostgresServer, options: argparse.Namespace) -> None:
    """Purge alone, and beside W3, and print both rates and what W3 lost."""
    url = server.database_url(_BIG)
    with redis_server() as redis, _playing(url, redis) as player, _engine(url, redis.url) as purger:
        w3 = next(one for one in WORKLOADS if one.name == "W3")
        player.measure(warm_up(w3))
        alone, seconds = _purge(purger, until=time.monotonic() + _PURGE_SECONDS), _PURGE_SECONDS
        print(f"| purged alone | {alone[0] / alone[1]:,.0f} executions/s |\n|---|---|")
        without, beside, purged = [], [], []
        for _ in range(options.rounds):
            without.append(_measured(server, player, w3)[0])
            stop = threading.Event()
            found: list[tuple[int, float]] = []
            thread = threading.Thread(target=lambda: found.append(_purge(purger, stop=stop)))  # noqa: B023
            thread.start()
            beside.append(player.measure(w3))
            stop.set()
            thread.join()
            purged.append(found[0][0] / found[0][1])
        ratios = [one / other for one, other in zip(beside, without, strict=True)]
        print(f"| purged beside W3 | {statistics.median(purged):,.0f} executions/s |")
        print(f"| W3 without a purge | {statistics.median(without):,.0f} nodes/s |")
        print(f"| W3 beside it | {statistics.median(beside):,.0f} nodes/s, {statistics.median(ratios):.2f} times |")
        del seconds


def _purge(
    engine: WorkflowEngine, until: float = float("inf"), stop: threading.Event | None = None
) -> tuple[int, float]:
    """Purge in batches, the oldest first, until a time or an event; return how many were deleted, in how long."""
    began, purged = time.monotonic(), 0
    before = datetime.now(UTC) - timedelta(hours=1)
    while time.monotonic() < until and not (stop is not None and stop.is_set()):
        answer = engine.store.purge_executions(ended_before=before, statuses=_PURGED)
        purged += answer.executions
        if not answer.more:
            raise BenchFailed("nothing is left to be purged; take more executions")
    return purged, time.monotonic() - began


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/big_store.py", description="Measure a big store on Postgres.")
    parser.add_argument("--executions", type=int, default=100_000, metavar="N", help="how many it holds (100,000)")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="keep the server's files here")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each workload (3)")
    parser.add_argument("--quick", action="store_true", help="a quarter of each workload")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=PARTS, metavar="PART,…", help=f"of {', '.join(PARTS)}"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
