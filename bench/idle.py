"""What workers cost that have nothing to do: CPU of each process, and round trips to Redis and Postgres.

One `spanloom worker` with its defaults, after a few executions, over Postgres; the servers count themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import psycopg
from click import command, option
from redis import Redis
from workflows import registry, workflow
from workloads import WORKLOADS

from spanloom.engine import WorkflowEngine
from spanloom.testing.servers import postgres_server, redis_server

_SETTLED_SECONDS = 65.0  #: after the last execution: longer than anything that happens because of it


@command()
@option("--seconds", default=60.0, show_default=True, help="For how long to count.")
@option("--processes", default=1, show_default=True, help="How many worker processes.")
def main(seconds: float, processes: int) -> None:
    """Print CPU and round trips a second of workers that have nothing to do."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        postgres = stack.enter_context(postgres_server())
        engine = WorkflowEngine(registry, postgres.url, redis.url)
        engine.store.migrate()
        stack.enter_context(engine)
        (single,) = (one for one in WORKLOADS if one.name == "W3")
        engine.register_workflow(workflow(single))
        environment = {"SPANLOOM_STORE_URL": postgres.url, "SPANLOOM_REDIS_URL": redis.url}
        worker = stack.enter_context(_worker(environment, processes))
        while len(engine.store.list_workers()) < processes:
            time.sleep(0.05)
        for execution_id in [engine.enqueue_workflow(single.name, {"id": 7}) for _ in range(20)]:
            engine.wait(execution_id, timeout=30)
        time.sleep(_SETTLED_SECONDS)
        client = stack.enter_context(Redis.from_url(redis.url))
        watcher = stack.enter_context(psycopg.connect(postgres.database_url("template1"), autocommit=True))
        before, began = (_cpu(worker), _reads(client), _transactions(watcher)), time.monotonic()
        time.sleep(seconds)
        after, taken = (_cpu(worker), _reads(client), _transactions(watcher)), time.monotonic() - began
    for pid, (name, used) in after[0].items():
        print(f"{name}: {(used - before[0][pid][1]) / taken:.2%} of a core")
    redis_trips = (after[1] - before[1] - 1) / taken / processes
    transactions = (after[2] - before[2]) / taken / processes
    print(
        f"a worker process, a second: {redis_trips:.2f} round trips to Redis, {transactions:.2f} Postgres transactions"
    )


@contextmanager
def _worker(environment: dict[str, str], processes: int) -> Iterator[psutil.Process]:
    started = subprocess.Popen(
        [sys.executable, "-m", "spanloom.cli", "worker", "app:engine", "--processes", str(processes)],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait()


def _cpu(supervisor: psutil.Process) -> dict[int, tuple[str, float]]:
    found = {}
    for number, process in enumerate([supervisor, *supervisor.children()]):
        times = process.cpu_times()
        found[process.pid] = (f"worker process {number}" if number else "supervisor", times.user + times.system)
    return found


def _reads(client: Redis) -> int:
    return int(client.info("stats")["total_reads_processed"])  # type: ignore[index]  # RESP2, not awaited


def _transactions(watcher: psycopg.Connection) -> int:
    row = watcher.execute(
        "select sum(xact_commit + xact_rollback) from pg_stat_database where datname = 'postgres'"
    ).fetchone()
    assert row is not None
    return int(row[0])


if __name__ == "__main__":
    main()
