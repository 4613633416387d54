"""The reads of executions, node runs and events, shared by every SQL store, in SQLAlchemy Core."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any

import sqlalchemy as sa

from spanloom.engine.store.models import Event, Execution, ExecutionFilter, NodeRun, Page, StoreStats
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import END, PARENT, START
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.engine.store.texts import check_exact
from spanloom.stores.schema import (
    EXECUTIONS_NOT_COMPLETED,
    Instant,
    executions,
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
from spanloom.stores.sql.lists.filters import count_query, list_query
from spanloom.stores.sql.lists.paging import page
from spanloom.stores.sql.payloads import SqlPayloads, fitting, octet_length, read_data, read_inputs, size_of
from spanloom.stores.sql.span_exports import SqlExports
from spanloom.stores.sql.telemetry import SqlTelemetry

__all__ = ["ANY_SIZE", "SqlStore", "as_execution", "output_of"]

VIRTUAL = (START, END, PARENT)
ANY_SIZE = 2**62


class SqlStore(SqlVersions, SqlTelemetry, SqlExports, SqlLeases, SqlAttempts, SqlPayloads, ExecutionStore):
    """The base of a SQL store, with every read of the port and, by inheritance, the writes that are not hot."""

    def get_execution(self, execution_id: str, *, data_limit: int | None = None) -> Execution | None:
        """See ExecutionReads.get_execution."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return None
        with self._reading() as connection:
            row = connection.execute(_EXECUTION, {"execution_id": spelled}).one_or_none()
            if row is None:
                return None
            completed = row.status == ExecutionStatus.COMPLETED
            output, size = _output(connection, row, data_limit) if completed else (None, None)
        return as_execution(row, output, size)

    def get_status(self, execution_id: str) -> ExecutionStatus | None:
        """See ExecutionReads.get_status."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return None
        with self._reading() as connection:
            status = connection.scalar(_STATUS, {"execution_id": spelled})
        return None if status is None else ExecutionStatus(status)

    def get_node_results(
        self, execution_id: str, node_ids: Sequence[str] | None = None, *, data_limit: int | None = None
    ) -> list[NodeRun]:
        """See ExecutionReads.get_node_results."""
        check_exact("node id", *(node_ids or ()))
        spelled = canonical_id(execution_id)
        if spelled is None:
            return []
        with self._reading() as connection:
            parameters = (
                {"execution_id": spelled} if node_ids is None else {"execution_id": spelled, "node_ids": node_ids}
            )
            query = _node_query(some=node_ids is not None, data=data_limit is None)
            rows = connection.execute(query, parameters).mappings().all()
            if data_limit is None:
                return [_node_run(row) for row in rows]
            keys = fitting((((row["node_id"], row["item"]), row["data_size"]) for row in rows), data_limit)
            data = read_data(connection, spelled, keys)
        return [_node_run({**row, "data": data.get((row["node_id"], row["item"]))}) for row in rows]

    def list_executions(
        self,
        filter: ExecutionFilter | None = None,
        *,
        limit: int = 100,
        cursor: str | None = None,
        data_limit: int | None = None,
    ) -> Page[Execution]:
        """See ExecutionReads.list_executions."""
        query = list_query(_listed(data=data_limit is None), filter, cursor, limit + 1)
        with self._searching() as connection:
            rows = connection.execute(query).all()
            read = partial(_listed_execution, _inputs(connection, rows, data_limit))
        return page(rows, limit, read, lambda row: (to_micros(row.created_at), row.id))

    def get_execution_count(self, filter: ExecutionFilter | None = None) -> int:
        """See ExecutionReads.get_execution_count."""
        with self._searching() as connection:
            return int(connection.scalars(count_query(filter)).one())

    def get_child_executions(self, execution_id: str, *, data_limit: int | None = None) -> list[Execution]:
        """See ExecutionReads.get_child_executions."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return []
        query = (
            _listed(data=data_limit is None)
            .where(executions.c.parent_id == spelled)
            .order_by(executions.c.created_at, executions.c.id)
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
            inputs = _inputs(connection, rows, data_limit)
        return [_listed_execution(inputs, row) for row in rows]

    def get_parent_execution(self, execution_id: str) -> Execution | None:
        """See ExecutionReads.get_parent_execution."""
        execution = self.get_execution(execution_id)
        if execution is None or execution.parent_execution_id is None:
            return None
        return self.get_execution(execution.parent_execution_id)

    def get_events(self, execution_id: str, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        """See ExecutionReads.get_events."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return []
        with self._reading() as connection:
            rows = connection.execute(self._event_query(spelled, after).limit(limit)).all()
        return [_event(row) for row in rows]

    def stats(self, *, now: datetime | None = None) -> StoreStats:
        """See ExecutionReads.stats."""
        status = executions.c.status
        not_completed = sa.select(status, sa.func.count()).where(EXECUTIONS_NOT_COMPLETED).group_by(status)
        by_status = sa.union_all(
            not_completed, sa.select(sa.literal("completed"), count_query(_COMPLETED).scalar_subquery())
        )
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


_COMPLETED = ExecutionFilter(status=ExecutionStatus.COMPLETED)
_EXECUTION = sa.select(executions).where(executions.c.id == sa.bindparam("execution_id"))
_STATUS = sa.select(executions.c.status).where(executions.c.id == sa.bindparam("execution_id"))
_OPEN = tuple(status for status in NodeStatus if not status.ended)


@cache  # building it takes longer than most databases need to run it
def _node_query(*, some: bool, data: bool) -> sa.Select[Any]:
    """Select the node runs of `execution_id`, or some of them: those of `node_ids`; with or without their data."""
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
        sa.cast(nothing, sa.BigInteger).label("data_size"),
        runs.worker_id,
        runs.span,
        # Of a woken run they hold the wait that woke it, which only its claim returns.
        *(sa.case((runs.status == NodeStatus.WAITING.value, column)).label(column.name) for column in waits),
        *(runs.due_at, runs.started_at),
        sa.cast(nothing, Instant).label("ended_at"),
    ).where(runs.execution_id == execution_id, runs.node_id.not_in(VIRTUAL))
    ended = sa.select(
        *(results.execution_id, results.node_id, results.item, results.node_type, results.status),
        *(results.attempt, results.recovery_attempts),
        results.data if data else sa.cast(nothing, sa.Text).label("data"),
        *(results.error, results.taken, octet_length(results.data).label("data_size"), results.worker_id),
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
def _sink_query() -> sa.Select[Any, Any, Any, int]:
    edges, results = workflow_edges.c, node_results.c
    handled = sa.and_(results.status == NodeStatus.FAILED.value, results.arrived, results.data.is_not(None))
    ended = sa.and_(
        results.execution_id == sa.bindparam("execution_id"), results.node_id == edges.source, results.item == 0,
        sa.or_(results.status == NodeStatus.COMPLETED.value, handled),
    )  # fmt: skip
    # The window's sum reads no data: it is known for each row.
    size = sa.func.sum(octet_length(results.data)).over()
    data = sa.case((size <= sa.bindparam("most", type_=sa.BigInteger), results.data))
    version = (edges.workflow_id == sa.bindparam("workflow_id"), edges.version == sa.bindparam("version"))
    return (
        sa.select(edges.source, results.node_id, data.label("data"), size.label("size"))
        .select_from(workflow_edges.outerjoin(node_results, ended))
        .where(*version, edges.target == END)
        .order_by(edges.source)
    )


def _output(connection: sa.Connection, row: sa.Row[Any], limit: int | None) -> tuple[Any, int]:
    """Derive a completed execution's output from its sinks: those with an edge to `$end` and with data."""
    of_it = {"execution_id": row.id, "workflow_id": row.workflow_id, "version": row.version}
    most = ANY_SIZE if limit is None else limit
    return output_of(connection.execute(_sink_query(), {**of_it, "most": most}).all(), most)


def output_of(sinks: Sequence[Any], most: int) -> tuple[Any, int]:
    """Derive an output from its sinks, each (source, node id, data, bytes of all data); node id None: without data."""
    size = int(sinks[0][3] or 0) if sinks else 0
    if size > most:
        return None, size
    left = {source: decoded(data) for source, node_id, data, _ in sinks if node_id is not None}
    return left if len(sinks) > 1 else next(iter(left.values()), None), size


_WITHOUT_INPUT = (
    *(sa.cast(sa.null(), sa.Text).label("input") if column.name == "input" else column for column in executions.c),
    octet_length(executions.c.input).label("input_size"),
)


def _listed(*, data: bool) -> sa.Select[Any]:
    return sa.select(executions) if data else sa.select(*_WITHOUT_INPUT)


def _inputs(connection: sa.Connection, rows: Sequence[sa.Row[Any]], limit: int | None) -> dict[str, str] | None:
    """Return those inputs of listed executions that fit into the limit; None: they are in the rows."""
    if limit is None:
        return None
    return read_inputs(connection, fitting(((row.id, row.input_size) for row in rows), limit))


def _listed_execution(inputs: dict[str, str] | None, row: sa.Row[Any]) -> Execution:
    if inputs is None:
        return as_execution(row)
    return as_execution(row, input=inputs.get(row.id), input_size=row.input_size)


def decoded(text: str | None) -> Any:
    """Return the value of a JSON payload. None if there is none."""
    return None if text is None else json.loads(text)


def as_execution(
    row: Any,
    output: Any = None,
    output_size: int | None = None,
    *,
    input: str | None = None,
    input_size: int | None = None,
) -> Execution:
    """Read a row of `executions`, with its output."""
    text: str | None = row.input if input_size is None else input
    return Execution(
        id=row.id,
        workflow_id=row.workflow_id,
        version=row.version,
        status=row.status,
        revision=row.revision,
        priority=row.priority,
        input=decoded(text),
        input_size=size_of(row.input) if input_size is None else input_size,
        output=output,
        output_size=output_size,
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


def _node_run(row: Mapping[str, Any] | sa.RowMapping) -> NodeRun:
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
