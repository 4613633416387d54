"""The reads of executions, node runs and events, shared by every SQL store, in SQLAlchemy Core."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from spanloom.engine.store.models import Event, Execution, ExecutionFilter, NodeRun, Page, StoreStats
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import END, PARENT, START
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.stores.schema import (
    EXECUTIONS_OPEN,
    Id,
    Instant,
    execution_metadata,
    executions,
    from_micros,
    node_results,
    node_runs,
    to_micros,
    workers,
    workflow_edges,
    workflows,
)
from spanloom.stores.sql.attempts import SqlAttempts
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.sql.definitions import SqlVersions
from spanloom.stores.sql.leases import SqlLeases
from spanloom.stores.sql.paging import check_limit, page, sort_key
from spanloom.stores.sql.span_exports import SqlExports
from spanloom.stores.sql.telemetry import SqlTelemetry

__all__ = ["SqlStore"]

VIRTUAL = (START, END, PARENT)


class SqlStore(SqlVersions, SqlTelemetry, SqlExports, SqlLeases, SqlAttempts, ExecutionStore):
    """The base of a SQL store, with every read of the port and, by inheritance, the writes that are not hot."""

    def get_execution(self, execution_id: str) -> Execution | None:
        """See ExecutionReads.get_execution."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return None
        with self._reading() as connection:
            row = connection.execute(_EXECUTION, {"execution_id": spelled}).one_or_none()
            if row is None:
                return None
            output = _output(connection, row) if row.status == ExecutionStatus.COMPLETED else None
        return _execution(row, output)

    def get_node_results(self, execution_id: str, node_ids: Sequence[str] | None = None) -> list[NodeRun]:
        """See ExecutionReads.get_node_results."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return []
        with self._reading() as connection:
            parameters = (
                {"execution_id": spelled} if node_ids is None else {"execution_id": spelled, "node_ids": node_ids}
            )
            rows = connection.execute(_node_query(some=node_ids is not None), parameters).mappings().all()
        return [_node_run(row) for row in rows]

    def list_executions(
        self, filter: ExecutionFilter | None = None, *, limit: int = 100, cursor: str | None = None
    ) -> Page[Execution]:
        """See ExecutionReads.list_executions."""
        conditions = _conditions(filter)
        if cursor is not None:
            created_at, last_id = sort_key(cursor, int, str)
            # A single row comparison, so that an index on (created_at, id) can seek.
            last = sa.tuple_(sa.literal(from_micros(created_at), Instant), sa.literal(last_id, Id))
            conditions.append(sa.tuple_(executions.c.created_at, executions.c.id) < last)
        query = (
            sa.select(executions)
            .where(*conditions)
            .order_by(executions.c.created_at.desc(), executions.c.id.desc())
            .limit(check_limit(limit) + 1)
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return page(rows, limit, _execution, lambda row: (to_micros(row.created_at), row.id))

    def get_execution_count(self, filter: ExecutionFilter | None = None) -> int:
        """See ExecutionReads.get_execution_count."""
        with self._reading() as connection:
            return connection.scalars(
                sa.select(sa.func.count()).select_from(executions).where(*_conditions(filter))
            ).one()

    def get_child_executions(self, execution_id: str) -> list[Execution]:
        """See ExecutionReads.get_child_executions."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return []
        query = (
            sa.select(executions)
            .where(executions.c.parent_id == spelled)
            .order_by(executions.c.created_at, executions.c.id)
        )
        with self._reading() as connection:
            return [_execution(row) for row in connection.execute(query)]

    def get_parent_execution(self, execution_id: str) -> Execution | None:
        """See ExecutionReads.get_parent_execution."""
        execution = self.get_execution(execution_id)
        if execution is None or execution.parent_execution_id is None:
            return None
        return self.get_execution(execution.parent_execution_id)

    def get_events(self, execution_id: str, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        """See ExecutionReads.get_events."""
        check_limit(limit)
        spelled = canonical_id(execution_id)
        if spelled is None:
            return []
        with self._reading() as connection:
            rows = connection.execute(self._event_query(spelled, after).limit(limit)).all()
        return [_event(row) for row in rows]

    def stats(self, *, now: datetime | None = None) -> StoreStats:
        """See ExecutionReads.stats."""
        by_status = sa.select(executions.c.status, sa.func.count()).group_by(executions.c.status)
        open_runs = (
            sa.select(node_runs.c.status, sa.func.count(), sa.func.min(node_runs.c.pushed_at, type_=Instant))
            .where(node_runs.c.node_id.not_in(VIRTUAL))
            .group_by(node_runs.c.status)
        )
        with self._reading() as connection:
            at = self._at(connection, now)
            counted = {row.status: row[1] for row in connection.execute(by_status)}
            runs = {status: (count, since) for status, count, since in connection.execute(open_runs)}
            live = sa.and_(workers.c.released_at.is_(None), workers.c.lease_until > at)
            return StoreStats(
                workflows=connection.scalars(sa.select(sa.func.count()).select_from(workflows)).one(),
                executions={status: counted.get(status, 0) for status in ExecutionStatus},
                open_node_runs={status: runs[status][0] if status in runs else 0 for status in _OPEN},
                workers=connection.scalars(sa.select(sa.func.count()).select_from(workers).where(live)).one(),
                oldest_queued_seconds=(
                    (at - runs[NodeStatus.QUEUED][1]).total_seconds() if NodeStatus.QUEUED in runs else None
                ),
            )


_EXECUTION = sa.select(executions).where(executions.c.id == sa.bindparam("execution_id"))
_OPEN = tuple(status for status in NodeStatus if not status.ended)


def _conditions(filter: ExecutionFilter | None) -> list[sa.ColumnElement[bool] | sa.TextClause]:
    if filter is None:
        return []
    columns = executions.c
    conditions: list[sa.ColumnElement[bool] | sa.TextClause] = []
    if filter.workflow_id is not None:
        conditions.append(columns.workflow_id == filter.workflow_id)
    if filter.status is not None:
        conditions.append(columns.status == filter.status.value)
        if filter.status not in (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED):
            conditions.append(EXECUTIONS_OPEN)
    if filter.parent_execution_id is not None:
        parent = canonical_id(filter.parent_execution_id)
        conditions.append(sa.false() if parent is None else columns.parent_id == parent)
    if filter.root is not None:
        conditions.append(columns.parent_id.is_(None) if filter.root else columns.parent_id.is_not(None))
    if filter.acknowledged is not None:
        conditions.append(
            columns.acknowledged_at.is_not(None) if filter.acknowledged else columns.acknowledged_at.is_(None)
        )
    if filter.created_after is not None:
        conditions.append(columns.created_at >= filter.created_after)
    if filter.created_before is not None:
        conditions.append(columns.created_at < filter.created_before)
    pairs = execution_metadata.c
    for key, value in filter.metadata.items():
        conditions.append(columns.id.in_(sa.select(pairs.execution_id).where(pairs.key == key, pairs.value == value)))
    return conditions


@cache  # building it takes longer than most databases need to run it
def _node_query(*, some: bool) -> sa.Select[Any]:
    """Select the node runs of `execution_id`, or some of them: those of `node_ids`."""
    # A single statement, so that a run that ends meanwhile is neither missed nor returned twice.
    execution_id: sa.BindParameter[str] = sa.bindparam("execution_id")
    nothing = sa.null()
    runs, results = node_runs.c, node_results.c
    waits = (runs.wait_kind, runs.wait_key)
    still_open = sa.select(
        *(
            runs.execution_id,
            runs.node_id,
            runs.item,
            runs.node_type,
            runs.status,
            runs.attempt,
            runs.recovery_attempts,
        ),
        *(sa.cast(nothing, sa.Text).label(name) for name in ("data", "error", "taken")),
        runs.worker_id,
        runs.span,
        # Of a woken run they hold the wait that woke it, which only its claim returns.
        *(sa.case((runs.status == NodeStatus.WAITING.value, column)).label(column.name) for column in waits),
        *(runs.due_at, runs.started_at),
        sa.cast(nothing, Instant).label("ended_at"),
    ).where(runs.execution_id == execution_id, runs.node_id.not_in(VIRTUAL))
    ended = sa.select(
        *(results.execution_id, results.node_id, results.item, results.node_type, results.status),
        *(results.attempt, results.recovery_attempts, results.data, results.error, results.taken, results.worker_id),
        results.span,
        *(sa.cast(nothing, sa.Text).label(name) for name in ("wait_kind", "wait_key")),
        *(sa.cast(nothing, Instant).label("due_at"), results.started_at, results.ended_at),
    ).where(results.execution_id == execution_id)
    if some:
        node_ids: sa.BindParameter[Sequence[str]] = sa.bindparam("node_ids", expanding=True)
        still_open = still_open.where(runs.node_id.in_(node_ids))
        ended = ended.where(results.node_id.in_(node_ids))
    every = sa.union_all(still_open, ended).subquery()
    return sa.select(every).order_by(every.c.node_id, every.c.item)


@cache
def _sink_query() -> sa.Select[Any, Any, Any]:
    edges, results = workflow_edges.c, node_results.c
    handled = sa.and_(results.status == NodeStatus.FAILED.value, results.arrived, results.data.is_not(None))
    ended = sa.and_(
        results.execution_id == sa.bindparam("execution_id"), results.node_id == edges.source, results.item == 0,
        sa.or_(results.status == NodeStatus.COMPLETED.value, handled),
    )  # fmt: skip
    version = (edges.workflow_id == sa.bindparam("workflow_id"), edges.version == sa.bindparam("version"))
    return (
        sa.select(edges.source, results.node_id, results.data)
        .select_from(workflow_edges.outerjoin(node_results, ended))
        .where(*version, edges.target == END)
        .order_by(edges.source)
    )


def _output(connection: sa.Connection, row: sa.Row[Any]) -> Any:
    """Derive a completed execution's output from its sinks: those with an edge to `$end` and with data."""
    of_it = {"execution_id": row.id, "workflow_id": row.workflow_id, "version": row.version}
    sinks = connection.execute(_sink_query(), of_it).all()
    left = {source: decoded(data) for source, node_id, data in sinks if node_id is not None}
    return left if len(sinks) > 1 else next(iter(left.values()), None)


def decoded(text: str | None) -> Any:
    """Return the value of a JSON payload. None if there is none."""
    return None if text is None else json.loads(text)


def _execution(row: sa.Row[Any], output: Any = None) -> Execution:
    return Execution(
        id=row.id,
        workflow_id=row.workflow_id,
        version=row.version,
        status=row.status,
        revision=row.revision,
        priority=row.priority,
        input=decoded(row.input),
        output=output,
        error=decoded(row.error),
        metadata=json.loads(row.metadata),
        parent_execution_id=row.parent_id,
        parent_node_id=row.parent_node_id,
        parent_item=row.parent_item,
        depth=row.depth,
        deadline_seconds=row.deadline_seconds,
        replay_of=row.replay_of,
        trace_parent=row.trace_parent,
        trace_state=row.trace_state,
        caller_span_id=row.caller_span_id,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        acknowledged_at=row.acknowledged_at,
    )


def _node_run(row: sa.RowMapping) -> NodeRun:
    return NodeRun(**{**row, **{name: decoded(row[name]) for name in ("data", "error", "taken")}})


def _event(row: sa.Row[Any]) -> Event:
    return Event(
        cursor=row.cursor,
        execution_id=row.execution_id,
        kind=row.kind,
        node_id=row.node_id,
        item=row.item,
        attempt=row.attempt,
        worker_id=row.worker_id,
        data=json.loads(row.data) if row.data else {},
        at=row.at,
    )
