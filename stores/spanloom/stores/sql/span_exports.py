"""The spans that may have been lost with the worker that was to export them, shared by every SQL store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from spanloom.engine.store.port import SpanExports
from spanloom.engine.store.requests import SpanExport
from spanloom.stores.schema import span_exports, workers
from spanloom.stores.sql.base import SqlStoreBase

__all__ = ["SqlExports"]


class SqlExports(SqlStoreBase, SpanExports):
    """The port's SpanExports in SQLAlchemy Core. Rows that another transaction has locked are left out."""

    def ack_exports(self, worker_id: str, until_ns: int) -> int:
        """See SpanExports.ack_exports."""
        columns = span_exports.c
        own = sa.and_(columns.exporter == worker_id, columns.worker_id == worker_id, columns.until_ns <= until_ns)
        free = sa.select(columns.worker_id, columns.execution_id).where(own).with_for_update(skip_locked=True)
        key = sa.tuple_(columns.worker_id, columns.execution_id)
        with self._writing() as connection:
            return connection.execute(sa.delete(span_exports).where(key.in_(free), own)).rowcount

    def claim_exports(self, worker_id: str, *, limit: int = 100, now: datetime | None = None) -> list[SpanExport]:
        """See SpanExports.claim_exports."""
        columns = span_exports.c
        row = sa.tuple_(columns.worker_id, columns.execution_id, columns.exporter)
        with self._writing() as connection:
            live = sa.and_(
                workers.c.id == columns.exporter,
                workers.c.released_at.is_(None),
                workers.c.lease_until > self._at(connection, now),
            )
            left = connection.execute(
                sa.select(columns.worker_id, columns.execution_id, columns.exporter)
                .where(~sa.exists().where(live))
                .order_by(columns.worker_id, columns.execution_id)
                .limit(limit)
            ).all()
            # Only unchanged rows: a worker that locked one first may have become its exporter since.
            free = sa.select(columns.worker_id, columns.execution_id, columns.exporter)
            free = free.where(row.in_([tuple(entry) for entry in left])).with_for_update(skip_locked=True)
            taken = connection.execute(
                sa.update(span_exports)
                .where(row.in_(free))
                .values(exporter=worker_id)
                .returning(columns.worker_id, columns.execution_id, columns.until_ns)
            ).all()
        return sorted(SpanExport(*entry) for entry in taken)

    def release_exports(self, worker_id: str, exports: Sequence[SpanExport]) -> None:
        """See SpanExports.release_exports."""
        columns = span_exports.c
        with self._writing() as connection:
            for export in exports:
                same = sa.and_(
                    columns.worker_id == export.worker_id,
                    columns.execution_id == export.execution_id,
                    columns.exporter == worker_id,
                    columns.until_ns <= export.until_ns,
                )
                connection.execute(sa.delete(span_exports).where(same))
