"""The report: what was measured on what, as Markdown tables with ratios, or as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outcome import Outcome
from systems import WORKERS, System
from workloads import Workload

__all__ = ["as_json", "as_markdown", "as_ratios", "as_spread", "write_block"]


def as_markdown(outcome: Outcome) -> str:
    """Return the table of medians with their ratios, and what they were measured on."""

    def cell(system: System, work: Workload) -> str:
        median, ratio = _number(outcome.median(system, work), work), outcome.ratio(system, work)
        return median if ratio is None or system is outcome.yardstick else f"{median} ({ratio:.2f})"

    noted = [system for system in outcome.systems if system.note]
    marks = {system.name: f" [{number}]" for number, system in enumerate(noted, start=1)}
    yardstick, rounds = outcome.yardstick, outcome.rounds
    differ = f" that differ by up to {outcome.widest:.0%}" if rounds > 1 else ""
    paragraphs = [
        *(f"{marks[system.name].strip()} {system.note}" for system in noted),
        " ".join(f"{work.name}: {work.title}." for work in outcome.workloads),
        *([f"In brackets: the ratio to {yardstick.title} in this run; of times, less is better."] if yardstick else []),
        *(f"Left out: {title}: {reason}" for title, reason in outcome.left_out.items()),
        f"{WORKERS} workers; systems taking turns, medians of {rounds} round{'s' * (rounds > 1)}{differ}.",
        ", ".join(f"{name} {value}" for name, value in outcome.ground.items()) + ".",
    ]
    table = _table("system", outcome, outcome.systems, cell, lambda system: system.title + marks.get(system.name, ""))
    return "\n".join(
        [*table, "", textwrap.fill(" ".join(paragraphs), 130, break_long_words=False, break_on_hyphens=False)]
    )


def as_spread(outcome: Outcome) -> str:
    """Return the table of the least and the greatest figure over the rounds."""

    def cell(system: System, work: Workload) -> str:
        return " to ".join(_number(figure, work) for figure in outcome.spread(system, work))

    return "\n".join(_table("from least to greatest", outcome, outcome.systems, cell))


def as_ratios(outcome: Outcome) -> str:
    """Return the table of ratios alone: to the yardstick, in the same run."""
    assert outcome.yardstick is not None
    others = [system for system in outcome.systems if system is not outcome.yardstick]

    def cell(system: System, work: Workload) -> str:
        return f"{outcome.ratio(system, work):.2f}"

    return "\n".join(_table(f"ratio to {outcome.yardstick.title}", outcome, others, cell))


def write_block(document: Path, text: str, block: str = "bench") -> None:
    """Replace what a document has between the marks for the figures of a command."""
    marks = (f"<!-- {block}:begin -->\n", f"<!-- {block}:end -->\n")
    before, begin, rest = document.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"{document} has no marks for figures: {marks[0].strip()} and {marks[1].strip()}")
    document.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return the same, with the figure of every round."""
    return {
        "ground": outcome.ground,
        "rounds": outcome.rounds,
        "workers": WORKERS,
        "yardstick": outcome.yardstick.name if outcome.yardstick is not None else None,
        "workloads": {
            work.name: {"title": work.title, "unit": work.unit, "nodes": work.nodes, "executions": work.executions}
            for work in outcome.workloads
        },
        "systems": {
            system.name: {
                "title": system.title,
                "note": system.note,
                "figures": {
                    work.name: {
                        "median": outcome.median(system, work),
                        "spread": outcome.spread(system, work),
                        "rounds": outcome.figures[system.name, work.name],
                        "ratio": outcome.ratio(system, work),
                    }
                    for work in outcome.workloads
                },
            }
            for system in outcome.systems
        },
        "left_out": outcome.left_out,
    }


def _table(
    head: str,
    outcome: Outcome,
    systems: Sequence[System],
    cell: Callable[[System, Workload], str],
    title: Callable[[System], str] = lambda system: system.title,
) -> list[str]:
    rows = [[title(system), *(cell(system, work) for work in outcome.workloads)] for system in systems]
    columns = [head, *(f"{work.name} {work.unit}" for work in outcome.workloads)]
    return [_row(columns), "|---|" + "---:|" * len(outcome.workloads), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(figure: float, workload: Workload) -> str:
    return f"{figure:,.1f}" if workload.one_by_one else f"{figure:,.0f}"
