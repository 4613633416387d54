"""The items of one mapped node, as `spanloom show --items` lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spanloom.cli.rendering.notes import READY, Note, counted, drawn, run_notes
from spanloom.cli.rendering.values import GLYPHS, STYLES, cell, duration, error_sentence, seconds_between
from spanloom.engine.store.models import Execution, NodeRun

__all__ = ["Items", "items_lines", "items_table"]


@dataclass(frozen=True, slots=True)
class Items:
    """The items of one node that have begun, and the children that they started, by item."""

    execution_id: str
    node_id: str
    runs: Sequence[NodeRun]
    children: Mapping[int, Sequence[Execution]]

    def document(self) -> dict[str, Any]:
        """Return the items and their children, as models, for JSON."""
        return {
            "execution_id": self.execution_id,
            "node_id": self.node_id,
            "items": list(self.runs),
            "children": [child for some in self.children.values() for child in some],
        }


def items_table(items: Items, now: datetime) -> RenderableType:
    """Draw the number of items in each state, then a row for each item."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("right", "left", "right"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_column(style="bright_black")
    for run in items.runs:
        took = seconds_between(run.started_at, run.ended_at or now) if run.status not in READY else None
        notes = [*run_notes(run, now), *_children(items.children.get(run.item, ()))]
        table.add_row(
            Text(str(run.item)),
            Text(f"{GLYPHS.get(run.status, ' ')} {run.status}", STYLES.get(run.status, "")),
            Text("" if took is None else duration(took)),
            drawn(notes),
        )
    summary = f"items of {items.node_id}: {counted(items.runs, None)}" if items.runs else "no item has begun"
    return Group(Text(summary, "bright_black"), Text(), table)


def items_lines(items: Items) -> Iterator[str]:
    """Yield a tab-separated line for each item: item, status, attempt, seconds, started, worker, error, notes."""
    for run in items.runs:
        notes = [*run_notes(run, None), *_children(items.children.get(run.item, ()))]
        values = (
            run.item,
            run.status,
            run.attempt,
            seconds_between(run.started_at, run.ended_at),
            run.started_at,
            run.worker_id,
            error_sentence(run.error),
            "; ".join(text for text, _ in notes),
        )
        yield "\t".join(map(cell, values))


def _children(children: Sequence[Execution]) -> Iterator[Note]:
    for child in children:
        yield f"↳ {child.workflow_id} v{child.version} {child.id} {child.status}", STYLES.get(child.status, "")
