"""What a curve of `make bench-scale` consists of: tables, what is drawn of them, and the time that it may take."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from systems import Ground

from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["Curve", "Panel", "Run", "Table"]

Cell = str | float | None
_WIDTH = 130


@dataclass
class Table:
    """Rows of figures. `digits` has the decimal places of each column; None is a figure that was not measured."""

    columns: Sequence[str]
    digits: Sequence[int]
    rows: list[Sequence[Cell]] = field(default_factory=list)

    def as_markdown(self) -> str:
        """Return it with its text to the left and its numbers to the right."""
        text = [bool(self.rows) and isinstance(self.rows[0][place], str) for place in range(len(self.columns))]
        return "\n".join(
            [
                _row(self.columns),
                "|" + "|".join("---" if left else "---:" for left in text) + "|",
                *(
                    _row([_shown(cell, places) for cell, places in zip(row, self.digits, strict=True)])
                    for row in self.rows
                ),
            ]
        )


@dataclass
class Panel:
    """One drawing of a curve's picture: points by series, on a horizontal axis that may be logarithmic."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False


@dataclass
class Curve:
    """What was measured of one curve, and what is to be known of it."""

    tables: list[Table]
    panels: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ground: Mapping[str, Any] = field(default_factory=dict)

    def as_markdown(self) -> str:
        """Return its tables, and below them its notes and what it was measured on."""
        of = ", ".join(f"{name} {value}" for name, value in self.ground.items()) + "."
        text = " ".join([*self.notes, of])
        return "\n\n".join(
            [
                *(table.as_markdown() for table in self.tables),
                textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False),
            ]
        )


@dataclass
class Run:
    """One measurement of a curve: its servers, its sizes, and when it begins no other point."""

    ground: Ground
    redis: RedisServer
    postgres: PostgresServer
    progress: Callable[[str], None]
    seconds: float
    quick: bool = False
    million: bool = False
    left_out: list[str] = field(default_factory=list)  #: points that it had no time for
    _began: float = field(default_factory=time.monotonic)

    @property
    def directory(self) -> Path:
        """An empty directory of its own."""
        return self.ground.directory

    @property
    def rounds(self) -> int:
        """How often each point is measured."""
        return 1 if self.quick else 3

    @property
    def point_seconds(self) -> float:
        """For how long about a workload is run for one figure."""
        return 1.0 if self.quick else 4.0

    def begins(self, point: str) -> bool:
        """Return whether there is time for another point, and note it if there is none."""
        if time.monotonic() - self._began > self.seconds:
            self.left_out.append(point)
            return False
        self.progress(point)
        return True

    @property
    def notes(self) -> list[str]:
        """What is to be known of how it was measured."""
        quick = ["A quick look at small sizes, no claim."] if self.quick else []
        late = [f"No time was left for: {'; '.join(dict.fromkeys(self.left_out))}."] if self.left_out else []
        return quick + late


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(cell: Cell, digits: int) -> str:
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else f"{cell:,.{digits}f}"
