"""Worker leases, the epoch and the next due time, shared by every SQL store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from spanloom.engine.store.port import Recovery, WorkerLeases
from spanloom.engine.store.requests import EpochState, NodeKey, WorkerLease
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.store.texts import check_exact
from spanloom.stores.schema import node_runs, store_state, workers
from spanloom.stores.sql.base import SqlStoreBase

__all__ = ["SqlLeases"]


class SqlLeases(SqlStoreBase, WorkerLeases, Recovery):
    """The methods of WorkerLeases and Recovery that move no node run, in SQLAlchemy Core."""

    def register_worker(
        self,
        worker_id: str,
        *,
        name: str,
        host: str,
        pid: int,
        queues: Sequence[str],
        lease_seconds: float,
        now: datetime | None = None,
    ) -> None:
        """See WorkerLeases.register_worker."""
        check_exact("worker id", worker_id)
        check_exact("worker name", name)
        check_exact("host name", host)
        check_exact("queue name", *queues)
        with self._writing() as connection:
            at = self._at(connection, now)
            connection.execute(
                sa.insert(workers).values(
                    id=worker_id,
                    name=name,
                    host=host,
                    pid=pid,
                    queues=json.dumps(list(queues)),
                    started_at=at,
                    lease_until=at + timedelta(seconds=lease_seconds),
                )
            )

    def renew_lease(self, worker_id: str, *, lease_seconds: float, now: datetime | None = None) -> bool:
        """See WorkerLeases.renew_lease."""
        check_exact("worker id", worker_id)
        with self._writing() as connection:
            until = self._at(connection, now) + timedelta(seconds=lease_seconds)
            renewed = connection.execute(
                sa.update(workers)
                .where(workers.c.id == worker_id, workers.c.released_at.is_(None))
                .values(lease_until=until)
            )
            return renewed.rowcount == 1

    def list_workers(self, *, now: datetime | None = None) -> list[WorkerLease]:
        """See WorkerLeases.list_workers."""
        claims = (
            sa.select(sa.func.count())
            .where(node_runs.c.worker_id == workers.c.id, node_runs.c.status == NodeStatus.RUNNING.value)
            .scalar_subquery()
        )
        with self._reading() as connection:
            live = sa.and_(workers.c.released_at.is_(None), workers.c.lease_until > self._at(connection, now))
            rows = connection.execute(
                sa.select(workers, claims.label("running")).where(live).order_by(workers.c.name, workers.c.id)
            ).all()
        return [
            WorkerLease(
                worker_id=row.id,
                name=row.name,
                host=row.host,
                pid=row.pid,
                queues=tuple(json.loads(row.queues)),
                started_at=row.started_at,
                lease_until=row.lease_until,
                running=row.running,
            )
            for row in rows
        ]

    def list_claims(self, worker_id: str) -> dict[NodeKey, int]:
        """See WorkerLeases.list_claims."""
        check_exact("worker id", worker_id)
        runs = node_runs.c
        query = sa.select(runs.execution_id, runs.node_id, runs.item, runs.fence).where(
            runs.worker_id == worker_id, runs.status == NodeStatus.RUNNING.value
        )
        with self._reading() as connection:
            return {NodeKey(*key): fence for *key, fence in connection.execute(query)}

    def get_epoch(self) -> EpochState:
        """See Recovery.get_epoch."""
        with self._reading() as connection:
            return _epoch(connection)

    def raise_epoch(self, expected: int, redis_run_id: str | None) -> EpochState:
        """See Recovery.raise_epoch."""
        check_exact("run id of Redis", redis_run_id)
        with self._writing() as connection:
            raised = connection.execute(
                sa.update(store_state)
                .where(store_state.c.epoch == expected)
                .values(epoch=expected + 1, redis_run_id=redis_run_id)
            )
            return replace(_epoch(connection), raised=raised.rowcount == 1)

    def next_due(self) -> datetime | None:
        """See Recovery.next_due."""
        due_at = node_runs.c.due_at
        with self._reading() as connection:
            return connection.scalar(sa.select(due_at).where(due_at.is_not(None)).order_by(due_at).limit(1))


def _epoch(connection: sa.Connection) -> EpochState:
    row = connection.execute(sa.select(store_state)).one()
    return EpochState(store_id=row.store_id, epoch=row.epoch, redis_run_id=row.redis_run_id)
