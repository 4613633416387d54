"""Nodes a second by processes, by slots and by what the store keeps, and what a node costs by the size of its graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import psycopg
from big_rows import fill, register
from scale_curve import Curve, Panel, Run, Table
from scale_load import SLOTS, W1, W3, WAITS, engine_at, rate, serving, worker_command
from systems import END_SECONDS, WORKERS, BenchFailed
from workloads import Workload

from spanloom.engine import ExecutionStatus, Node, Workflow, WorkflowEngine

__all__ = ["graph", "measure_graphs", "measure_kept", "measure_processes"]

_GRAPH_NODES = 10_000  #: of all executions of one graph together, about


def measure_processes(run: Run) -> Curve:
    """Measure one worker by its processes, and one process by its slots."""
    numbers, slots = ((1, 2), (1, 8)) if run.quick else ((1, 2, 4, 8), (1, 2, 4, 8, 16, 32))
    settings = [(number, SLOTS) for number in numbers]
    settings += [(1, number) for number in slots if (1, number) not in settings]
    workloads = (W1, W3, WAITS)
    found: dict[tuple[int, int, str], list[float]] = {}
    for turn in range(run.rounds):
        for setting in settings if turn % 2 == 0 else settings[::-1]:
            processes, concurrency = setting
            if not run.begins(f"{processes} processes, {concurrency} slots, round {turn + 1}"):
                continue
            command = worker_command("--processes", str(processes), "--concurrency", str(concurrency))
            with (
                run.ground.database() as url,
                engine_at(url, run.redis.url) as engine,
                serving(run, engine, url, command, processes) as player,
            ):
                for work in workloads:
                    found.setdefault((*setting, work.name), []).append(rate(player, work, run.point_seconds))
    names = [f"{work.name} nodes/s" for work in workloads]
    tables, panels = [], []
    for title, some in (
        ("processes, of 8 slots", [(number, SLOTS) for number in numbers]),
        ("slots, of one process", [(1, number) for number in slots]),
    ):
        rows = [[_median(found.get((*setting, work.name))) for work in workloads] for setting in some]
        places = [setting[0] if title.startswith("processes") else setting[1] for setting in some]
        tables.append(Table([title, *names], [0] * 4, [(place, *row) for place, row in zip(places, rows, strict=True)]))
        panels.append(Panel("", title, "nodes/s", _series([work.name for work in workloads], places, rows), log_x=True))
    return Curve(tables, panels, [_named(*workloads), _medians(run)])


def measure_kept(run: Run) -> Curve:
    """Measure the workloads on stores that keep more and more executions."""
    sizes = (1_000, 10_000) if run.quick else (1_000, 10_000, 100_000)
    sizes += (1_000_000,) * run.million
    found: dict[tuple[int, str], list[float]] = {}
    filled = [size for size in sizes if run.begins(f"fills a store with {size:,} executions") and _filled(run, size)]
    for turn in range(run.rounds):
        for size in filled if turn % 2 == 0 else filled[::-1]:
            if not run.begins(f"{size:,} executions kept, round {turn + 1}"):
                continue
            url = run.postgres.database_url(_kept(size))
            with (
                engine_at(url, run.redis.url) as engine,
                serving(run, engine, url, worker_command("--processes", str(WORKERS)), WORKERS) as player,
            ):
                for work in (W1, W3):
                    found.setdefault((size, work.name), []).append(rate(player, work, run.point_seconds))
    rows = [[_median(found.get((size, work.name))) for work in (W1, W3)] for size in sizes]
    table = Table(
        ["executions kept", "W1 nodes/s", "W3 nodes/s"], [0] * 3, [(n, *r) for n, r in zip(sizes, rows, strict=True)]
    )
    panel = Panel("", "executions kept", "nodes/s", _series(["W1", "W3"], sizes, rows), log_x=True)
    about = f"Each of those kept has ten nodes, with their events and spans. {_named(W1, W3)} {WORKERS} processes."
    return Curve([table], [panel], [about, _medians(run)])


def _kept(size: int) -> str:
    return f"kept_{size}"


def _filled(run: Run, size: int) -> bool:
    with psycopg.connect(run.postgres.url, autocommit=True) as connection:
        connection.execute(f"create database {_kept(size)}".encode())
    url = run.postgres.database_url(_kept(size))
    with engine_at(url, run.redis.url) as engine:
        register(engine)
    fill(url, size, run.progress)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("checkpoint")
    return True


def graph(shape: str, nodes: int) -> Workflow:
    """Return a graph of so many nodes: `deep`, each after the one before, or `wide`, all but two side by side."""
    names = [f"n{number}" for number in range(nodes)]
    if shape == "deep":
        parents = [[], *([name] for name in names[:-1])]
    else:
        parents = [[], *([names[0]] for _ in names[1:-1]), names[1:-1]]
    made = [Node(id=name, type="nothing", inputs=before) for name, before in zip(names, parents, strict=True)]
    return Workflow(id=f"{shape}-{nodes}", nodes=made)


def measure_graphs(run: Run) -> Curve:
    """Measure one execution at a time of graphs of each size and shape, and what registering and starting take."""
    sizes = (100, 1_000) if run.quick else (100, 1_000, 10_000)
    shapes = ("wide", "deep")
    table = Table(["graph", "nodes", "µs a node", "defined, s", "registered, s", "started, s"], [0, 0, 0, 3, 3, 3])
    series: dict[str, list[tuple[float, float]]] = {shape: [] for shape in shapes}
    with (
        run.ground.database() as url,
        engine_at(url, run.redis.url) as engine,
        serving(run, engine, url, worker_command("--processes", str(WORKERS)), WORKERS),
    ):
        for size in sizes:
            for shape in shapes:
                if not run.begins(f"{shape} graphs of {size:,} nodes"):
                    table.rows.append((shape, size, None, None, None, None))
                    continue
                began = time.perf_counter()
                made = graph(shape, size)
                defined = time.perf_counter() - began
                engine.register_workflow(made)
                registered = time.perf_counter() - began - defined
                times = max(2, min(10, _GRAPH_NODES // size))  # the first is not counted: each process reads the graph
                ends = [_executed(engine, made) for _ in range(times)][1:]
                spent, started = (statistics.median(column) for column in zip(*ends, strict=True))
                table.rows.append((shape, size, spent / size * 1e6, defined, registered, started))
                series[shape].append((size, spent / size * 1e6))
    notes = [
        "wide: 1→n-2→1. deep: a chain of n. One execution at a time on an idle system, from start to visible end; the "
        "first of each graph is not counted, as it brings the graph into each process.",
        f"{WORKERS} processes.",
        *run.notes,
    ]
    return Curve([table], [Panel("", "nodes of a graph", "µs a node", series, log_x=True)], notes)


def _executed(engine: WorkflowEngine, workflow: Workflow) -> tuple[float, float]:
    """Run one execution, check that each node has its result; return the seconds of all of it, and of the start."""
    began = time.perf_counter()
    (execution_id,) = engine.enqueue_workflows(workflow.id, [None])
    started = time.perf_counter() - began
    end = engine.wait(execution_id, END_SECONDS)
    seconds = time.perf_counter() - began
    results = len(engine.store.get_node_results(execution_id))
    if end.status is not ExecutionStatus.COMPLETED or results != len(workflow.nodes):
        raise BenchFailed(f"{workflow.id}: execution {execution_id} is {end.status} with {results:,} results")
    return seconds, started


def _median(figures: Sequence[float] | None) -> float | None:
    return statistics.median(figures) if figures else None


def _medians(run: Run) -> str:
    return " ".join([f"Medians of {run.rounds} round{'s' * (run.rounds > 1)}.", *run.notes])


def _named(*workloads: Workload) -> str:
    return " ".join(f"{work.name}: executions of {work.graph}." for work in workloads)


def _series(
    names: Sequence[str], places: Sequence[float], rows: Sequence[Sequence[float | None]]
) -> dict[str, list[tuple[float, float]]]:
    """Return a series of points for each column of rows, without those that were not measured."""
    return {
        name: [(place, row[column]) for place, row in zip(places, rows, strict=True) if row[column] is not None]
        for column, name in enumerate(names)
    }
