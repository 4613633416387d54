"""What a node costs in one workflow of 10,000 nodes, against the same number of nodes in many small workflows.

Each node of a grid waits for the one before it in its row and the one before it in its column. Large and small take
turns on the same two workers, so that what else the machine does meets both. `bench/grid.py [--rounds N] [--only …]`.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from machine import machine, postgres_versions, redis_version
from systems import END_SECONDS, WORKERS, BenchFailed, Ground
from workers import worker_processes
from workflows import registry

from spanloom.engine import ExecutionStatus, Node, NodeStatus, SpanloomError, Workflow, WorkflowEngine
from spanloom.testing.servers import postgres_server, redis_server
from spanloom.worker.process.log_setup import configure_logging

STORES = ("postgres", "sqlite", "memory")
AIM = 1.5  #: what a node of the large grid may cost, in nodes of the small one


@dataclass(frozen=True, slots=True)
class Grid:
    """A square of no-op nodes, run `executions` times at once."""

    side: int
    executions: int

    @property
    def title(self) -> str:
        return f"{self.executions:,} of {self.side}x{self.side}"

    @property
    def nodes(self) -> int:
        return self.side**2 * self.executions

    @property
    def workflow(self) -> Workflow:
        nodes = [
            Node(
                id=f"r{row}c{column}",
                type="nothing",
                inputs=[f"r{row - 1}c{column}"] * (row > 0) + [f"r{row}c{column - 1}"] * (column > 0),
            )
            for row in range(self.side)
            for column in range(self.side)
        ]
        return Workflow(id=f"grid-{self.side}", nodes=nodes)


LARGE, SMALL = Grid(100, 1), Grid(10, 100)


def measure(engine: WorkflowEngine, grid: Grid) -> float:
    """Run a grid, check that each node was run once, and return the microseconds that a node took."""
    workflow_id = grid.workflow.id
    started = time.perf_counter()
    ids = engine.enqueue_workflows(workflow_id, [None] * grid.executions)
    ends = [engine.wait(execution_id, END_SECONDS) for execution_id in reversed(ids)]
    seconds = time.perf_counter() - started
    if wrong := [end.id for end in ends if end.status is not ExecutionStatus.COMPLETED]:
        raise BenchFailed(f"{grid.title}: {len(wrong):,} executions did not complete, such as {wrong[0]}")
    expected = {(NodeStatus.COMPLETED, 1, 0): grid.side**2}
    for execution_id in ids:
        runs = engine.store.get_node_results(execution_id)
        found = Counter((run.status, run.attempt, run.recovery_attempts) for run in runs)
        if found != expected:
            raise BenchFailed(f"{grid.title}: execution {execution_id} did not run each node once: {dict(found)}")
    return seconds / grid.nodes * 1e6


@contextmanager
def running(store: str, ground: Ground) -> Generator[WorkflowEngine]:
    """Run an engine on a new store of this kind, with its workers, while the block lasts."""
    with ExitStack() as stack:
        store_url = {"memory": "memory://", "sqlite": f"sqlite:///{ground.directory}/spanloom.db"}.get(store)
        if store_url is None:
            store_url = stack.enter_context(_database(ground))
        engine = WorkflowEngine(registry, store_url, ground.redis.url)
        stack.callback(engine.close)
        engine.store.migrate()
        engine.open()
        for grid in (LARGE, SMALL):
            engine.register_workflow(grid.workflow)
        if store == "memory":
            stack.enter_context(engine.start_workers(WORKERS))
        else:
            command = [sys.executable, "-m", "spanloom.cli", "worker", "app:engine"]
            environment = {"SPANLOOM_STORE_URL": store_url, "SPANLOOM_REDIS_URL": ground.redis.url}
            stack.enter_context(
                worker_processes(
                    command, environment, ground.log_path, count_ready=lambda: len(engine.store.list_workers())
                )
            )
        yield engine


@contextmanager
def _database(ground: Ground) -> Generator[str]:
    assert ground.postgres is not None
    with psycopg.connect(ground.postgres.url, autocommit=True) as connection:
        connection.execute("create database grid")
        try:
            yield ground.postgres.database_url("grid")
        finally:
            connection.execute("drop database grid with (force)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench, print its table and return the exit code: 1 if a figure can't be trusted."""
    options = _parser().parse_args(arguments)
    configure_logging("auto", logging.WARNING)  # of the workers in this process; stdout is for the report
    try:
        with ExitStack() as stack:
            postgres = stack.enter_context(postgres_server()) if "postgres" in options.only else None
            ground = machine() | (postgres_versions(postgres) if postgres is not None else {})
            lines = []
            for store in options.only:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spanloom-grid-")))
                with redis_server() as redis:
                    ground |= redis_version(redis)
                    lines.append(_line(store, *_rounds(store, Ground(redis, directory, postgres), options.rounds)))
    except (BenchFailed, SpanloomError) as error:
        print(f"the bench failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped, and cleaned up", file=sys.stderr)
        return 130
    print(", ".join(f"{name} {value}" for name, value in ground.items()))
    print(f"\n{WORKERS} workers, no-op nodes; medians of {options.rounds} rounds after one that is not counted.\n")
    print(f"| store | {LARGE.title}, µs a node | {SMALL.title}, µs a node | ratio (aim: at most {AIM:g}) | rounds |")
    print("|---|---|---|---|---|")
    print("\n".join(lines))
    return 0


def _rounds(store: str, ground: Ground, rounds: int) -> tuple[list[float], list[float]]:
    large: list[float] = []
    small: list[float] = []
    with running(store, ground) as engine:
        for number in range(rounds + 1):
            print(f"{store}: {f'round {number} of {rounds}' if number else 'warming up'}", file=sys.stderr, flush=True)
            # Who goes first changes, since tables grow with every round.
            pair = ((LARGE, large), (SMALL, small))
            for grid, figures in pair if number % 2 else reversed(pair):
                figures.append(measure(engine, grid))
    return large[1:], small[1:]


def _line(store: str, large: list[float], small: list[float]) -> str:
    ratios = [one / other for one, other in zip(large, small, strict=True)]
    shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
    medians = f"{statistics.median(large):,.0f} | {statistics.median(small):,.0f} | {statistics.median(ratios):.2f}"
    return f"| {store} | {medians} | {shown} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/grid.py", description="Compare a node's cost in a large and small grid."
    )
    parser.add_argument("--rounds", type=_positive, default=4, metavar="N", help="how often each has its turn (4)")
    parser.add_argument(
        "--only", type=_stores, default=STORES, metavar="STORE,…", help=f"these stores only: {', '.join(STORES)}"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; give 1 or more")
    return int(text)


def _stores(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in STORES]:
        raise argparse.ArgumentTypeError(f"knows no {', '.join(unknown)}; it knows {', '.join(STORES)}")
    return names or STORES


if __name__ == "__main__":
    sys.exit(main())
