"""One execution as `spanloom show` draws it: a header, and its nodes as an indented tree with what became of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spanloom.cli.rendering.layout import lay_out
from spanloom.cli.rendering.snapshot import Snapshot
from spanloom.cli.rendering.values import (
    GLYPHS,
    STYLES,
    ago,
    cell,
    duration,
    error_sentence,
    instant,
    printable,
    seconds_between,
)
from spanloom.engine.definitions import Node
from spanloom.engine.states import NodeStatus
from spanloom.engine.views import Execution, NodeRun

__all__ = ["FOLD", "execution_header", "execution_lines", "execution_tree"]

FOLD = 12  #: how many branches of one fan-out a terminal shows before it folds the uneventful ones
_NAMED_INPUTS = 3
_NAME_WIDTH, _STATUS_WIDTH, _DURATION_WIDTH = 60, 11, 8
_WORKER_WIDTH = 8  # the end of a worker's id tells it from the others
_UNEVENTFUL = frozenset({NodeStatus.COMPLETED, NodeStatus.QUEUED, NodeStatus.PENDING})


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the tree, of a node run, of a child execution, or of folded branches."""

    guides: str
    depth: int
    name: str
    status: str
    run: NodeRun | None = None
    child: Execution | None = None
    joins: tuple[str, ...] = ()
    folded: bool = False


def execution_tree(snapshot: Snapshot, *, fold: int | None = FOLD) -> RenderableType:
    """Draw header and tree for a terminal; of a wide fan-out, uneventful branches beyond `fold` share a line."""
    rows = [_cells(line, snapshot.taken_at) for line in _lines(snapshot, fold=fold)]
    name_width = min(_NAME_WIDTH, max(name.cell_len for name, *_ in rows))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=name_width, max_width=_NAME_WIDTH, no_wrap=True, overflow="ellipsis")
    table.add_column(min_width=_STATUS_WIDTH, no_wrap=True)
    table.add_column(min_width=_DURATION_WIDTH, justify="right", no_wrap=True)
    table.add_column(style="bright_black")  # not no_wrap: only then is it the column that gives way; its cells are
    for row in rows:
        table.add_row(*row)
    return Group(execution_header(snapshot.execution, snapshot.taken_at), Text(), table)


def execution_header(execution: Execution, now: datetime) -> Text:
    """Draw what is true of the execution as a whole: workflow, status, time, id, metadata, error."""
    style = STYLES.get(execution.status, "")
    text = Text()
    text.append(f"{execution.workflow_id} v{execution.version}", "bold")
    text.append(f"  {GLYPHS[execution.status]} {execution.status}", style)
    took = seconds_between(execution.started_at, execution.ended_at or now)
    if took is not None:
        text.append(f" {'in' if execution.ended_at else 'for'} {duration(took)}")
    facts = [execution.id, f"created {ago(execution.created_at, now)}, {instant(execution.created_at)}"]
    if execution.priority != "normal":
        facts.append(f"priority {execution.priority}")
    if execution.parent_execution_id:
        facts.append(f"child of {execution.parent_execution_id} at {execution.parent_node_id}")
    facts.extend(f"{printable(key)}={printable(value)}" for key, value in execution.metadata.items())
    text.append("\n" + "  ".join(facts), "bright_black")
    if execution.error is not None:
        at = f" at node {execution.error['node_id']}" if execution.error.get("node_id") else ""
        text.append("\n" + printable(error_sentence(execution.error), keep="\n"), "red")
        text.append(at, "bright_black")
    return text


def execution_lines(snapshot: Snapshot) -> Iterator[str]:
    """Write it for a pipe, tab-separated: the execution's fields as `name, value`, an empty line, then one line a node.

    A node's line is: name (indented by two spaces a level), status, attempt, seconds, started, worker, error.
    """
    execution = snapshot.execution
    yield f"id\t{execution.id}"
    yield f"workflow\t{execution.workflow_id}"
    yield f"version\t{execution.version}"
    yield f"status\t{execution.status}"
    yield f"priority\t{execution.priority}"
    yield f"created_at\t{cell(execution.created_at)}"
    yield f"started_at\t{cell(execution.started_at)}"
    yield f"ended_at\t{cell(execution.ended_at)}"
    yield f"seconds\t{cell(seconds_between(execution.started_at, execution.ended_at))}"
    yield f"parent\t{cell(execution.parent_execution_id)}"
    yield f"metadata\t{cell(execution.metadata)}"
    yield f"error\t{cell(error_sentence(execution.error))}"
    yield ""
    for line in _lines(snapshot, fold=None):
        of = line.run or line.child
        values = (
            line.status,
            line.run.attempt if line.run else None,
            seconds_between(of.started_at, of.ended_at) if of else None,
            of.started_at if of else None,
            line.run.worker_id if line.run else None,
            error_sentence(of.error) if of else None,
        )
        yield "  " * line.depth + "\t".join((line.name, *map(cell, values)))


