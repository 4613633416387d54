"""What a handler in a process of its own costs: time per no-op node in threads and in processes, memory per process.

One worker with four slots and an in-memory store runs chains of ten nodes, by turns with one kind of handler and with
the other.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from spanloom.engine import Node, NodeRegistry, Workflow, WorkflowEngine
from spanloom.testing.servers import redis_server
from spanloom.worker.process.log_setup import configure_logging

CHAINS, LENGTH, ROUNDS, SLOTS = 40, 10, 5, 4
_REDIS = "ISOLATION_REDIS_URL"

registry = NodeRegistry()


@registry.node("thread")
def in_a_thread() -> int:
    """Return this process' id."""
    return os.getpid()


@registry.node("process", executor="process")
def in_a_process() -> int:
    """Return this process' id."""
    return os.getpid()


engine = WorkflowEngine(registry, "memory://", os.environ.get(_REDIS, "redis://localhost"))


def main() -> int:
    """Print the median time per node of each kind, the time of a process' start, and its memory."""
    with _redis():
        import isolation  # under its own name, by which the processes import it as well

        return isolation.measure()


def measure() -> int:
    """Measure with the engine of this module."""
    for kind in ("thread", "process"):
        nodes = [Node(id=f"n{place}", type=kind, inputs=[f"n{place - 1}"] if place else []) for place in range(LENGTH)]
        engine.register_workflow(Workflow(id=kind, nodes=tuple(nodes)))
    taken: dict[str, list[float]] = {"thread": [], "process": []}
    with engine, engine.start_workers(1, concurrency=SLOTS, tasks_per_process=1_000_000):
        began = time.monotonic()
        pid = engine.run("process", timeout=120)
        first = time.monotonic() - began
        memory = psutil.Process(pid).memory_full_info().uss / 2**20
        for _ in range(ROUNDS + 1):
            for kind, times in taken.items():
                times.append(_turn(kind))
    for kind, times in taken.items():
        print(f"{kind}: {statistics.median(times[1:]) * 1e6:,.0f} us a node")  # the first round starts processes
    print(f"first node in a process of its own: {first:.1f} s; memory of that process: {memory:.0f} MB")
    return 0


def _turn(kind: str) -> float:
    began = time.monotonic()
    for execution_id in [engine.enqueue_workflow(kind) for _ in range(CHAINS)]:
        engine.wait(execution_id, timeout=120)
    return (time.monotonic() - began) / (CHAINS * LENGTH)


@contextmanager
def _redis() -> Iterator[None]:
    with redis_server() as redis:
        os.environ[_REDIS] = redis.url
        yield


if __name__ == "__main__":
    configure_logging("auto", logging.WARNING)
    sys.exit(main())
