"""How long it takes until all open node runs are back on their list after Redis lost everything.

Starts executions, empties Redis, and lets sweepers work until the store owes Redis nothing. Each job must be back once.
`bench/requeue.py [--runs N] [--sweepers N] [--only postgres,sqlite]`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import redis
from machine import machine
from systems import BenchFailed
from workflows import registry

from spanloom.engine import Node, Workflow, WorkflowEngine
from spanloom.stores import open_store
from spanloom.testing.servers import postgres_server, redis_server
from spanloom.worker import WorkerOptions
from spanloom.worker.process.log_setup import configure_logging
from spanloom.worker.service import WorkerEvents
from spanloom.worker.sweeper import Sweeper

STORES = ("postgres", "sqlite")
LIST = "spanloom.default"


def requeue(store_url: str, redis_url: str, runs: int, sweepers: int) -> tuple[float, float]:
    """Return the seconds that starting `runs` node runs took, and those until all were back after a flush."""
    with WorkflowEngine(registry, store_url, redis_url) as engine, redis.Redis.from_url(redis_url) as client:
        engine.register_workflow(Workflow(id="one", nodes=[Node(id="a", type="nothing")]))
        started = time.perf_counter()
        engine.enqueue_workflows("one", [None] * runs)
        starting = time.perf_counter() - started
        client.flushall()
        emptied = time.perf_counter()
        threads = [threading.Thread(target=_sweep, args=(store_url, redis_url)) for _ in range(sweepers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - emptied
        jobs = client.lrange(engine.queue.keys.queue(LIST), 0, -1)
        if len(jobs) != runs or len(set(jobs)) != runs:
            raise BenchFailed(f"{len(jobs):,} jobs are back, {len(set(jobs)):,} different ones, of {runs:,}")
    return starting, seconds


def _sweep(store_url: str, redis_url: str) -> None:
    with WorkflowEngine(registry, store_url, redis_url) as engine:
        Sweeper(engine.store, engine.queue, engine.epoch, [LIST], WorkerOptions(), WorkerEvents()).sweep()


def main() -> int:
    """Measure each store, and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--sweepers", type=int, default=2)
    parser.add_argument("--only", default=",".join(STORES))
    options = parser.parse_args()
    configure_logging("console")
    logging.getLogger().setLevel(logging.WARNING)
    print(f"{machine()}; {options.runs:,} open node runs, {options.sweepers} sweepers")
    for kind in options.only.split(","):
        with ExitStack() as stack:
            queue = stack.enter_context(redis_server())
            if kind == "postgres":
                url = stack.enter_context(postgres_server()).url
                store = open_store(url)
                store.migrate()
                store.close()
            else:
                url = f"sqlite:///{Path(stack.enter_context(tempfile.TemporaryDirectory()), 'bench.db')}"
            starting, seconds = requeue(url, queue.url, options.runs, options.sweepers)
            print(f"{kind}: started in {starting:.1f} s; all back, each once, {seconds:.1f} s after Redis was emptied")
    return 0


if __name__ == "__main__":
    sys.exit(main())
