"""The report: what was measured on what, as a Markdown table with ratios, or as JSON."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
from redis import Redis
from systems import WORKERS, System
from workloads import Workload

from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = [
    "Figures",
    "as_json",
    "as_markdown",
    "as_ratios",
    "machine",
    "postgres_versions",
    "redis_version",
    "write_block",
]

YARDSTICK = "rq-simple"  #: the system that every other one is compared with
BEGIN, END = "<!-- bench:begin -->\n", "<!-- bench:end -->\n"  #: around the figures in a document

#: The figure of each round, by system and workload.
Figures = Mapping[tuple[str, str], Sequence[float]]


def machine() -> dict[str, Any]:
    """Say what this run is made on."""
    packages = ("spanloom", "rq", "redis", "hiredis", "psycopg", "pydantic", "SQLAlchemy")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "load before": round(os.getloadavg()[0], 1),  # of the last minute: what else the machine is doing
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
        "SQLite": sqlite3.sqlite_version,
    }


def redis_version(server: RedisServer) -> dict[str, str]:
    """Say which server answers as Redis."""
    with Redis.from_url(server.url) as client:
        info = client.info("server")
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    return {f"{name} server": str(info.get("valkey_version") or info["redis_version"])}


def postgres_versions(server: PostgresServer) -> dict[str, str]:
    """Say which Postgres answers, and whether it really writes to disk."""
    with psycopg.connect(server.url) as connection:
        settings = ("server_version", "fsync", "synchronous_commit")
        found = {name: str(connection.execute(f"show {name}").fetchone()[0]) for name in settings}  # type: ignore[index]
    return {"Postgres": found.pop("server_version"), **found}


def as_markdown(
    ground: Mapping[str, Any], systems: Sequence[System], workloads: Sequence[Workload], figures: Figures, rounds: int
) -> str:
    """Return the header and the table of medians."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in ground.items()),
        "",
        f"{WORKERS} workers, no-op nodes. {_how_often(figures, rounds)}",
        "",
        *(f"- {work.name}: {work.title}" for work in workloads),
        "",
        "| system | " + " | ".join(f"{work.name} {work.unit}" for work in workloads) + " |",
        "|---|" + "---|" * len(workloads),
    ]
    for system in systems:
        cells = [_cell(system, work, figures) for work in workloads]
        lines.append(f"| {system.title} | " + " | ".join(cells) + " |")
    if any(system.name == YARDSTICK for system in systems):
        lines += ["", "In brackets: how many times as fast as RQ's SimpleWorker in this run."]
    return "\n".join(lines)


def as_ratios(systems: Sequence[System], workloads: Sequence[Workload], figures: Figures) -> str:
    """Return the table of ratios alone: how many times as fast as the yardstick, in the same run."""
    (yardstick,) = (system.title for system in systems if system.name == YARDSTICK)
    lines = [
        f"| times as fast as {yardstick} | " + " | ".join(work.name for work in workloads) + " |",
        "|---|" + "---:|" * len(workloads),
    ]
    for system in systems:
        if system.name != YARDSTICK:
            cells = [f"{_times(system, work, figures):.1f}" for work in workloads]
            lines.append(f"| {system.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_block(document: Path, text: str) -> None:
    """Replace what a document has between the marks for figures."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document} has no marks for figures: {BEGIN.strip()} and {END.strip()}")
    document.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def as_json(
    ground: Mapping[str, Any], systems: Sequence[System], workloads: Sequence[Workload], figures: Figures, rounds: int
) -> dict[str, Any]:
    """Return the same, with the figure of every round."""
    return {
        "ground": dict(ground),
        "rounds": rounds,
        "workers": WORKERS,
        "workloads": {
            work.name: {"title": work.title, "unit": work.unit, "nodes": work.nodes, "executions": work.executions}
            for work in workloads
        },
        "systems": {
            system.name: {
                "title": system.title,
                "figures": {
                    work.name: {
                        "median": statistics.median(figures[system.name, work.name]),
                        "rounds": list(figures[system.name, work.name]),
                        "times_rq_simple": _times(system, work, figures),
                    }
                    for work in workloads
                },
            }
            for system in systems
        },
    }


def _cell(system: System, workload: Workload, figures: Figures) -> str:
    median = statistics.median(figures[system.name, workload.name])
    text = f"{median:,.1f}" if workload.one_by_one else f"{median:,.0f}"
    times = _times(system, workload, figures)
    return text if times is None or system.name == YARDSTICK else f"{text} ({times:.1f}x)"


def _times(system: System, workload: Workload, figures: Figures) -> float | None:
    if (YARDSTICK, workload.name) not in figures:
        return None
    own = statistics.median(figures[system.name, workload.name])
    theirs = statistics.median(figures[YARDSTICK, workload.name])
    return theirs / own if workload.one_by_one else own / theirs


def _how_often(figures: Figures, rounds: int) -> str:
    if rounds == 1:
        return "One round."
    widest = max(max(found) / min(found) for found in figures.values())
    return f"Medians of {rounds} rounds, systems taking turns; rounds of one figure differ by up to {widest - 1:.0%}."
