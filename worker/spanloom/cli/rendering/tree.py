"""One execution as `spanloom show` draws it: a header, and its nodes as an indented tree with their states."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spanloom.cli.rendering.header import execution_header, header_lines
from spanloom.cli.rendering.layout import lay_out
from spanloom.cli.rendering.notes import READY, Note, counted, drawn, is_handled, routing_notes, run_notes
from spanloom.cli.rendering.snapshot import Snapshot
from spanloom.cli.rendering.values import (
    GLYPHS,
    STYLES,
    cell,
    duration,
    error_sentence,
    seconds_between,
)
from spanloom.engine.escaping import escaped
from spanloom.engine.store.models import Execution, NodeRun
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.workflow.definitions import Node

__all__ = ["FOLD", "execution_lines", "execution_tree"]

FOLD = 12  #: how many branches of one fan-out a terminal shows before it folds the uneventful ones
_NAME_WIDTH, _STATUS_WIDTH, _DURATION_WIDTH = 72, 11, 8
_TELLING = 8  # the number of last digits of an execution's id by which `spanloom show` finds it
_UNEVENTFUL = frozenset({NodeStatus.COMPLETED, NodeStatus.QUEUED, NodeStatus.PENDING, NodeStatus.SKIPPED})


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the tree: of a node, of a child execution, or of folded branches."""

    guides: str
    depth: int
    name: str
    status: str
    run: NodeRun | None = None
    child: Execution | None = None
    about: tuple[Note, ...] = ()
    folded: bool = False


@dataclass(frozen=True, slots=True)
class _Way:
    """The options of the lines: the branches of a fan-out before folding; whole for a pipe, or cut for a terminal."""

    fold: int | None
    whole: bool


def execution_tree(snapshot: Snapshot, *, fold: int | None = FOLD) -> RenderableType:
    """Draw header and tree for a terminal; the uneventful branches of a fan-out beyond `fold` share a line."""
    rows = [_cells(line, snapshot.taken_at) for line in _lines(snapshot, _Way(fold, whole=False))]
    name_width = min(_NAME_WIDTH, max(name.cell_len for name, *_ in rows))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=name_width, max_width=_NAME_WIDTH, no_wrap=True, overflow="ellipsis")
    table.add_column(min_width=_STATUS_WIDTH, no_wrap=True)
    table.add_column(min_width=_DURATION_WIDTH, justify="right", no_wrap=True)
    table.add_column(style="bright_black")  # not no_wrap, unlike its cells: so this is the column that shrinks
    for row in rows:
        table.add_row(*row)
    return Group(execution_header(snapshot.execution, snapshot.taken_at, snapshot.parent), Text(), table)


def execution_lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield tab-separated lines for a pipe: the execution's fields as name and value, an empty line, then its nodes.

    A node's line is: name (indented by two spaces a level), status, attempt, seconds, started, worker, error, notes.
    """
    yield from header_lines(snapshot.execution)
    yield ""
    for line in _lines(snapshot, _Way(fold=None, whole=True)):
        of = line.run or line.child
        notes = [*line.about, *(run_notes(line.run, None) if line.run else ())]
        values = (
            line.status,
            line.run.attempt if line.run else None,
            seconds_between(of.started_at, of.ended_at) if of else None,
            of.started_at if of else None,
            line.run.worker_id if line.run else None,
            error_sentence(of.error) if of else None,
            "; ".join(text for text, _ in notes),
        )
        yield "  " * line.depth + "\t".join((escaped(line.name), *map(cell, values)))


def _lines(snapshot: Snapshot, way: _Way, guides: str = "", depth: int = 0) -> Iterator[_Line]:
    if snapshot.workflow is None:
        return
    runs: dict[str, NodeRun] = {}
    items: dict[str, list[NodeRun]] = defaultdict(list)
    for run in snapshot.runs:
        if run.item:
            items[run.node_id].append(run)
        else:
            runs[run.node_id] = run
    parents_of_children = {node_id for node_id, _ in snapshot.children}

    def uneventful(node_id: str) -> bool:
        run = runs.get(node_id)
        quiet = run is None or (run.attempt == 1 and run.status in _UNEVENTFUL)
        return quiet and node_id not in parents_of_children and node_id not in items

    def status(node_id: str) -> str:
        if node_id in runs:
            return runs[node_id].status
        # A node run is created when its first input arrives.
        return "not run" if snapshot.execution.status.ended else "pending"

    def about(node: Node) -> tuple[Note, ...]:
        notes = routing_notes(node, runs.get(node.id), runs, whole=way.whole)
        if node.id in items:
            notes.append((counted(items[node.id], snapshot.totals.get(node.id)), ""))
        return tuple(notes)

    for row in lay_out(snapshot.workflow, fold=way.fold, quiet=uneventful):
        start, level, node = guides + row.guides, depth + row.depth, row.node
        if node is None:
            states = Counter(map(status, row.folded))
            summary = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
            yield _Line(start, level, f"… {summary}", "", folded=True)
            continue
        yield _Line(start, level, node.id, status(node.id), run=runs.get(node.id), about=about(node))
        # The children of items are shown with the items.
        for child in snapshot.children.get((node.id, 0), ()):
            yield from _child_lines(child, way, guides + row.below, level + 1)


def _child_lines(child: Snapshot, way: _Way, guides: str, depth: int) -> Iterator[_Line]:
    execution = child.execution
    name = f"{execution.workflow_id} v{execution.version} {execution.id}"
    unread: tuple[Note, ...] = ()
    if child.workflow is None:
        unread = ((f"its nodes: spanloom show {execution.id[-_TELLING:]}", ""),)
    yield _Line(guides + "↳ ", depth, name, execution.status, child=execution, about=unread)
    yield from _lines(child, way, guides + "  ", depth + 1)


def _cells(line: _Line, now: datetime) -> tuple[Text, Text, Text, Text]:
    dim = line.folded or line.status == "skipped"
    name = Text.assemble((line.guides, "bright_black"), (line.name, "bright_black" if dim else ""))
    if line.folded:
        return name, Text(), Text(), Text()
    handled = line.run is not None and is_handled(line.run)
    style = "yellow" if handled else STYLES.get(line.status, "bright_black")
    of = line.run or line.child
    took = seconds_between(of.started_at, of.ended_at or now) if of and line.status not in READY else None
    notes = [*line.about, *(run_notes(line.run, now) if line.run else ())]
    if line.child is not None and line.child.error is not None:
        notes.append((escaped(error_sentence(line.child.error)), "red"))
    return (
        name,
        Text(f"{GLYPHS.get(line.status, ' ')} {line.status}", style),
        Text("" if took is None else duration(took)),
        drawn(notes),
    )
