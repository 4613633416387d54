"""One process's connections to one SQLite database: a writer whose turn is a lock, and readers beside it."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from spanloom.engine.errors import ConfigurationError, StoreUnavailable

__all__ = ["MEMORY", "SqliteConnections"]

MEMORY = ":memory:"
BUSY_SECONDS = 30.0  #: how long to wait for another process's write transaction
OLDEST_SQLITE = (3, 35)  # the first that knows RETURNING

_ADVICE = {
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {BUSY_SECONDS:g} s; end or resume that process",
    sqlite3.SQLITE_READONLY: "it can't be written; give this user write access to the file and its directory",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened; check that the path is a file and that this user may open it",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database; give the store a file of its own",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a backup",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write; check it, and that the file is not on a network share",
}


class SqliteConnections:
    """Lend one process's connections to one database.

    SQLite has one writer at a time, so there is one connection to write with and threads queue for it, which is
    quicker and fairer than to let SQLite poll. A database in memory has no other connection: it reads with it, too.
    """

    def __init__(self, path: str, *, synchronous: str) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ConfigurationError(
                f"SQLite {sqlite3.sqlite_version} is too old for a store; Python must be linked with 3.35 or newer"
            )
        self._path = path
        self._synchronous = synchronous
        self._turn = threading.RLock()
        self._writing_thread: int | None = None
        self._depth = 0
        pool = {"poolclass": StaticPool} if path == MEMORY else {"poolclass": QueuePool, "max_overflow": -1}
        self._engine = sa.create_engine("sqlite://", creator=self._connect, isolation_level="AUTOCOMMIT", **pool)
        with self._translated():
            self.writer: sa.Connection = self._engine.connect()
        raw = self.writer.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        self.raw_writer: sqlite3.Connection = raw
        # The writer waits for its turn in _begin, whose pauses are far shorter than those of SQLite's own handler.
        raw.execute("PRAGMA busy_timeout = 0")

    @property
    def nested(self) -> bool:
        """Whether the write transaction under way is inside another one; for the thread whose turn it is."""
        return self._depth > 1

    def close(self) -> None:
        """Close every connection that no thread is using, once the writer's turn is over."""
        with self._turn:
            self.writer.close()
            self._engine.dispose()

    @contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """Lend a connection to read with: the writer's inside this thread's own write transaction."""
        with self._translated():
            if self._writing_thread == threading.get_ident():
                yield self.writer
            elif self._path == MEMORY:
                with self._turn:
                    yield self.writer
            else:
                with self._engine.connect() as connection:
                    yield connection

    @contextmanager
    def writing(self) -> Generator[None]:
        """Hold the writer in a write transaction: committed at the end of the block, rolled back by an exception.

        Nested blocks of one thread are one transaction; an exception undoes what its own block wrote.
        """
        with self._translated(), self._turn:
            execute = self.raw_writer.execute
            nested = self._depth > 0
            if nested:
                execute(f"SAVEPOINT level_{self._depth}")
            self._depth += 1
            try:
                if not nested:
                    self._begin()
                    self._writing_thread = threading.get_ident()
                yield
                execute(f"RELEASE level_{self._depth - 1}" if nested else "COMMIT")
            except BaseException:
                # Some errors, a full disk among them, have ended the transaction already.
                if self.raw_writer.in_transaction:
                    execute(f"ROLLBACK TO level_{self._depth - 1}" if nested else "ROLLBACK")
                raise
            finally:
                self._depth -= 1
                if not nested:
                    self._writing_thread = None

    def _begin(self) -> None:
        pause, deadline = 0.0002, time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self.raw_writer.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the writers, guards nothing
            pause = min(pause * 1.5, 0.005)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # transactions begin and end where this module says so
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            if self._path != MEMORY:
                self._use_wal(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                # Another process is changing the mode of a new file: SQLite answers so without waiting.
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                break
        if mode != "wal":
            raise StoreUnavailable(
                f"SQLite store {self._path}: its file system allows no write-ahead log, only {mode}; use a local disk"
            )

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translation(error) from error
        except DBAPIError as error:
            original = error.orig
            raise (self._translation(original) if isinstance(original, sqlite3.Error) else error) from original

    def _translation(self, error: sqlite3.Error) -> Exception:
        # Other classes of sqlite3 errors are mistakes in a statement or its values: repeating would not help.
        if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):
            return error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of the bits tell finer causes
        advice = _ADVICE.get(code)
        return StoreUnavailable(f"SQLite store {self._path}: {error}" + (f"; {advice}" if advice else ""))


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
