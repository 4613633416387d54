"""An execution and its descendants with all their spans: what `spanloom trace` draws as one waterfall."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from spanloom.engine.store import ExecutionStore
from spanloom.engine.tracing import parse_trace_parent
from spanloom.engine.views import Execution, SpanRecord

__all__ = ["EXECUTIONS", "Family", "read_family", "rooted"]

EXECUTIONS = 500  #: the spans of how many executions are read, at most

_STATUSES = {"completed": "ok", "failed": "error"}


@dataclass(frozen=True, slots=True)
class Family:
    """Executions, parents before their children, and their spans; `whole` unless there were too many to read."""

    executions: tuple[Execution, ...]
    spans: tuple[SpanRecord, ...]
    whole: bool = True


def read_family(store: ExecutionStore, execution: Execution) -> Family:
    """Read the spans of an execution and of its descendants, level by level, of EXECUTIONS at most."""
    executions = [execution]
    spans: list[SpanRecord] = []
    whole = True
    for one in executions:  # grows while it is walked
        spans += store.get_trace(one.id)
        children = store.get_child_executions(one.id)
        room = EXECUTIONS - len(executions)
        whole = whole and len(children) <= room
        executions += children[:room]
    return Family(tuple(executions), tuple(spans), whole)


def rooted(spans: Sequence[SpanRecord], executions: Sequence[Execution]) -> list[SpanRecord]:
    """Return the spans with a span for each execution whose own one is not stored.

    That of a child hangs below the attempt that started it.
    """
    stored = {span.span_id for span in spans}
    attempts: dict[tuple[str, str | None, int], list[SpanRecord]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_ns):
        if span.kind == "consumer":
            attempts[span.execution_id, span.node_id, span.item].append(span)
    made = []
    for execution in executions:
        ids = parse_trace_parent(execution.trace_parent)
        if ids is None or ids[1] in stored:
            continue
        begun = _nanoseconds(execution.created_at)
        above = attempts.get(
            (execution.parent_execution_id or "", execution.parent_node_id, execution.parent_item or 0)
        )
        made.append(
            SpanRecord(
                execution_id=execution.id,
                trace_id=ids[0],
                span_id=ids[1],
                parent_span_id=_open_at(above, begun) if above else None,
                node_id=None,
                name=execution.workflow_id,
                kind="internal",
                status=_STATUSES.get(execution.status, "unset"),
                start_ns=begun,
                end_ns=_nanoseconds(execution.ended_at) if execution.ended_at else None,
            )
        )
    return [*made, *spans]


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


def _open_at(attempts: Sequence[SpanRecord], at_ns: int) -> str:
    """Choose the latest attempt that had begun by then; clocks may disagree, so there is always one."""
    position = bisect_right(attempts, at_ns, key=lambda span: span.start_ns)
    return attempts[max(position - 1, 0)].span_id
