"""The port's transitions on SQLite: each call one short write transaction over one process's connections."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import ChainMap
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from cachetools import LRUCache
from sqlalchemy.dialects import sqlite

from spanloom.engine.errors import ConfigurationError, StoreUnavailable
from spanloom.engine.store.requests import (
    Claim,
    ClaimAnswer,
    ControlResult,
    NodeJob,
    NodeKey,
    Outcome,
    PurgeResult,
    RecordRequest,
    RecordResult,
    Refusal,
    StartAnswer,
    StartRequest,
    SweepResult,
)
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.schema import events, logs, to_micros
from spanloom.stores.sql.base import Upsert, check_ended
from spanloom.stores.sql.paging import bad_cursor
from spanloom.stores.sql.reads import SqlStore
from spanloom.stores.sqlite.cancel import cancel
from spanloom.stores.sqlite.children import wake_parent
from spanloom.stores.sqlite.claims import claim, may_claim
from spanloom.stores.sqlite.connections import SqliteConnections
from spanloom.stores.sqlite.control import ControlTarget, pause, resume
from spanloom.stores.sqlite.manual import acknowledge, end_manually, fail
from spanloom.stores.sqlite.purge import purge
from spanloom.stores.sqlite.records import record
from spanloom.stores.sqlite.retry import retry
from spanloom.stores.sqlite.starts import create
from spanloom.stores.sqlite.sweep import LostJobCheck, retire, sweep
from spanloom.stores.sqlite.transaction import Graph, Transaction

__all__ = ["SqliteTransitions"]

GRAPHS_KEPT = 256  # versions whose edges a process remembers

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class SqliteTransitions(SqlStore):
    """Implement all of the port that is the same for a file and for memory."""

    def __init__(self) -> None:
        # Used inside write transactions only, which take turns: it needs no lock of its own.
        self._graphs: LRUCache[tuple[str, int], Graph] = LRUCache(GRAPHS_KEPT)

    @abstractmethod
    def _live(self) -> SqliteConnections:
        """Return this process's connections, opened and with a schema of this release."""

    def create_executions(
        self,
        requests: Sequence[StartRequest],
        *,
        epoch: int = 0,
        connection: Any = None,
        now: datetime | None = None,
    ) -> list[StartAnswer]:
        """See NodeTransitions.create_executions."""
        if connection is not None:
            raise ConfigurationError(
                f"connection= starts an execution inside a transaction of your own Postgres; the store {self.url} "
                "has no part in it; leave connection= out, or use a postgresql:// store"
            )
        return self._each(requests, create, epoch, now)

    def claim(
        self, keys: Sequence[NodeKey], *, worker_id: str, token: str | None = None, now: datetime | None = None
    ) -> list[ClaimAnswer]:
        """See NodeTransitions.claim."""

        def one(tx: Transaction, key: NodeKey) -> ClaimAnswer:
            return claim(tx, key, worker_id, token) if may_claim(tx, worker_id) else Refusal.RETIRED

        first = sorted(set(keys))  # the same key again is no call sent again: it finds the run taken
        answers = dict(zip(first, self._each(first, one, 0, now), strict=True))
        return [
            Refusal.TAKEN if isinstance(answers[key], Claim) and key in keys[:position] else answers[key]
            for position, key in enumerate(keys)
        ]

    def record(
        self, records: Sequence[RecordRequest], *, epoch: int = 0, now: datetime | None = None
    ) -> list[RecordResult]:
        """See NodeTransitions.record."""
        order = sorted(range(len(records)), key=lambda position: records[position].key)
        ordered = [records[position] for position in order]
        failing = {  # an item's failure is its node's to judge
            one.execution_id: place
            for place, one in enumerate(ordered)
            if one.outcome is Outcome.FAILED and not one.item
        }

        def one(tx: Transaction, item: tuple[int, RecordRequest]) -> RecordResult:
            place, request = item
            return record(tx, request, before_failure=place < failing.get(request.execution_id, 0))

        answers = self._each(list(enumerate(ordered)), one, epoch, now)
        answered = dict(zip(order, answers, strict=True))
        return [answered[position] for position in range(len(records))]

    def wake_parents(
        self, execution_ids: Sequence[str], *, epoch: int = 0, now: datetime | None = None
    ) -> list[NodeJob]:
        """See NodeTransitions.wake_parents."""

        def one(tx: Transaction, execution_id: str) -> NodeJob | None:
            return wake_parent(tx, execution_id)[1]

        return [job for job in self._each(execution_ids, one, epoch, now) if job is not None]

    def cancel_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.cancel_execution."""
        return self._control(cancel, execution_id, expected_revision, 0, now)

    def pause_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.pause_execution."""
        return self._control(pause, execution_id, expected_revision, 0, now)

    def resume_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> ControlResult:
        """See Control.resume_execution."""
        return self._control(resume, execution_id, expected_revision, epoch, now)

    def retry_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> ControlResult:
        """See Control.retry_execution."""
        return self._control(retry, execution_id, expected_revision, epoch, now)

    def fail_execution(
        self, execution_id: str, error: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.fail_execution."""

        def step(tx: Transaction, target: ControlTarget) -> ControlResult:
            return fail(tx, target, error)

        return self._control(step, execution_id, expected_revision, 0, now)

    def acknowledge_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.acknowledge_execution."""
        return self._control(acknowledge, execution_id, expected_revision, 0, now)

    def update_node_result(self, record: RecordRequest, *, epoch: int = 0, now: datetime | None = None) -> RecordResult:
        """See Control.update_node_result."""
        with self._turn(epoch, now) as tx:
            return end_manually(tx, record)

    def purge_executions(
        self,
        *,
        ended_before: datetime,
        statuses: Sequence[ExecutionStatus],
        limit: int = 500,
        now: datetime | None = None,
    ) -> PurgeResult:
        """See Retention.purge_executions."""
        with self._turn(0, now) as tx:
            return purge(tx, to_micros(ended_before), check_ended(statuses), limit)

    def unregister_worker(self, worker_id: str, *, epoch: int = 0, now: datetime | None = None) -> list[NodeJob]:
        """See WorkerLeases.unregister_worker."""
        with self._turn(epoch, now) as tx:
            return retire(tx, worker_id)

    def sweep(
        self,
        *,
        heads: Mapping[str, datetime | None],
        epoch: int,
        limit: int = 500,
        lost_job_after_seconds: float = 2.0,
        now: datetime | None = None,
    ) -> SweepResult:
        """See Recovery.sweep."""
        suspicion = LostJobCheck(heads, round(lost_job_after_seconds * 1e6))
        with self._turn(epoch, now) as tx:
            return sweep(tx, suspicion, limit=limit)

    def health(self) -> None:
        """See Lifecycle.health."""
        self.get_epoch()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """See Lifecycle.transaction. A transaction inside another joins it; readers elsewhere see all or nothing."""
        with self._live().writing():
            yield

    def _reading(self) -> AbstractContextManager[sa.Connection]:
        return self._live().reading()

    @contextmanager
    def _writing(self) -> Generator[sa.Connection]:
        connections = self._live()
        with connections.translated(), connections.writing():
            yield connections.writer

    def _clock(self, connection: sa.Connection) -> datetime:
        return datetime.now(UTC)

    def _insert(self, table: sa.Table) -> Upsert:
        return sqlite.insert(table)

    def _log_id(self, execution_id: str) -> sa.ColumnElement[int]:
        last = sa.select(sa.func.coalesce(sa.func.max(logs.c.id), 0)).where(logs.c.execution_id == execution_id)
        return last.scalar_subquery() + 1

    def _event_query(self, execution_id: str, after: str | None) -> sa.Select[Any]:
        query = sa.select(events, sa.cast(events.c.seq, sa.Text).label("cursor"))
        query = query.where(events.c.execution_id == execution_id).order_by(events.c.seq)
        if after is None:
            return query
        if not (after.isascii() and after.isdigit() and len(after) < 19):  # an integer of SQLite's
            raise bad_cursor(after)
        return query.where(events.c.seq > int(after))

    @contextmanager
    def _turn(self, epoch: int, now: datetime | None) -> Generator[Transaction]:
        connections = self._live()
        with connections.translated(), connections.writing():
            at = time.time_ns() // 1000 if now is None else to_micros(now)
            # What is read inside a caller's transaction may be rolled back with it: it is not remembered.
            graphs = ChainMap({}, self._graphs) if connections.nested else self._graphs
            tx = Transaction(connections.raw_writer, graphs, now=at, epoch=epoch)
            yield tx
            tx.flush()

    def _control(
        self,
        step: Callable[[Transaction, ControlTarget], ControlResult],
        execution_id: str,
        expected_revision: int | None,
        epoch: int,
        now: datetime | None,
    ) -> ControlResult:
        with self._turn(epoch, now) as tx:
            return step(tx, ControlTarget(execution_id, expected_revision, self.get_execution))

    def _each(
        self, items: Sequence[Item], step: Callable[[Transaction, Item], Answer], epoch: int, now: datetime | None
    ) -> list[Answer]:
        """Do a step for each item in one transaction; if one of them can't be done, each in its own.

        Then every other item is done before the error of the one is raised.
        """
        if not items:
            return []
        try:
            with self._turn(epoch, now) as tx:
                return [step(tx, item) for item in items]
        except StoreUnavailable:
            raise
        except Exception:
            if len(items) == 1:
                raise
        answers: list[Answer] = []
        failure: Exception | None = None
        for item in items:
            try:
                answers.extend(self._each([item], step, epoch, now))
            except StoreUnavailable:
                raise
            except Exception as error:  # raised below: the items beside it come first
                failure = error
        if failure is not None:
            raise failure
        return answers
