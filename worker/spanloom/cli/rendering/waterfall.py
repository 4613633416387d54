"""One trace as `spanloom trace` draws it: spans below their parents, each with a bar at its time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spanloom.cli.rendering.family import rooted
from spanloom.cli.rendering.values import STYLES, cell, duration
from spanloom.engine.escaping import escaped
from spanloom.engine.store.models import Execution, SpanRecord

__all__ = ["SIBLINGS", "waterfall", "waterfall_lines"]

SIBLINGS = 12  #: how many spans below one parent a terminal shows before the shortest of them share a line
_NAME_SHARE = 0.45  # of the terminal's width, at most, for names
_DURATION_WIDTH = 9


@dataclass(frozen=True, slots=True)
class _Line:
    """One line: a span, or the shortest spans below a parent, folded."""

    guides: str
    depth: int
    name: str
    status: str
    start_ns: int
    end_ns: int | None
    span: SpanRecord | None


class _Weight(NamedTuple):
    """The importance of a span with all below it: whether something failed, and the time it takes."""

    failed: bool
    took_ns: int
    start_ns: int


def waterfall(
    spans: Sequence[SpanRecord],
    *,
    width: int,
    now_ns: int,
    family: Sequence[Execution] = (),
    siblings: int | None = SIBLINGS,
) -> RenderableType:
    """Draw spans for a terminal `width` columns wide; open spans last until `now_ns`.

    Each execution of the `family` has a span of its own, also where that is not stored. Below one parent at most
    `siblings` spans are drawn: those with a failure in or below them, then those that last longest, counted with the
    spans below them. The others share a line.
    """
    lines = list(_lines(rooted(spans, family), siblings, now_ns))
    if not lines:
        return Text("no spans are stored", "bright_black")
    start = min(line.start_ns for line in lines)
    end = max(max(line.end_ns or now_ns for line in lines), start + 1)
    longest = max(cell_len(line.guides + line.name) for line in lines)
    name_width = min(longest, int(width * _NAME_SHARE))
    bar_width = max(10, width - name_width - _DURATION_WIDTH - 5)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=name_width, no_wrap=True, overflow="ellipsis")
    table.add_column(width=_DURATION_WIDTH, justify="right", no_wrap=True)
    table.add_column(width=bar_width, no_wrap=True)
    for line in lines:
        last = line.end_ns or now_ns
        name_style = "bright_black" if line.span is None else "red" if line.status == "error" else ""
        name = Text.assemble((line.guides, "bright_black"), (line.name, name_style))
        took = Text("" if line.span is None else duration((last - line.start_ns) / 1e9), "bright_black")
        bar = _bar((line.start_ns - start) / (end - start), (last - start) / (end - start), bar_width)
        table.add_row(name, took, Text(bar, _bar_style(line)))
    trace_id = next((line.span.trace_id for line in lines if line.span is not None), "")
    total = f"trace {trace_id}  {len(spans)} span{'s' * (len(spans) != 1)} in {duration((end - start) / 1e9)}"
    if len(family) > 1:
        total += f" of {len(family):,} executions"
    return Group(Text(total, "bright_black"), Text(), table)


def waterfall_lines(spans: Sequence[SpanRecord], *, family: Sequence[Execution] = ()) -> Iterator[str]:
    """Yield a tab-separated line for each span, parents before children.

    The columns: name (indented by two spaces a level), seconds since the trace began, seconds it took (empty while it
    is open), status, kind, node, item, attempt, span id, parent's span id, execution.
    """
    lines = list(_lines(rooted(spans, family), None, 0))
    start = min((line.start_ns for line in lines), default=0)
    for line in lines:
        span = line.span
        assert span is not None  # nothing is folded here
        took = None if span.end_ns is None else (span.end_ns - span.start_ns) / 1e9
        values = ((span.start_ns - start) / 1e9, took, span.status, span.kind, span.node_id, span.item, span.attempt)
        ids = (span.span_id, span.parent_span_id, span.execution_id)
        yield "  " * line.depth + "\t".join((escaped(span.name), *map(cell, values + ids)))


def _lines(spans: Sequence[SpanRecord], siblings: int | None, now_ns: int) -> Iterator[_Line]:
    known = {span.span_id for span in spans}
    below: dict[str | None, list[SpanRecord]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: (span.start_ns, span.span_id)):
        # A parent outside the store (the caller's span, or one that was lost with its worker) makes it a root.
        below[span.parent_span_id if span.parent_span_id in known else None].append(span)
    weights = _weights(below, now_ns)
    stack: list[tuple[_Line, str]] = []

    def put_below(parent: str | None, guides: str, depth: int) -> None:
        groups = _grouped(below[parent], siblings, weights)
        placed: list[tuple[_Line, str]] = []
        for position, group in enumerate(groups):
            last = position == len(groups) - 1
            corner, rest = ("", "") if parent is None else ("└─ ", "   ") if last else ("├─ ", "│  ")
            placed.append((_line(group, guides + corner, depth, weights), guides + rest))
        stack.extend(reversed(placed))

    put_below(None, "", 0)
    while stack:
        line, guides = stack.pop()
        yield line
        if line.span is not None:
            put_below(line.span.span_id, guides, line.depth + 1)


def _weights(below: Mapping[str | None, Sequence[SpanRecord]], now_ns: int) -> dict[str, _Weight]:
    """Weigh each span with those below it: an attempt that started a child is over long before the child is."""
    order = list(below.get(None, ()))
    for span in order:  # grows while it is walked, parents before their children
        order.extend(below.get(span.span_id, ()))
    weights: dict[str, _Weight] = {}
    for span in reversed(order):
        parts = [weights[child.span_id] for child in below.get(span.span_id, ())]
        end_ns = max([span.end_ns or now_ns, *(part.start_ns + part.took_ns for part in parts)])
        failed = span.status == "error" or any(part.failed for part in parts)
        weights[span.span_id] = _Weight(failed, end_ns - span.start_ns, span.start_ns)
    return weights


def _grouped(spans: list[SpanRecord], siblings: int | None, weights: Mapping[str, _Weight]) -> list[list[SpanRecord]]:
    """Return each span as a group, but the lightest beyond `siblings` as one group; in the order of their starts."""
    if siblings is None or len(spans) <= siblings:
        return [[span] for span in spans]
    weighed = sorted(spans, key=lambda span: weights[span.span_id])
    short = {span.span_id for span in weighed[: len(spans) - siblings + 1] if not weights[span.span_id].failed}
    groups = [[span] for span in spans if span.span_id not in short]
    if short:
        groups.append([span for span in spans if span.span_id in short])
    return sorted(groups, key=lambda group: group[0].start_ns)


def _line(group: list[SpanRecord], guides: str, depth: int, weights: Mapping[str, _Weight]) -> _Line:
    first = group[0]
    if len(group) == 1:
        return _Line(guides, depth, _name(first), first.status, first.start_ns, first.end_ns, first)
    took = sorted(weights[span.span_id].took_ns for span in group)
    name = f"… {len(group):,} more of {duration(took[0] / 1e9)} to {duration(took[-1] / 1e9)}"
    end_ns = max(span.start_ns + weights[span.span_id].took_ns for span in group)
    return _Line(guides, depth, name, "unset", first.start_ns, end_ns, None)


def _name(span: SpanRecord) -> str:
    item = f"[{span.item}]" if span.item else ""
    attempt = f" #{span.attempt}" if span.attempt > 1 else ""
    return escaped(span.name) + item + attempt + " ✗" * (span.status == "error")


def _bar_style(line: _Line) -> str:
    if line.span is None:
        return "bright_black"
    return STYLES["running"] if line.end_ns is None else STYLES.get(line.status, "blue")


def _bar(begin: float, end: float, width: int) -> str:
    """Return a bar from `begin` to `end` (0 to 1) of `width` columns, in half columns, at least one of them."""
    first = min(round(begin * width * 2), width * 2 - 1)
    last = max(round(end * width * 2), first + 1)
    column, begun = divmod(first, 2)
    until, rest = divmod(last, 2)
    return " " * column + "╺" * begun + "━" * (until - column - begun) + "╸" * rest
