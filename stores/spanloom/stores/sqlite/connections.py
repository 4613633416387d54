"""The connections of one process to one SQLite database: a writer, for which threads queue, and readers beside it."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from spanloom.engine.errors import (
    ConfigurationError,
    PayloadRejected,
    StoreRefused,
    StoreUnavailable,
    Unavailability,
)

__all__ = ["DRIVER_ERRORS", "MEMORY", "SqliteConnections"]

MEMORY = ":memory:"
BUSY_SECONDS = 30.0  #: the longest wait for another process's write transaction
TURN_SECONDS = 60.0  #: the longest wait for those of other threads, each of which may wait for another process
OLDEST_SQLITE = (3, 35)  # the first with RETURNING
#: The errors of sqlite3's statements.
DRIVER_ERRORS = (sqlite3.Error, OverflowError, UnicodeEncodeError, MemoryError)

#: The codes by which a statement is refused for what it was given: it would be refused again.
_NEVER = frozenset({sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE})

_NOT_NOW = {
    sqlite3.SQLITE_BUSY: Unavailability.LOCKED,
    sqlite3.SQLITE_LOCKED: Unavailability.LOCKED,
    sqlite3.SQLITE_READONLY: Unavailability.READ_ONLY,
    sqlite3.SQLITE_PERM: Unavailability.RIGHTS,
    sqlite3.SQLITE_AUTH: Unavailability.RIGHTS,
    sqlite3.SQLITE_CANTOPEN: Unavailability.RIGHTS,
    sqlite3.SQLITE_FULL: Unavailability.RESOURCES,
    sqlite3.SQLITE_NOMEM: Unavailability.RESOURCES,
    sqlite3.SQLITE_IOERR: Unavailability.STORAGE,
    sqlite3.SQLITE_CORRUPT: Unavailability.STORAGE,
    sqlite3.SQLITE_NOTADB: Unavailability.STORAGE,
    sqlite3.SQLITE_ERROR: Unavailability.SCHEMA,  # such as a table that is not there
    sqlite3.SQLITE_SCHEMA: Unavailability.SCHEMA,
}

#: A connection that was opened while these held keeps them.
_STICKY = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOTADB})

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
    """The connections of one process to one database, opened when they are needed.

    SQLite has one writer at a time, so there is one connection to write with. Threads queue for it, which is quicker
    and fairer than SQLite's own polling. A database in memory has that connection only, and reads with it, too.
    """

    def __init__(self, path: str, *, synchronous: str) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ConfigurationError(
                f"SQLite {sqlite3.sqlite_version} is too old for a store; Python must be linked with 3.35 or newer"
            )
        self._path = path
        self._synchronous = synchronous
        pool = {"poolclass": StaticPool} if path == MEMORY else {"poolclass": QueuePool, "max_overflow": -1}
        self._engine = sa.create_engine("sqlite://", creator=self._connect, isolation_level="AUTOCOMMIT", **pool)
        self._turn = threading.RLock()
        self._writer: sa.Connection | None = None
        self._raw_writer: sqlite3.Connection | None = None
        self._writing_thread: int | None = None
        self._depth = 0
        self._stale = False  # the writer may have been opened while the file could not be written
        self._readers_changed = threading.Condition()
        self._readers = 0
        if path != MEMORY:
            _files.add(self)

    @property
    def writer(self) -> sa.Connection:
        """The connection to write with, for the thread inside `writing`."""
        assert self._writer is not None
        return self._writer

    @property
    def raw_writer(self) -> sqlite3.Connection:
        """The connection to write with, without SQLAlchemy."""
        assert self._raw_writer is not None
        return self._raw_writer

    @property
    def nested(self) -> bool:
        """Whether the current write transaction is inside another one, for the thread inside `writing`."""
        return self._depth > 1

    def close(self) -> None:
        """Close every connection after its current use by other threads. The next use opens new ones."""
        self.close_and_block()
        self.unblock()

    def close_and_block(self) -> None:
        """Close every connection as `close` does, and block other threads from opening new ones until `unblock`.

        Inside this thread's own write transaction it closes no connection.
        """
        self._turn.acquire()
        self._readers_changed.acquire()
        if self._depth == 0:
            self._readers_changed.wait_for(lambda: self._readers == 0)
            if self._writer is not None:
                self._writer.close()
                self._writer = self._raw_writer = None
            self._engine.dispose()

    def unblock(self) -> None:
        """Let other threads open connections again. Called by the thread that called `close_and_block`."""
        self._readers_changed.release()
        self._turn.release()

    @contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """Lend a connection to read with: the writer inside this thread's own write transaction."""
        if self._writing_thread == threading.get_ident():
            with self.translated():
                yield self.writer
        elif self._path == MEMORY:
            with self._turn, self.translated():
                self._open_writer()
                yield self.writer
        else:
            self._count_reader(1)
            try:
                with self.translated(), self._engine.connect() as connection:
                    yield connection
            finally:
                self._count_reader(-1)

    @contextmanager
    def writing(self) -> Generator[None]:
        """Hold the writer in a write transaction: committed at the end of the block, rolled back by an exception.

        Nested blocks of one thread are one transaction. An exception undoes the writes of its own block. Errors of the
        block itself are not translated: it may be a caller's, with a database of its own.
        """
        self._take_turn()
        try:
            level = self._depth
            if self._stale and not level:
                self._drop_writer()
            raw = self._open_writer()
            if level:
                if not raw.in_transaction:
                    raise StoreUnavailable(f"SQLite store {self._path}: an earlier error has ended this transaction")
                raw.execute(f"SAVEPOINT level_{level}")
            self._depth = level + 1
            try:
                if not level:
                    try:
                        _begin(raw)
                    except sqlite3.Error as error:
                        raise self.translation(error) from error
                    self._writing_thread = threading.get_ident()
                yield
                try:
                    raw.execute(f"RELEASE level_{level}" if level else "COMMIT")
                except sqlite3.Error as error:
                    raise self.translation(error) from error
            except BaseException:
                # Some errors, a full disk among them, have ended the transaction already.
                if raw.in_transaction:
                    self._roll_back(raw, level)
                raise
            finally:
                self._depth = level
                if not level:
                    self._writing_thread = None
        finally:
            self._turn.release()

    @contextmanager
    def translated(self) -> Generator[None]:
        """Translate driver errors of the block, with the path and the remedy: see `translation`."""
        try:
            yield
        except DRIVER_ERRORS as error:
            raise self.translation(error) from error
        except DBAPIError as error:
            original = error.orig
            raise (self.translation(original) if isinstance(original, sqlite3.Error) else error) from original

    def _take_turn(self) -> None:
        if not self._turn.acquire(timeout=TURN_SECONDS):
            raise StoreUnavailable(
                f"SQLite store {self._path}: another thread of this process has written for {TURN_SECONDS:g} s",
                reason=Unavailability.LOCKED,
            )

    def _roll_back(self, raw: sqlite3.Connection, level: int) -> None:
        try:
            raw.execute(f"ROLLBACK TO level_{level}" if level else "ROLLBACK")
        except sqlite3.Error:  # the error that it is rolled back for is raised
            if not level:
                self._drop_writer()

    def _drop_writer(self) -> None:
        """Have the next write open a connection anew: one that was opened while the file was read-only stays so."""
        if self._writer is not None and self._path != MEMORY:
            self._writer.invalidate()
            self._writer.close()
            self._writer = self._raw_writer = None
        self._stale = False

    def _open_writer(self) -> sqlite3.Connection:
        if self._raw_writer is None:
            with self.translated():
                self._writer = self._engine.connect()
                raw = self._writer.connection.dbapi_connection
                assert isinstance(raw, sqlite3.Connection)
                # _begin waits for other processes, with far shorter pauses than those of SQLite's own handler.
                raw.execute("PRAGMA busy_timeout = 0")
                self._raw_writer = raw
        return self._raw_writer

    def _count_reader(self, change: int) -> None:
        with self._readers_changed:
            self._readers += change
            self._readers_changed.notify_all()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # this module begins and ends the transactions
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("PRAGMA foreign_keys = ON")
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
                # Another process is changing the mode of a new file, for which SQLite does not wait.
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                break
        if mode != "wal":
            raise StoreUnavailable(
                f"SQLite store {self._path}: its file system allows no write-ahead log, only {mode}; use a local disk"
            )

    def translation(self, error: Exception) -> Exception:
        """Return the StoreUnavailable or StoreRefused for one of DRIVER_ERRORS: whatever may pass is the former.

        It is PayloadRejected for a value that no column holds: a number of more than 64 bits, or half a surrogate pair.
        """
        if isinstance(error, OverflowError | UnicodeEncodeError):
            return PayloadRejected(f"SQLite can't keep a value that it was given: {error}")
        if isinstance(error, MemoryError):
            return StoreUnavailable(f"SQLite store {self._path}: out of memory", reason=Unavailability.RESOURCES)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the other bits hold finer causes
        if code in _NEVER or (not code and _is_of_values(error)):
            return StoreRefused(f"SQLite store {self._path} refused a statement: {error}")
        self._stale = self._stale or code in _STICKY
        advice = _ADVICE.get(code)
        message = f"SQLite store {self._path}: {error or type(error).__name__}" + (f"; {advice}" if advice else "")
        return StoreUnavailable(message, reason=_NOT_NOW.get(code, Unavailability.OTHER))


def _begin(connection: sqlite3.Connection) -> None:
    pause, deadline = 0.0002, time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the writers, guards nothing
        pause = min(pause * 1.5, 0.005)


def _is_of_values(error: Exception) -> bool:
    """Return whether the driver itself refused a value; it has no code for that."""
    return isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError) and "closed" not in str(error)


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


# SQLite keeps a file's locks per process and does not notice a fork: a child with an inherited connection would take
# the parent's locks for its own. So no connection is open while a process forks, and both sides open new ones.
_files: weakref.WeakSet[SqliteConnections] = weakref.WeakSet()
_blocked: dict[int, list[SqliteConnections]] = {}  # by the thread that forks


def _before_fork() -> None:
    blocked = _blocked[threading.get_ident()] = list(_files)
    for connections in blocked:
        connections.close_and_block()


def _after_fork() -> None:
    for connections in _blocked.pop(threading.get_ident()):
        connections.unblock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
