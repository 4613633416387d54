"""The reads of a big store that are timed: lists and counts by each field of a filter, by pairs, and of nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle

from spanloom.cli.rendering import execution_tree, read_snapshot
from spanloom.engine import ExecutionFilter, ExecutionStatus, ExecutionStore

__all__ = ["LIMIT_MS", "Timing", "time_reads"]

LIMIT_MS = 200.0  #: for a list or a count
SHOW_LIMIT_MS = 20.0
_LEAST, _MOST, _SECONDS = 10, 40, 1.0  #: calls of each read: within so many seconds, if there are enough of them
_LATER_ROWS = 1000  #: how far down a list the later page begins


@dataclass(frozen=True, slots=True)
class Timing:
    """What the calls of one read took, in milliseconds."""

    name: str
    kind: str
    millis: tuple[float, ...]
    found: int
    limit_ms: float = LIMIT_MS

    @property
    def p50(self) -> float:
        return statistics.median(self.millis)

    @property
    def p95(self) -> float:
        return sorted(self.millis)[max(0, round(len(self.millis) * 0.95) - 1)]

    @property
    def line(self) -> str:
        """A row of a Markdown table."""
        missed = " (over)" if self.p95 > self.limit_ms else ""
        return f"| {self.kind} | {self.name} | {self.p50:,.1f} | {self.p95:,.1f}{missed} | {self.found:,} |"


def time_reads(store: ExecutionStore) -> Iterator[Timing]:
    """Time every read, one after the other, and yield what each took."""
    ids = _some_ids(store)
    for name, filters in _filters(store).items():
        yield _timed("list", name, [_lister(store, one) for one in filters])
        cursors = [_later(store, one) for one in filters]
        if any(cursors):
            calls = [_lister(store, one, cursor) for one, cursor in zip(filters, cursors, strict=True) if cursor]
            yield _timed("later page", name, calls)
        yield _timed("count", name, [_counter(store, one) for one in filters])
    yield _timed("stats", "", [lambda: sum(store.stats().executions.values())])
    yield _timed("show", "read and drawn", [_shower(store, one) for one in ids], SHOW_LIMIT_MS)
    yield _timed("trace", "", [_tracer(store, one) for one in ids], SHOW_LIMIT_MS)


def _filters(store: ExecutionStore) -> dict[str, list[ExecutionFilter]]:
    now = datetime.now(UTC)
    parent = next(one.parent_execution_id for one in store.list_executions(ExecutionFilter(root=False), limit=1).items)
    customers = [{"customer": f"c-{number}"} for number in (0, 31, 62, 93, 124)]
    completed, failed, cancelled, running = (
        ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED, ExecutionStatus.RUNNING
    )  # fmt: skip
    week, day = now - timedelta(days=7), now - timedelta(days=1)
    middle = now - timedelta(days=15)
    filters: dict[str, ExecutionFilter | list[ExecutionFilter]] = {
        "everything": ExecutionFilter(),
        "workflow, half of all": ExecutionFilter(workflow_id="orders"),
        "workflow, one in a thousand": ExecutionFilter(workflow_id="audit"),
        **{f"status {status}": ExecutionFilter(status=status) for status in ExecutionStatus},
        "parent": ExecutionFilter(parent_execution_id=parent),
        "roots": ExecutionFilter(root=True),
        "children": ExecutionFilter(root=False),
        "acknowledged": ExecutionFilter(acknowledged=True),
        "not acknowledged": ExecutionFilter(acknowledged=False),
        "since a day": ExecutionFilter(created_after=day),
        "since 15 days": ExecutionFilter(created_after=middle),
        "before 15 days": ExecutionFilter(created_before=middle),
        "one week": ExecutionFilter(created_after=middle, created_before=week),
        "metadata of fifty": [ExecutionFilter(metadata=pair) for pair in customers],
        "metadata of a tenth": ExecutionFilter(metadata={"urgent": "yes"}),
        "metadata of half": ExecutionFilter(metadata={"region": "eu"}),
        "metadata of a quarter and of half": ExecutionFilter(metadata={"region": "us", "tier": "gold"}),
        "metadata of fifty and of half": [ExecutionFilter(metadata={**pair, "region": "eu"}) for pair in customers],
        "workflow, completed": ExecutionFilter(workflow_id="orders", status=completed),
        "workflow, failed": ExecutionFilter(workflow_id="orders", status=failed),
        "rare workflow, completed": ExecutionFilter(workflow_id="audit", status=completed),
        "rare workflow, failed": ExecutionFilter(workflow_id="audit", status=failed),
        "workflow, one week": ExecutionFilter(workflow_id="orders", created_after=middle, created_before=week),
        "workflow, roots": ExecutionFilter(workflow_id="orders", root=True),
        "workflow, metadata of half": ExecutionFilter(workflow_id="orders", metadata={"region": "eu"}),
        "rare workflow, metadata of half": ExecutionFilter(workflow_id="audit", metadata={"region": "eu"}),
        "failed, not acknowledged": ExecutionFilter(status=failed, acknowledged=False),
        "failed, acknowledged": ExecutionFilter(status=failed, acknowledged=True),
        "failed, metadata of half": ExecutionFilter(status=failed, metadata={"region": "eu"}),
        "failed roots, not acknowledged": ExecutionFilter(status=failed, acknowledged=False, root=True),
        "completed roots": ExecutionFilter(status=completed, root=True),
        "completed, before 15 days": ExecutionFilter(status=completed, created_before=middle),
        "cancelled, one week": ExecutionFilter(status=cancelled, created_after=middle, created_before=week),
        "completed, metadata of half": ExecutionFilter(status=completed, metadata={"region": "eu"}),
        "metadata of half, one week": ExecutionFilter(
            metadata={"region": "eu"}, created_after=middle, created_before=week
        ),
        "workflow, completed roots": ExecutionFilter(workflow_id="orders", status=completed, root=True),
        "nothing: unknown workflow": ExecutionFilter(workflow_id="unknown"),
        "nothing: unknown metadata": ExecutionFilter(metadata={"region": "unknown"}),
        "nothing: unknown key": ExecutionFilter(metadata={"unknown": "eu"}),
        "nothing: completed, acknowledged": ExecutionFilter(status=completed, acknowledged=True),
        "nothing: rare workflow, running": ExecutionFilter(workflow_id="audit", status=running),
        "nothing: before all": ExecutionFilter(created_before=now - timedelta(days=99)),
        "nothing: after all": ExecutionFilter(created_after=now + timedelta(days=9)),
        "nothing: metadata of a tenth, of a quarter": ExecutionFilter(metadata={"urgent": "yes", "tier": "gold"}),
        "nothing: workflow, unknown metadata": ExecutionFilter(workflow_id="orders", metadata={"region": "unknown"}),
        "nothing: old and running": ExecutionFilter(status=running, created_before=middle),
    }
    return {name: [one] if isinstance(one, ExecutionFilter) else one for name, one in filters.items()}


def _some_ids(store: ExecutionStore) -> list[str]:
    ids: list[str] = []
    for status in (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED):
        for days in (0, 10, 20):
            wanted = ExecutionFilter(status=status, created_before=datetime.now(UTC) - timedelta(days=days))
            ids += [one.id for one in store.list_executions(wanted, limit=20).items]
    return ids


def _lister(store: ExecutionStore, wanted: ExecutionFilter, cursor: str | None = None) -> Callable[[], int]:
    return lambda: len(store.list_executions(wanted, cursor=cursor).items)


def _counter(store: ExecutionStore, wanted: ExecutionFilter) -> Callable[[], int]:
    return lambda: store.get_execution_count(wanted)


def _later(store: ExecutionStore, wanted: ExecutionFilter) -> str | None:
    return store.list_executions(wanted, limit=_LATER_ROWS, data_limit=0).next_cursor


def _shower(store: ExecutionStore, execution_id: str) -> Callable[[], int]:
    def show() -> int:
        execution = store.get_execution(execution_id, data_limit=0)
        assert execution is not None
        snapshot = read_snapshot(store, execution)
        execution_tree(snapshot)
        return len(snapshot.runs)

    return show


def _tracer(store: ExecutionStore, execution_id: str) -> Callable[[], int]:
    return lambda: len(store.get_trace(execution_id))


def _timed(kind: str, name: str, calls: list[Callable[[], int]], limit_ms: float = LIMIT_MS) -> Timing:
    """Call in turn: at least so often that a p95 means something, and on for a second."""
    millis: list[float] = []
    found, began = 0, time.perf_counter()
    for call in cycle(calls):
        started = time.perf_counter()
        found = call()
        millis.append((time.perf_counter() - started) * 1000)
        if len(millis) >= _LEAST and (len(millis) >= _MOST or time.perf_counter() - began > _SECONDS):
            return Timing(name, kind, tuple(millis), found, limit_ms)
    raise AssertionError("no calls")
