"""The in-memory store: the transitions of the SQLite store over a private database that lives as long as the object."""

from __future__ import annotations

import os
import uuid
import weakref
from functools import cache
from typing import NoReturn

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import DDLElement

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.urls import shown_url
from spanloom.stores.schema import metadata, store_state
from spanloom.stores.sqlite.connections import MEMORY, SqliteConnections
from spanloom.stores.sqlite.transitions import SqliteTransitions

__all__ = ["InMemoryExecutionStore"]


class InMemoryExecutionStore(SqliteTransitions):
    """A store in the memory of this process, for tests and experiments.

    The threads of the process share it, each transition under one lock. Values are copied. Another process can't use
    it: use in a forked child and pickling raise ConfigurationError. `close` keeps the data, which lives as long as the
    object.

    >>> store = InMemoryExecutionStore()
    >>> store.stats().workflows
    0
    """

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._connections = SqliteConnections(MEMORY, synchronous="off")
        weakref.finalize(self, _discard, self._connections, self._pid)
        with self._connections.writing():
            for statement in _schema():
                self._connections.raw_writer.execute(statement)
            self._connections.writer.execute(sa.insert(store_state).values(one=1, store_id=str(uuid.uuid4()), epoch=0))

    @classmethod
    def from_url(cls, url: str, namespace: str = "") -> InMemoryExecutionStore:
        """Return a new store for `memory://`, whatever the namespace. Raises ConfigurationError for any other URL."""
        if url != "memory://":
            raise ConfigurationError(
                f"{shown_url(url)!r}: a store in memory has no name and no options; write memory://"
            )
        return cls()

    @property
    def url(self) -> str:
        """See Lifecycle.url."""
        return "memory://"

    @property
    def shared(self) -> bool:
        """Whether other processes can open the same store: they can't."""
        return False

    def open(self) -> None:
        """See Lifecycle.open."""
        self._live()

    def close(self) -> None:
        """Do nothing: the data stays readable as long as the object lives."""

    def migrate(self) -> None:
        """See Lifecycle.migrate. The schema is always this release's."""
        self._live()

    def _live(self) -> SqliteConnections:
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"the store memory:// belongs to process {self._pid} and can't be used by process {os.getpid()}; "
                "several processes need a sqlite:// or postgresql:// store"
            )
        return self._connections

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "the store memory:// can't be sent to another process; several processes need a sqlite:// or "
            "postgresql:// store"
        )


@cache  # they are the same for every store, and compiling them takes longer than running them
def _schema() -> tuple[str, ...]:
    spelled: list[str] = []

    def spell(statement: sa.Executable, *_: object) -> None:
        assert isinstance(statement, DDLElement)
        spelled.append(str(statement.compile(dialect=sqlite.dialect())))

    metadata.create_all(sa.create_mock_engine("sqlite://", spell), checkfirst=False)
    return tuple(spelled)


def _discard(connections: SqliteConnections, pid: int) -> None:
    if os.getpid() == pid:  # a forked child's lock may be held by a thread that it does not have
        connections.close()
