"""Logs and spans outside the hot path, and their reads, shared by every SQL store."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from spanloom.engine.store.models import LogRecord, SpanRecord
from spanloom.engine.store.port import Telemetry
from spanloom.engine.store.requests import LogLine, NodeLines, SpanLine
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.store.texts import check_exact, storable
from spanloom.stores.schema import ATTEMPT, executions, logs, node_results, node_runs, spans
from spanloom.stores.sql.base import SqlStoreBase, canonical_id, known_id

__all__ = ["SqlTelemetry"]


class SqlTelemetry(SqlStoreBase, Telemetry):
    """The port's Telemetry in SQLAlchemy Core."""

    @abstractmethod
    def _log_id(self, execution_id: str) -> sa.ColumnElement[int] | None:
        """Return the next log line's id as an expression, None where the database numbers rows itself."""

    def add_log(self, execution_id: str, line: LogLine, *, node_id: str | None = None, item: int = 0) -> int:
        """See Telemetry.add_log."""
        check_exact("node id", node_id)
        with self._writing() as connection:
            return self._append(connection, known_id(connection, execution_id), node_id, item, [line])

    def add_logs(self, requests: Sequence[NodeLines]) -> list[int | None]:
        """See Telemetry.add_logs."""
        with self._writing() as connection:
            return [self._add_lines(connection, request) for request in requests]

    def _add_lines(self, connection: sa.Connection, request: NodeLines) -> int | None:
        spelled = canonical_id(request.execution_id)
        if spelled is None:
            return None
        if request.again and (last := _kept_before(connection, spelled, request)) is not None:
            return last
        claimed = sa.select(sa.literal(1)).where(
            node_runs.c.execution_id == spelled,
            node_runs.c.node_id == request.node_id,
            node_runs.c.item == request.item,
            node_runs.c.status == NodeStatus.RUNNING.value,
            node_runs.c.fence == request.fence,
        )
        if not connection.scalar(claimed):
            return None
        return self._append(connection, spelled, request.node_id, request.item, request.lines)

    def _append(
        self, connection: sa.Connection, execution_id: str, node_id: str | None, item: int, lines: Sequence[LogLine]
    ) -> int:
        rows: list[dict[str, Any]] = [
            {
                "execution_id": execution_id,
                "node_id": node_id,
                "item": item,
                "attempt": line.attempt,
                "level": storable(line.level),
                "message": storable(line.message),
                "fields": line.fields,
                "at": line.at,
                "trace_id": line.trace_id,
                "span_id": line.span_id,
            }
            for line in lines
        ]
        if (next_id := self._log_id(execution_id)) is not None:
            first = connection.scalars(sa.select(next_id)).one()
            for number, row in enumerate(rows, first):
                row["id"] = number
            connection.execute(sa.insert(logs), rows)
            return first + len(rows) - 1
        numbered = sa.insert(logs).returning(logs.c.id, sort_by_parameter_order=True)
        return int(connection.scalars(numbered, rows).all()[-1])

    def get_logs(
        self, execution_id: str, *, node_id: str | None = None, after: int = 0, limit: int = 1000
    ) -> list[LogRecord]:
        """See Telemetry.get_logs."""
        check_exact("node id", node_id)
        spelled = canonical_id(execution_id)
        if spelled is None:
            return []
        query = sa.select(logs).where(logs.c.execution_id == spelled, logs.c.id > after)
        if node_id is not None:
            query = query.where(logs.c.node_id == node_id)
        with self._reading() as connection:
            rows = connection.execute(query.order_by(logs.c.id).limit(limit)).mappings().all()
        return [LogRecord(**{**row, "fields": json.loads(row["fields"])}) for row in rows]

    def add_span(self, execution_id: str, span: SpanLine) -> None:
        """See Telemetry.add_span."""
        check_exact("node id", span.node_id)
        check_exact("id of a span", span.trace_id, span.span_id, span.parent_span_id)
        values = {
            "trace_id": span.trace_id,
            "parent_span_id": span.parent_span_id,
            "node_id": span.node_id,
            "item": span.item,
            "attempt": span.attempt,
            "name": storable(span.name),
            "kind": span.kind,
            "status": span.status,
            "start_ns": span.start_ns,
            "end_ns": span.end_ns,
            "attributes": span.attributes,
            "links": span.links,
        }
        with self._writing() as connection:
            spelled = known_id(connection, execution_id)
            new = self._insert(spans).values(execution_id=spelled, span_id=span.span_id, **values)
            connection.execute(
                new.on_conflict_do_update(index_elements=[spans.c.execution_id, spans.c.span_id], set_=values)
            )

    def update_span(self, execution_id: str, span_id: str, *, end_ns: int, status: str) -> bool:
        """See Telemetry.update_span."""
        check_exact("id of a span", span_id)
        spelled = canonical_id(execution_id)
        if spelled is None:
            return False
        with self._writing() as connection:
            changed = connection.execute(
                sa.update(spans)
                .where(spans.c.execution_id == spelled, spans.c.span_id == span_id)
                .values(end_ns=end_ns, status=status)
            )
            return changed.rowcount == 1

    def get_trace(
        self, execution_id: str, *, after: SpanRecord | None = None, limit: int | None = None
    ) -> list[SpanRecord]:
        """See Telemetry.get_trace."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return []
        trace = _trace(spelled)
        query = (
            sa.select(trace, executions.c.workflow_id, executions.c.version)
            .join(executions, executions.c.id == trace.c.execution_id)
            .order_by(trace.c.start_ns, trace.c.span_id)
        )
        if after is not None:
            last = sa.literal(after.start_ns, sa.BigInteger), sa.literal(after.span_id)
            query = query.where(sa.tuple_(trace.c.start_ns, trace.c.span_id) > sa.tuple_(*last))
        if limit is not None:
            query = query.limit(limit)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [_span(dict(row)) for row in rows]


def _trace(execution_id: str) -> sa.Subquery:
    """Select the spans of an execution: stored ones, and those that are kept with results, in short form."""
    columns = node_results.c
    kept = sa.select(
        columns.execution_id, columns.span.label("span_id"),
        sa.func.coalesce(sa.func.substr(executions.c.trace_parent, 4, 32), "").label("trace_id"),
        sa.func.substr(executions.c.trace_parent, 37, 16).label("parent_span_id"),
        columns.node_id, columns.item, columns.attempt, sa.literal("", sa.Text).label("name"),
        sa.literal(ATTEMPT, sa.Text).label("kind"), columns.status,
        columns.span_start_ns.label("start_ns"), columns.span_end_ns.label("end_ns"),
        columns.span_attributes.label("attributes"), columns.span_links.label("links"),
    ).join(executions, executions.c.id == columns.execution_id).where(
        columns.execution_id == execution_id, columns.span.is_not(None), columns.span_start_ns.is_not(None)
    )  # fmt: skip
    stored = sa.select(*(spans.c[column.name] for column in kept.selected_columns))
    return sa.union_all(stored.where(spans.c.execution_id == execution_id), kept).subquery()


def _span(row: dict[str, Any]) -> SpanRecord:
    """Read a span; of one in short form the rest is derived."""
    workflow = {"spanloom.workflow.id": row.pop("workflow_id"), "spanloom.workflow.version": row.pop("version")}
    attributes, links = json.loads(row["attributes"]), json.loads(row["links"])
    if row["kind"] == ATTEMPT:
        of_run = {
            "spanloom.execution.id": row["execution_id"],
            "spanloom.node.id": row["node_id"],
            "spanloom.node.attempt": row["attempt"],
            "spanloom.node.outcome": row["status"],
        }
        if row["item"]:
            of_run["spanloom.node.item"] = row["item"]
        attributes = {**workflow, **of_run, **attributes}
        links = [{"trace_id": row["trace_id"], "span_id": span_id, "kind": kind} for kind, span_id in links]
        failed = attributes["spanloom.node.outcome"] == NodeStatus.FAILED
        row |= {"name": f"run {row['node_id']}", "kind": "consumer", "status": "error" if failed else "unset"}
    return SpanRecord.model_validate({**row, "attributes": attributes, "links": links})


def _kept_before(connection: sa.Connection, execution_id: str, request: NodeLines) -> int | None:
    """Return the id of the last of these lines if they were stored, in the same batch, when they were sent before."""
    first = request.lines[0]
    of_attempt = sa.select(logs.c.id).where(
        logs.c.execution_id == execution_id,
        logs.c.id > request.after,
        logs.c.node_id == request.node_id,
        logs.c.item == request.item,
        logs.c.attempt == first.attempt,
    )
    same = of_attempt.where(logs.c.at == first.at, logs.c.message == storable(first.message))
    found: int | None = connection.scalar(same.order_by(logs.c.id).limit(1))
    if found is None:
        return None
    later = of_attempt.where(logs.c.id >= found).order_by(logs.c.id).limit(len(request.lines))
    return max(connection.scalars(later).all(), default=found)
