"""The spans that may have been lost with the worker that was to export them, shared by every SQL store."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from spanloom.engine.store.port import SpanExports
from spanloom.engine.store.requests import END, PendingExports
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.engine.store.texts import check_exact
from spanloom.stores.schema import (
    EXECUTIONS_ENDED,
    Id,
    Instant,
    events,
    executions,
    from_micros,
    node_results,
    node_runs,
    to_micros,
    workers,
)
from spanloom.stores.sql.base import SqlStoreBase
from spanloom.stores.sql.lists.paging import check_limit

__all__ = ["SqlExports"]

#: The events of a record's own run. Each names the worker, and the record has stored its spans.
_RECORDED = ("node.completed", "node.failed", "node.skipped", "node.retrying", "node.waiting", "node.released")
_FIRST_ID = "00000000-0000-0000-0000-000000000000"


class SqlExports(SqlStoreBase, SpanExports):
    """The port's SpanExports in SQLAlchemy Core, over columns of `workers`.

    Open executions are looked at first, by id, then those that have ended, by their end. One that ends meanwhile was
    looked at while it was open.
    """

    def ack_exports(
        self, worker_id: str, until: datetime | None = None, *, now: datetime | None = None
    ) -> datetime | None:
        """See SpanExports.ack_exports."""
        check_exact("worker id", worker_id)
        confirmed = workers.c.spans_confirmed_at
        with self._writing() as connection:
            at = self._at(connection, now)
            own = sa.update(workers).where(workers.c.id == worker_id)
            noted = connection.execute(
                own.values(spans_confirmed_at=sa.func.coalesce(confirmed, sa.literal(at, Instant)))
                if until is None
                else own.where(confirmed.is_not(None)).values(spans_confirmed_at=until)
            )
        return at if noted.rowcount else None

    def claim_exports(self, worker_id: str, *, limit: int = 1000, now: datetime | None = None) -> PendingExports | None:
        """See SpanExports.claim_exports."""
        check_exact("worker id", worker_id)
        check_limit(limit)
        with self._writing() as connection:
            gone = connection.execute(_take_over(worker_id, self._at(connection, now))).one_or_none()
        if gone is None:
            return None
        with self._reading() as connection:
            ended = gone.spans_cursor is not None and "/" in gone.spans_cursor
            rows = connection.execute((_ended if ended else _open)(gone, limit)).all()
        cursor: str | None = None
        if len(rows) == limit:
            last = rows[-1]
            cursor = f"{to_micros(last.ended_at)}/{last.id}" if ended else str(last.id)
        elif not ended:
            cursor = f"{to_micros(gone.started_at)}/{_FIRST_ID}"  # after the last open one come those that have ended
        return PendingExports(gone.id, [row.id for row in rows if row.recorded], cursor)

    def release_exports(self, worker_id: str, left_by: str, cursor: str | None = None) -> None:
        """See SpanExports.release_exports."""
        check_exact("worker id", worker_id, left_by)
        check_exact("cursor", cursor)
        columns = workers.c
        mine = sa.and_(columns.id == left_by, sa.func.coalesce(columns.spans_exporter, columns.id) == worker_id)
        done: dict[str, Any] = {"spans_confirmed_at": None, "spans_exporter": None, "spans_cursor": None}
        with self._writing() as connection:
            connection.execute(
                sa.update(workers).where(mine).values(done if cursor is None else {"spans_cursor": cursor})
            )


def _take_over(worker_id: str, at: datetime) -> Any:
    """Make the worker the exporter of one that is gone, preferably of one whose exporter it is, and return the row."""
    columns, exporter = workers.c, workers.alias().c
    claims = sa.exists().where(node_runs.c.worker_id == columns.id, node_runs.c.status == NodeStatus.RUNNING.value)
    live = sa.exists().where(
        exporter.id == columns.spans_exporter, exporter.released_at.is_(None), exporter.lease_until > at
    )
    mine = columns.spans_exporter == worker_id
    gone = (columns.spans_confirmed_at.is_not(None), columns.released_at.is_not(None), ~claims, sa.or_(mine, ~live))
    first = (
        sa.select(columns.id)
        .where(*gone)
        .order_by(sa.case((mine, 0), else_=1), columns.released_at, columns.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return (
        sa.update(workers)
        .where(columns.id == first.scalar_subquery())
        .values(spans_exporter=worker_id)
        .returning(columns.id, columns.started_at, columns.spans_confirmed_at, columns.spans_cursor)
    )


def _recorded(gone: sa.Row[Any], execution_id: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return whether an outcome of a claim of the worker was recorded since it last confirmed, as an expression."""
    columns = events.c
    return sa.exists().where(
        columns.execution_id == execution_id, columns.worker_id == gone.id, columns.kind.in_(_RECORDED),
        columns.at >= gone.spans_confirmed_at,
    )  # fmt: skip


def _open(gone: sa.Row[Any], limit: int) -> sa.Select[Any, bool]:
    """Select executions that may still change, also failed ones, by their rows for `$end`: their order is fixed."""
    columns = node_runs.c
    after = gone.spans_cursor or _FIRST_ID
    page = (
        sa.select(columns.execution_id.label("id"))
        .where(columns.node_id == END, columns.item == 0, columns.execution_id > after)
        .order_by(columns.execution_id)
        .limit(limit)
        .subquery()
    )
    return sa.select(page.c.id, _recorded(gone, page.c.id).label("recorded")).order_by(page.c.id)


def _ended(gone: sa.Row[Any], limit: int) -> sa.Select[Any, Any, bool]:
    """Select executions that have ended since the worker last confirmed, and earlier ones that were cancelled.

    The outcome of a cancelled run is recorded whenever its handler ends, and leaves no event.
    """
    columns = executions.c
    micros, _, last_id = gone.spans_cursor.partition("/")
    key = sa.tuple_(columns.ended_at, columns.id)
    after = key > sa.tuple_(sa.literal(from_micros(int(micros)), Instant), sa.literal(last_id, Id))

    def first(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        wanted = sa.select(columns.id, columns.ended_at, columns.status).where(*conditions, EXECUTIONS_ENDED, after)
        return sa.select(wanted.order_by(columns.ended_at, columns.id).limit(limit).subquery())

    since = gone.spans_confirmed_at
    either = sa.union_all(
        first(columns.status == ExecutionStatus.COMPLETED.value, columns.ended_at >= since),
        first(columns.status == ExecutionStatus.CANCELLED.value),
    ).subquery()
    page = sa.select(either).order_by(either.c.ended_at, either.c.id).limit(limit).subquery()
    results = node_results.c
    late = sa.exists().where(
        results.execution_id == page.c.id, results.worker_id == gone.id,
        results.status == NodeStatus.CANCELLED.value, results.taken.is_not(None),
    )  # fmt: skip
    cancelled = sa.and_(page.c.status == ExecutionStatus.CANCELLED.value, late)
    recorded = sa.or_(_recorded(gone, page.c.id), cancelled).label("recorded")
    return sa.select(page.c.id, page.c.ended_at, recorded).order_by(page.c.ended_at, page.c.id)
