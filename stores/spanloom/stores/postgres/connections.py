"""Pools of connections to Postgres, the transactions of threads, and the translation of driver errors."""

from __future__ import annotations

import os
import random
import select
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg import errors
from psycopg.rows import tuple_row
from sqlalchemy import event, exc
from sqlalchemy.pool import ConnectionPoolEntry

from spanloom.engine.errors import (
    ConfigurationError,
    SpanloomError,
    StoreNotMigrated,
    StoreUnavailable,
    Unavailability,
)
from spanloom.stores.postgres.driver_errors import MISSING, cause_of, sorted_error
from spanloom.stores.postgres.session import BinaryResults, check_settings, open_session
from spanloom.stores.postgres.time_limit import (
    LEASE_SECONDS,
    STATEMENT_SECONDS,
)
from spanloom.stores.postgres.url import Location
from spanloom.stores.version import check_version

__all__ = ["PostgresConnections"]

Answer = TypeVar("Answer")

CHECKOUT_SECONDS = 10.0
CONFLICT_RETRIES = 8

_VERSION = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.Text)).c.version_num
_CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)


class _BoundText(sa.Text):
    """The type of text parameters."""

    render_bind_cast = True


class PostgresConnections:
    """The connections of one process to one Postgres, opened when they are needed.

    - Outside a transaction each statement commits by itself: one round trip.
    - No session state is set, so that PgBouncer may stand between.
    - A connection that the server closed while it was idle is replaced at its next use. A failure in use empties the
      pool.
    - After a fork the child begins with pools of its own.
    - One more connection is reserved for the renewal of leases, which may not wait for a free one of the pool.
    - Each statement has a time limit on this side, after which its connection is closed.
    - `opened` is whether the store was opened: a refusal may pass from then on.
    """

    def __init__(self, location: Location, *, pool_size: int, prepare: bool) -> None:
        self.location = location
        self._prepare = prepare
        self._thread = threading.local()
        self.opened = False
        self.engine = self._pool(pool_size, STATEMENT_SECONDS)
        self._reserved = self._pool(1, LEASE_SECONDS)
        _every.add(self)

    def _pool(self, size: int, limit_seconds: float) -> sa.Engine:
        engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=lambda: self._connect(limit_seconds),
            isolation_level="AUTOCOMMIT",
            pool_size=size,
            max_overflow=0,
            pool_timeout=CHECKOUT_SECONDS,
            pool_use_lifo=True,
            pool_reset_on_return=None,  # outside `writing` there is no transaction to roll back
            use_native_hstore=False,
            execution_options={"schema_translate_map": {None: self.location.namespace}},
            hide_parameters=True,  # no payload in an error
        )
        # Text is bound as text: `text = varchar` is no operator of Postgres' own, and could be somebody else's.
        engine.dialect.colspecs = {**engine.dialect.colspecs, sa.String: _BoundText}
        engine.dialect.execution_ctx_cls = BinaryResults
        event.listen(engine, "checkout", _refuse_dead)
        return engine

    def _connect(self, limit_seconds: float) -> psycopg.Connection[Any]:
        return open_session(self.location, prepare=self._prepare, limit_seconds=limit_seconds)

    @contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """Lend a connection whose statements commit one by one: inside `writing` the connection of that block."""
        joined = self.joined
        with self._translated():
            if joined is not None:
                yield joined
                return
            with self.engine.connect() as connection:
                yield connection

    @contextmanager
    def writing(self) -> Generator[sa.Connection]:
        """Lend a connection inside a transaction, which inner blocks, and `call`, in this thread join."""
        joined = self.joined
        with self._translated():
            if joined is not None:
                yield joined
                return
            lent = self.engine.connect().execution_options(isolation_level="READ COMMITTED")
            with lent as connection, connection.begin():
                self._thread.joined = connection
                try:
                    yield connection
                finally:
                    self._thread.joined = None

    def call(self, statement: str, parameters: Sequence[Any], *, reserved: bool = False) -> Any:
        """Run a statement that returns one value, in this thread's transaction or in a new one.

        A new one is repeated when Postgres aborts it to break a deadlock. With `reserved` it uses the reserved
        connection.
        """
        engine = self._reserved if reserved else self.engine
        joined = self.joined
        if joined is not None:
            with self._translated():
                return self._value(joined.connection.driver_connection, statement, parameters)
        for attempt in range(CONFLICT_RETRIES):
            try:
                return self._call(engine, statement, parameters)
            except _CONFLICTS:
                time.sleep(random.uniform(0, 0.002 * 2**attempt))  # noqa: S311 - only to fall out of step
        with self._translated():
            return self._call(engine, statement, parameters)

    def row(self, statement: str, parameters: Sequence[Any]) -> tuple[Any, ...] | None:
        """Run a statement that reads one row, in this thread's transaction or outside any. Return the row, or None."""
        joined = self.joined

        def read(raw: Any) -> tuple[Any, ...] | None:
            # In binary form, which no setting of the session changes.
            cursor = raw.cursor(binary=True, row_factory=tuple_row)
            row: tuple[Any, ...] | None = cursor.execute(
                statement, parameters, prepare=self._prepare or None
            ).fetchone()
            return row

        with self._translated():
            return self._lend(self.engine, read) if joined is None else read(joined.connection.driver_connection)

    def step(self, step: Callable[[psycopg.Connection[Any], bool], Answer]) -> Answer:
        """Run a step in this thread's transaction, or in a new one; its second argument is whether it is a new one.

        A new one is repeated when Postgres aborts it to break a deadlock.
        """
        joined = self.joined
        if joined is not None:
            with self._translated():
                raw = joined.connection.driver_connection
                assert isinstance(raw, psycopg.Connection)
                return step(raw, False)
        for attempt in range(CONFLICT_RETRIES):
            try:
                return self._step(step)
            except _CONFLICTS:
                time.sleep(random.uniform(0, 0.002 * 2**attempt))  # noqa: S311 - only to fall out of step
        with self._translated():
            return self._step(step)

    def step_within(self, given: object, step: Callable[[psycopg.Connection[Any]], Answer]) -> Answer:
        """Run a step in the transaction of a caller's psycopg or SQLAlchemy connection.

        Raises ConfigurationError for anything else.
        """
        with self._translated():
            if isinstance(given, psycopg.Connection):
                return step(given)
            if isinstance(given, sa.Connection) and given.dialect.driver == "psycopg":
                given.execute(sa.text("select 1"))  # so that SQLAlchemy begins a transaction to commit
                raw = given.connection.driver_connection
                assert isinstance(raw, psycopg.Connection)
                return step(raw)
        raise _no_connection(given)

    def call_within(self, given: object, statement: str, parameters: Sequence[Any]) -> Any:
        """Run a statement that returns one value in the transaction of a caller's psycopg or SQLAlchemy connection.

        Raises ConfigurationError for anything else.
        """
        with self._translated():
            if isinstance(given, psycopg.Connection):
                return _first(given.cursor(row_factory=tuple_row).execute(statement.encode(), parameters))
            if isinstance(given, sa.Connection) and given.dialect.driver == "psycopg":
                # Through SQLAlchemy, so that it begins a transaction to commit.
                return given.exec_driver_sql(statement, tuple(parameters)).scalar_one()
        raise _no_connection(given)

    def forget_parent(self) -> None:
        """Begin anew in a forked child. The parent's connections are kept, unused, as only the parent closes them."""
        for engine in (self.engine, self._reserved):
            _inherited.append(engine.pool)
            engine.dispose(close=False)
        self._thread = threading.local()

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they come back."""
        self.engine.dispose()
        self._reserved.dispose()

    @property
    def prepares(self) -> bool | None:
        """Whether statements are prepared at once. None: the connection decides, and prepares none."""
        return self._prepare or None

    @property
    def joined(self) -> sa.Connection | None:
        """This thread's transaction, if it is inside `writing`."""
        return getattr(self._thread, "joined", None)

    def _step(self, step: Callable[[psycopg.Connection[Any], bool], Answer]) -> Answer:
        def run(raw: psycopg.Connection[Any]) -> Answer:
            with raw.pipeline(), raw.transaction():  # a statement without rows needs no round trip of its own
                return step(raw, True)

        return self._lend(self.engine, run)

    def _call(self, engine: sa.Engine, statement: str, parameters: Sequence[Any]) -> Any:
        return self._lend(engine, lambda raw: self._value(raw, statement, parameters))

    def _lend(self, engine: sa.Engine, use: Callable[[psycopg.Connection[Any]], Answer]) -> Answer:
        with self._translated(but=_CONFLICTS):
            lent = engine.raw_connection()
            try:
                raw = lent.driver_connection
                assert isinstance(raw, psycopg.Connection)
                return use(raw)
            except psycopg.OperationalError as error:
                connection = lent.driver_connection
                if connection is not None and connection.broken:
                    lent.invalidate(error)
                    engine.dispose()  # the idle connections are broken for the same reason
                raise
            finally:
                lent.close()

    def _value(self, connection: Any, statement: str, parameters: Sequence[Any]) -> Any:
        # None: the connection decides, and prepares none.
        return _first(connection.execute(statement, parameters, prepare=self._prepare or None))

    @contextmanager
    def _translated(self, but: tuple[type[Exception], ...] = ()) -> Generator[None]:
        try:
            yield
        except (psycopg.Error, exc.SQLAlchemyError, UnicodeEncodeError) as error:
            ours = None if isinstance(error, but) else self._ours(error)
            if ours is None:
                raise
            raise ours from error

    def _ours(self, error: Exception) -> SpanloomError | None:
        """Return Spanloom's error for a driver's error. None for a mistake of this library, which stays unchanged."""
        where = self.location.shown
        if isinstance(error, exc.TimeoutError):
            return StoreUnavailable(
                f"all connections to {where} stayed in use for {CHECKOUT_SECONDS:g} s; raise the store's pool_size",
                reason=Unavailability.RESOURCES,
            )
        if not self.opened and getattr(cause_of(error), "sqlstate", None) in MISSING:
            try:
                check_version(where, self.found_version())
            except (StoreUnavailable, StoreNotMigrated, ConfigurationError) as other:
                return other
        return sorted_error(error, where, opened=self.opened)

    def check_settings(self) -> None:
        """Raise ConfigurationError for defaults of a session that transitions can't work with."""
        with self._translated():
            self._lend(self.engine, lambda raw: check_settings(raw, self.location))

    def found_version(self) -> str | None:
        """Return the schema version that the database holds, None if it has none. Raises StoreUnavailable."""
        with self._translated(), self.engine.connect() as connection:
            try:
                return connection.scalar(sa.select(_VERSION))
            except exc.ProgrammingError as error:
                if getattr(error.orig, "sqlstate", None) in MISSING:
                    return None
                raise


def _no_connection(given: object) -> ConfigurationError:
    return ConfigurationError(
        f"connection is a {type(given).__module__}.{type(given).__qualname__}; pass a psycopg.Connection, or a "
        f"SQLAlchemy Connection on postgresql+psycopg, to the Postgres that holds the store"
    )


def _first(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    return None if row is None else row[0]


def _refuse_dead(connection: psycopg.Connection[Any], entry: ConnectionPoolEntry, lent: object) -> None:
    """Replace all idle connections if this one has data to read: only a server that goes away sends such data."""
    if not connection.closed:
        waiting = select.poll()
        waiting.register(connection.fileno(), select.POLLIN)
        if not waiting.poll(0):
            return
    raise exc.InvalidatePoolError


_every: weakref.WeakSet[PostgresConnections] = weakref.WeakSet()
_inherited: list[object] = []


def _after_fork() -> None:
    for connections in _every:
        connections.forget_parent()


os.register_at_fork(after_in_child=_after_fork)
