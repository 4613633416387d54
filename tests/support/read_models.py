"""Fixed read models, and what is drawn of them: what the tests of the renderings compare."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console, RenderableType

from spanloom.engine.store.models import Execution, NodeRun, SpanRecord
from spanloom.engine.store.states import NodeStatus

NINE = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
NOW = NINE + timedelta(minutes=5)
ID = "019cb2f4-1111-7abc-8def-0123456789ab"
CHILD_ID = "019cb2f4-2222-7abc-8def-ba9876543210"
TRACE_ID, ROOT_SPAN = "a" * 32, "b" * 16


def drawn(renderable: RenderableType, width: int = 100) -> list[str]:
    screen = Console(file=io.StringIO(), width=width, color_system=None)
    screen.print(renderable)
    assert isinstance(screen.file, io.StringIO)
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


def text(block: str) -> list[str]:
    return [line[8:] for line in block.splitlines()[1:-1]]


def at(seconds: float) -> datetime:
    return NINE + timedelta(seconds=seconds)


def execution(**changes: Any) -> Execution:
    fields: dict[str, Any] = {
        "id": ID,
        "workflow_id": "orders",
        "version": 3,
        "status": "completed",
        "revision": 0,
        "priority": "normal",
        "input": None,
        "metadata": {"customer": "17"},
        "trace_parent": f"00-{TRACE_ID}-{ROOT_SPAN}-01",
        "created_at": NINE,
        "started_at": NINE,
        "ended_at": at(3.2),
    }
    return Execution(**fields | changes)


def run(node_id: str, status: str, start: float | None = None, end: float | None = None, **changes: Any) -> NodeRun:
    return NodeRun(
        execution_id=ID,
        node_id=node_id,
        node_type="work",
        status=NodeStatus(status),
        started_at=None if start is None else at(start),
        ended_at=None if end is None else at(end),
        worker_id="w1" if start is not None else None,
        **changes,
    )


def span(
    name: str, start: float, end: float | None, number: int, parent: str | None = ROOT_SPAN, **changes: Any
) -> SpanRecord:
    fields: dict[str, Any] = {
        "execution_id": ID,
        "trace_id": TRACE_ID,
        "span_id": f"{number:016x}",
        "parent_span_id": parent,
        "node_id": name,
        "name": name,
        "kind": "consumer",
        "status": "ok",
        "start_ns": int(at(start).timestamp() * 1000) * 1_000_000,
        "end_ns": None if end is None else int(at(end).timestamp() * 1000) * 1_000_000,
    }
    return SpanRecord(**fields | changes)
