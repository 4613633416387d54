"""Handlers that wait: nodes a second by concurrency and processes, beside what asyncio alone makes of the same waits.

Each node waits for 50 ms, in a sync or an async handler, as a call of some service would; or it computes for as long.
Workers over Postgres, or SQLite.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory

import psutil
from click import command, option

from spanloom.engine import Node, NodeRegistry, Workflow, WorkflowEngine
from spanloom.testing.servers import postgres_server, redis_server

SECONDS = 0.05

registry = NodeRegistry()


@registry.node("sync")
def waits() -> None:
    """Wait, in a thread."""
    time.sleep(SECONDS)


@registry.node("cpu")
def computes() -> None:
    """Compute for about as long, which holds the interpreter."""
    sum(number * number for number in range(500_000))


@registry.node("async")
async def awaits() -> None:
    """Wait, on the loop."""
    await asyncio.sleep(SECONDS)


engine = WorkflowEngine(registry) if "SPANLOOM_STORE_URL" in os.environ else None  # what the workers serve


@command()
@option("--nodes", default=1000, show_default=True, help="How many nodes a round.")
@option("--rounds", default=3, show_default=True, help="How often each is measured; the median is printed.")
@option("--processes", default="1,2", show_default=True, help="Numbers of worker processes.")
@option("--concurrency", default="4,16,100,1000", show_default=True, help="Numbers of slots a process.")
@option("--kinds", default="sync,async", show_default=True, help="Kinds of handlers.")
@option("--sqlite", is_flag=True, help="Keep the executions in SQLite instead of Postgres.")
def main(nodes: int, rounds: int, processes: str, concurrency: str, kinds: str, sqlite: bool) -> None:
    """Print nodes per second of handlers that wait for 50 ms."""
    cases = [
        (kind, slots, number)
        for kind in kinds.split(",")
        for slots in map(int, concurrency.split(","))
        for number in map(int, processes.split(","))
    ]
    measured: dict[tuple[str, int, int], list[tuple[float, ...]]] = {case: [] for case in cases}
    for turn in range(rounds):
        for kind, slots, number in cases if turn % 2 == 0 else cases[::-1]:
            rate, cpu = _measure(kind, number, slots, nodes, sqlite=sqlite)
            measured[kind, slots, number].append((rate, cpu, _alone(kind, nodes, number * slots)))
    print("handlers, processes x slots: nodes a second, of what Python alone makes of them; CPU of the workers a node")
    for (kind, slots, number), found in measured.items():
        rate, cpu, limit = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{kind}, {number} x {slots}: {rate:,.0f}, {rate / limit:.0%} of {limit:,.0f}; {cpu * 1e6:,.0f} us")


def _measure(kind: str, processes: int, slots: int, nodes: int, *, sqlite: bool) -> tuple[float, float]:
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        if sqlite:
            store_url = f"sqlite:///{stack.enter_context(TemporaryDirectory())}/spanloom.db"
        else:
            store_url = stack.enter_context(postgres_server()).url
        starting = WorkflowEngine(registry, store_url, redis.url)
        starting.store.migrate()
        stack.enter_context(starting)
        starting.register_workflow(Workflow(id=kind, nodes=(Node(id="a", type=kind),)))
        environment = {"SPANLOOM_STORE_URL": store_url, "SPANLOOM_REDIS_URL": redis.url}
        worker = stack.enter_context(_worker(environment, processes, slots))
        while len(starting.store.list_workers()) < processes:
            time.sleep(0.05)
        _run(starting, kind, 2 * processes * slots if slots < nodes else nodes)
        before, began = _cpu(worker), time.monotonic()
        _run(starting, kind, nodes)
        return nodes / (time.monotonic() - began), (_cpu(worker) - before) / nodes


def _run(starting: WorkflowEngine, kind: str, nodes: int) -> None:
    for execution_id in reversed(starting.enqueue_workflows(kind, [None] * nodes)):
        starting.wait(execution_id, timeout=120)


@contextmanager
def _worker(environment: dict[str, str], processes: int, slots: int) -> Iterator[psutil.Process]:
    started = subprocess.Popen(
        [
            *(sys.executable, "-m", "spanloom.cli", "worker", "waiting:engine"),
            *("--processes", str(processes), "--concurrency", str(slots), "--log-level", "warning"),
        ],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait()


def _cpu(supervisor: psutil.Process) -> float:
    return sum(one.cpu_times().user + one.cpu_times().system for one in supervisor.children())


def _alone(kind: str, nodes: int, slots: int) -> float:
    """Return the calls a second without Spanloom, so many at once: on one loop, in threads, or one after the other."""
    began = time.monotonic()
    if kind == "cpu":
        computes()
        return 1 / (time.monotonic() - began)
    if kind == "sync":
        with ThreadPoolExecutor(slots) as pool:
            for call in [pool.submit(waits) for _ in range(nodes)]:
                call.result()
        return nodes / (time.monotonic() - began)

    async def together() -> None:
        free = asyncio.Semaphore(slots)

        async def one() -> None:
            async with free:
                await awaits()

        await asyncio.gather(*(one() for _ in range(nodes)))

    asyncio.run(together())
    return nodes / (time.monotonic() - began)


if __name__ == "__main__":
    main()
