"""`make soak`: moderate load for half an hour, a fault for one execution in a hundred, and whether anything grows.

Starts its own Redis and Postgres. Half of the workers meet the faults; the other half is measured, as is what the
servers keep. Ended executions are purged after a minute, as they would be after a month. Exits with 1 if something
grows, or if an execution failed or did not end.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
from redis.exceptions import RedisError

from chaos.environment import Environment
from chaos.faults import FAULTS, Fault, PushAgain
from chaos.growth import Sample, as_text, grown, take_sample
from chaos.load import acknowledged
from chaos.processes import ProcessGroup
from chaos.scenario import Load, injecting, set_up, wait_settled, worker_command
from chaos.workflows import WORKFLOWS
from spanloom.engine import ExecutionFilter, ExecutionStatus, QueueUnavailable, StoreUnavailable
from spanloom.stores import open_store
from spanloom.testing.servers import PostgresServer, RedisServer, postgres_server, redis_server

_DATABASE = "soak"
_FAULTS_PER_EXECUTION = 0.01
_KEEP_SECONDS = 60.0
_SAMPLES = 180  #: in all
_LEAST_SECONDS = 1.0  #: between two of them
_WORKERS = 2  #: that are measured, and as many that meet the faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load, print the table and return the exit code."""
    options = _parser().parse_args(arguments)
    seconds = options.minutes * 60
    load = Load(int(options.rate * seconds), rate=options.rate, workers=_WORKERS, lease_seconds=5.0)
    faults = _faults(options.rate)
    print(f"{options.minutes:g} minutes, {load.executions:,} executions, seed {options.seed} …", file=sys.stderr)
    with (
        tempfile.TemporaryDirectory(prefix="spanloom-soak-") as folder,
        redis_server() as redis,
        postgres_server() as postgres,
    ):
        url = _migrated(postgres)
        with set_up(load, Path(folder), url, redis, postgres) as environment:
            workers = ProcessGroup(
                "measured", _WORKERS, lambda _, name: worker_command(load, name), environment.variables, Path(folder)
            )
            workers.start()
            try:
                workers.wait_ready()
                with injecting(environment, faults, options.seed):
                    samples, failed = _watch(environment, workers, redis, postgres, seconds)
                wait_settled(environment, load)
                failed |= _failed(environment)
                still_open = _still_open(environment)
            finally:
                unclean = workers.close()
            started = len(acknowledged(Path(folder)))
            struck = len(environment.injections)
            missed = [
                *(f"{name} grows" for name in grown(samples)),
                *([f"{len(failed)} executions failed: {', '.join(sorted(failed)[:5])}"] if failed else []),
                *([f"{still_open} executions did not end"] if still_open else []),
                *(f"{process.name} ended with {code}" for process, code in unclean + workers.exits),
            ]
    print(as_text(samples))
    print(f"\n{started:,} executions were started and {struck} faults done.")
    print("\n".join(missed) if missed else "Nothing grows, and every execution ended as it should.")
    return 1 if missed else 0


def _watch(
    environment: Environment, workers: ProcessGroup, redis: RedisServer, postgres: PostgresServer, seconds: float
) -> tuple[list[Sample], set[str]]:
    """Measure and purge until all is started; return the samples, and the executions that should not have failed."""
    samples: list[Sample] = []
    failed: set[str] = set()
    pause = max(_LEAST_SECONDS, seconds / _SAMPLES)
    until = time.monotonic() + 2 * seconds
    while not environment.engines.done and time.monotonic() < until and not environment.over.wait(pause):
        try:
            failed |= _failed(environment)
            environment.engine.purge_executions(_KEEP_SECONDS)
            samples.append(take_sample(workers, redis, postgres, _DATABASE))
        except (StoreUnavailable, QueueUnavailable, RedisError, psycopg.Error):
            continue  # a fault has it down
    return samples, failed


def _failed(environment: Environment) -> set[str]:
    """Return the executions in the store that failed though they are not made to."""
    failed = environment.engine.store.list_executions(ExecutionFilter(status=ExecutionStatus.FAILED), limit=1000)
    meant = {one.id for one in WORKFLOWS if one.status is ExecutionStatus.FAILED}
    return {one.id for one in failed.items if one.workflow_id not in meant}


def _still_open(environment: Environment) -> int:
    counts = environment.engine.store.stats().executions
    return sum(number for status, number in counts.items() if not status.ended)


def _faults(rate: float) -> list[Fault]:
    """Return all faults of servers and processes, of which one is done for each hundredth execution."""
    kinds = [kind for kind in FAULTS if kind.together and kind is not PushAgain]
    every = len(kinds) / (rate * _FAULTS_PER_EXECUTION)
    return [kind(pace=every / statistics.fmean(kind.every)) for kind in kinds]


def _migrated(postgres: PostgresServer) -> str:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"create database {_DATABASE}")
        # A crash loses the statistics by which a vacuum is due, and here one comes within each minute.
        connection.execute("alter system set autovacuum_naptime = '5s'")
        connection.execute("select pg_reload_conf()")
    url = postgres.database_url(_DATABASE)
    store = open_store(url)
    store.migrate()
    store.close()
    return url


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="soak", description="Show that nothing grows.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="executions a second (default: 20)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the faults (default: drawn)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