def _lines(snapshot: Snapshot, *, fold: int | None, guides: str = "", depth: int = 0) -> Iterator[_Line]:
    runs: dict[str, list[NodeRun]] = defaultdict(list)
    for run in snapshot.runs:
        runs[run.node_id].append(run)

    parents_of_children = {node_id for node_id, _ in snapshot.children}

    def uneventful(node_id: str) -> bool:
        quiet = all(run.attempt == 1 and run.status in _UNEVENTFUL for run in runs[node_id])
        return quiet and node_id not in parents_of_children

    for row in lay_out(snapshot.workflow, fold=fold, quiet=uneventful):
        start, level = guides + row.guides, depth + row.depth
        if row.node is None:
            states = Counter(_status(runs[node_id][:1], snapshot) for node_id in row.folded)
            told = ", ".join(f"{count:,} {status}" for status, count in sorted(states.items()))
            yield _Line(start, level, f"… {told}", "", folded=True)
            continue
        yield from _node_lines(snapshot, row.node, runs[row.node.id], start, guides + row.below, level, fold)


def _node_lines(
    snapshot: Snapshot, node: Node, runs: list[NodeRun], guides: str, below: str, depth: int, fold: int | None
) -> Iterator[_Line]:
    own = [run for run in runs if run.item == 0]
    joins = node.parents if len(node.parents) > 1 else ()
    yield _Line(guides, depth, node.id, _status(own, snapshot), run=own[0] if own else None, joins=joins)
    for run in runs:
        if run.item:
            yield _Line(below + "· ", depth + 1, f"{node.id}[{run.item}]", run.status, run=run)
        for child in snapshot.children.get((node.id, run.item), ()):
            execution = child.execution
            name = f"{execution.workflow_id} v{execution.version} {execution.id}"
            yield _Line(below + "↳ ", depth + 1, name, execution.status, child=execution)
            yield from _lines(child, fold=fold, guides=below + "  ", depth=depth + 2)


def _status(runs: list[NodeRun], snapshot: Snapshot) -> str:
    if runs:
        return runs[0].status
    # A node run comes into being when its first input arrives.
    return "not run" if snapshot.execution.status.ended else "pending"


def _cells(line: _Line, now: datetime) -> tuple[Text, Text, Text, Text]:
    name = Text.assemble((line.guides, "bright_black"), (line.name, "bright_black" if line.folded else ""))
    if line.folded:
        return name, Text(), Text(), Text()
    style = STYLES.get(line.status, "bright_black")
    of = line.run or line.child
    took = seconds_between(of.started_at, of.ended_at or now) if of and line.status != "queued" else None
    return (
        name,
        Text(f"{GLYPHS.get(line.status, ' ')} {line.status}", style),
        Text("" if took is None else duration(took)),
        _notes(line, now),
    )


def _notes(line: _Line, now: datetime) -> Text:
    notes: list[Text] = []
    if line.joins:
        few = len(line.joins) <= _NAMED_INPUTS
        notes.append(Text(f"← {', '.join(line.joins)}" if few else f"← {len(line.joins):,} nodes"))
    of = line.run or line.child
    if line.run is not None:
        if line.run.attempt > 1:
            notes.append(Text(f"attempt {line.run.attempt}", "yellow"))
        if line.run.losses:
            notes.append(Text(f"{line.run.losses} lost", "yellow"))
        if line.run.wait_kind is not None:
            due = f" {ago(line.run.due_at, now)}" if line.run.due_at else ""
            notes.append(Text(f"{line.run.wait_kind}{due}", "yellow"))
        if line.run.worker_id:
            notes.append(Text(line.run.worker_id[-_WORKER_WIDTH:]))
    if of is not None and of.error is not None:
        notes.append(Text(printable(error_sentence(of.error)), "red"))
    text = Text("  ").join(notes)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
