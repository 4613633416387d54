"""The base of the shared parts of SQL stores: a connection to read, one to write, the clock, and an upsert."""

from __future__ import annotations

import re
import uuid
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from spanloom.engine.errors import InvalidArgument, UnknownExecution
from spanloom.engine.store.requests import Outcome, RecordRequest
from spanloom.stores.schema import executions

__all__ = ["SqlStoreBase", "Upsert", "canonical_id", "check_manual", "known_id"]

_USUAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

Upsert = sqlite.Insert | postgresql.Insert  #: an insert with `on conflict`


class SqlStoreBase(ABC):
    """Base class of the SQL stores. A subclass supplies four hooks; all reads and infrequent writes use them."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[sa.Connection]:
        """Lend a connection for statements that read: inside `transaction()` the connection of that transaction.

        Driver errors leave the block as StoreUnavailable. Two statements of a read need not see the same snapshot.
        """

    def _searching(self) -> AbstractContextManager[sa.Connection]:
        """Lend a connection as `_reading` does, for statements whose best plan depends on the values that they get."""
        return self._reading()

    @abstractmethod
    def _writing(self) -> AbstractContextManager[sa.Connection]:
        """Lend a connection inside a write transaction: committed at the end of the block, rolled back by an exception.

        Inside `transaction()` it joins that one. Driver errors leave the block as StoreUnavailable.
        """

    @abstractmethod
    def _clock(self, connection: sa.Connection) -> datetime:
        """Return the store's time: the database's where it has one."""

    @abstractmethod
    def _insert(self, table: sa.Table) -> Upsert:
        """Return the dialect's own insert, which has `on conflict`."""

    def _at(self, connection: sa.Connection, now: datetime | None) -> datetime:
        return self._clock(connection) if now is None else now


def known_id(connection: sa.Connection, execution_id: str) -> str:
    """Return the execution's id in its stored spelling, or raise UnknownExecution."""
    spelled = canonical_id(execution_id)
    if spelled is not None and connection.scalar(sa.select(sa.literal(1)).where(executions.c.id == spelled)):
        return spelled
    raise UnknownExecution(execution_id)


def canonical_id(execution_id: str) -> str | None:
    """Return a UUID's usual spelling, None for any other text, which Postgres would refuse to compare."""
    if _USUAL.fullmatch(execution_id):
        return execution_id
    try:
        return str(uuid.UUID(execution_id))
    except ValueError:
        return None


def check_manual(record: RecordRequest) -> None:
    """Raise InvalidArgument for an outcome that does not end a run."""
    if record.outcome not in (Outcome.COMPLETED, Outcome.FAILED, Outcome.SKIPPED):
        raise InvalidArgument("record.outcome", record.outcome, "completed, failed or skipped")
