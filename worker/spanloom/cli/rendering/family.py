"""An execution and its descendants with all their spans, which `spanloom trace` draws as one waterfall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from spanloom.engine.store.models import Execution, SpanRecord
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.telemetry.spans import nanoseconds
from spanloom.engine.telemetry.tracing import parse_trace_parent

__all__ = ["EXECUTIONS", "SPANS", "Family", "read_family", "rooted"]

EXECUTIONS = 500  #: the most executions of which spans are read
SPANS = 20_000  #: the most spans that are read

_STATUSES = {"completed": "ok", "failed": "error"}


@dataclass(frozen=True, slots=True)
class Family:
    """Executions, parents before their children, with their spans; `whole` unless there were too many to read."""

    executions: tuple[Execution, ...]
    spans: tuple[SpanRecord, ...]
    whole: bool = True


def read_family(store: ExecutionStore, execution: Execution) -> Family:
    """Read the spans of an execution and of its descendants, level by level, of EXECUTIONS and SPANS at most."""
    executions = [execution]
    spans: list[SpanRecord] = []
    whole = True
    for member in executions:  # grows while it is walked
        found = list(islice(store.iter_trace(member.id), SPANS - len(spans) + 1))
        whole = whole and len(spans) + len(found) <= SPANS
        spans += found[: SPANS - len(spans)]
        children = store.get_child_executions(member.id, data_limit=0)
        room = EXECUTIONS - len(executions)
        whole = whole and len(children) <= room
        executions += children[:room]
    return Family(tuple(executions), tuple(spans), whole)


def rooted(spans: Sequence[SpanRecord], executions: Sequence[Execution]) -> list[SpanRecord]:
    """Return the spans with each execution's own span, as it is exported at the execution's end.

    The spans of nodes that still waited when their execution ended are ended with it.
    """
    stored = {span.span_id for span in spans}
    ends = {execution.id: nanoseconds(execution.ended_at) for execution in executions if execution.ended_at is not None}
    made = []
    for execution in executions:
        ids = parse_trace_parent(execution.trace_parent)
        if ids is None or ids[1] in stored:
            continue
        made.append(
            SpanRecord(
                execution_id=execution.id,
                trace_id=ids[0],
                span_id=ids[1],
                parent_span_id=execution.caller_span_id,
                node_id=None,
                name=execution.workflow_id,
                kind="internal",
                status=_STATUSES.get(execution.status, "unset"),
                start_ns=nanoseconds(execution.created_at),
                end_ns=ends.get(execution.id),
            )
        )
    return [*made, *(_ended(span, ends.get(span.execution_id)) for span in spans)]


def _ended(span: SpanRecord, end_ns: int | None) -> SpanRecord:
    if span.end_ns is not None or end_ns is None:
        return span
    return span.model_copy(update={"end_ns": max(end_ns, span.start_ns)})
