"""The transitions over SQLite: each is one short write transaction over one process's connections."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import ChainMap
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from cachetools import LRUCache
from sqlalchemy.dialects import sqlite

from spanloom.stores.schema import events, from_micros, logs, to_micros
from spanloom.stores.sql.base import Upsert
from spanloom.stores.sql.lists.paging import bad_cursor
from spanloom.stores.sql.reads import SqlStore
from spanloom.stores.sqlite.clock_steps import ClockSteps
from spanloom.stores.sqlite.connections import DRIVER_ERRORS, SqliteConnections
from spanloom.stores.sqlite.transaction import SqliteTransaction
from spanloom.stores.transitions.port import Transitions
from spanloom.stores.transitions.rows import Graph
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["SqliteTransitions"]

GRAPHS_KEPT = 256  # versions whose edges a process caches

Answer = TypeVar("Answer")


class SqliteTransitions(Transitions, SqlStore):
    """The part of the port that is the same for a file and for memory."""

    def __init__(self) -> None:
        # Used inside write transactions only, of which there is one at a time: it needs no lock of its own.
        self._graphs: LRUCache[tuple[str, int], Graph] = LRUCache(GRAPHS_KEPT)
        self._clock_steps = ClockSteps()

    @abstractmethod
    def _live(self) -> SqliteConnections:
        """Return this process's connections, opened and with a schema of this release."""

    def health(self) -> None:
        """See Lifecycle.health."""
        self.get_epoch()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """See Lifecycle.transaction. A transaction inside another joins it. Other readers see all of it or none."""
        with self._begun():
            yield

    def _reading(self) -> AbstractContextManager[sa.Connection]:
        return self._live().reading()

    @contextmanager
    def _writing(self) -> Generator[sa.Connection]:
        with self._live().translated(), self._begun() as connections:
            yield connections.writer

    @contextmanager
    def _begun(self) -> Generator[SqliteConnections]:
        connections = self._live()
        with connections.writing():
            if not connections.nested:
                self._clock_steps.settle(connections.raw_writer)
            yield connections

    def _clock(self, connection: sa.Connection) -> datetime:
        return from_micros(time.time_ns() // 1000)

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

    def _transact(
        self, step: Callable[[Transaction], Answer], *, epoch: int = 0, now: datetime | None = None
    ) -> Answer:
        connections = self._live()
        with connections.writing():
            if not connections.nested:
                self._clock_steps.settle(connections.raw_writer)
            at = time.time_ns() // 1000 if now is None else to_micros(now)
            # Edges read inside a caller's transaction may be rolled back with it, so they are not cached.
            graphs = ChainMap({}, self._graphs) if connections.nested else self._graphs
            tx = SqliteTransaction(connections.raw_writer, graphs, now=at, epoch=epoch)
            try:
                answer = step(tx)
                tx.flush()
            except DRIVER_ERRORS as error:
                raise connections.translation(error) from error
            return answer

    def _survives_errors(self) -> bool:
        return True  # an inner block is a savepoint
