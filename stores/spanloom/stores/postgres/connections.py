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
    PayloadRejected,
    SpanloomError,
    StoreNotMigrated,
    StoreRefused,
    StoreUnavailable,
)
from spanloom.stores.postgres.url import Location
from spanloom.stores.schema import SCHEMA_VERSION

__all__ = ["PostgresConnections"]

Answer = TypeVar("Answer")

CHECKOUT_SECONDS = 10.0
CONFLICT_RETRIES = 8

_VERSION = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.Text)).c.version_num
_TOO_LARGE = errors.ProgramLimitExceeded.sqlstate
_CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)
_NOT_MIGRATED = (
    errors.UndefinedTable,
    errors.UndefinedFunction,
    errors.UndefinedColumn,
    errors.UndefinedObject,
    errors.InvalidSchemaName,
)


class PostgresConnections:
    """The connections of one process to one Postgres, opened when they are needed.

    - Outside a transaction each statement commits by itself: one round trip.
    - No session state is set, so that PgBouncer may stand between.
    - A connection that the server closed while it was idle is replaced at its next use. A failure in use empties the
      pool.
    - After a fork the child begins with pools of its own.
    - One more connection is reserved for the renewal of leases, which may not wait for a free one of the pool.
    """

    def __init__(self, location: Location, *, pool_size: int, prepare: bool) -> None:
        self.location = location
        self._prepare = prepare
        self._thread = threading.local()
        self.engine = self._pool(pool_size)
        self._reserved = self._pool(1)
        _every.add(self)

    def _pool(self, size: int) -> sa.Engine:
        engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
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
        event.listen(engine, "checkout", _refuse_dead)
        return engine

    def _connect(self) -> psycopg.Connection[Any]:
        prepare_after = 5 if self._prepare else None
        return psycopg.connect(autocommit=True, prepare_threshold=prepare_after, **self.location.parameters)

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
        except (psycopg.Error, exc.SQLAlchemyError) as error:
            ours = None if isinstance(error, but) else self._ours(error)
            if ours is None:
                raise
            raise ours from error

    def _ours(self, error: Exception) -> SpanloomError | None:
        """Return Spanloom's error for a driver's error. None for a mistake of this library, which stays unchanged."""
        where = self.location.shown
        if isinstance(error, exc.TimeoutError):
            return StoreUnavailable(
                f"all connections to {where} stayed in use for {CHECKOUT_SECONDS:g} s; raise the store's pool_size"
            )
        cause: BaseException | None = error.orig if isinstance(error, exc.DBAPIError) else error
        reason = str(cause).strip().partition("\n")[0]
        if isinstance(cause, _NOT_MIGRATED):
            try:
                found = self.found_version()
            except StoreUnavailable as gone:
                return gone
            return None if found == SCHEMA_VERSION else StoreNotMigrated(where, found, SCHEMA_VERSION)
        if isinstance(cause, errors.InsufficientPrivilege):
            return ConfigurationError(f"the user of {where} lacks a right that Spanloom needs: {reason}")
        if isinstance(cause, psycopg.DataError) or getattr(cause, "sqlstate", None) == _TOO_LARGE:
            return PayloadRejected(f"Postgres can't keep a value that it was given: {reason}")
        if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError | errors.ReadOnlySqlTransaction):
            return StoreUnavailable(f"Postgres at {where} did not answer: {reason}")
        if isinstance(error, exc.InvalidRequestError):  # connections went away faster than the pool could replace them
            return StoreUnavailable(f"Postgres at {where} keeps closing its connections: {reason}")
        if isinstance(cause, psycopg.DatabaseError):
            return StoreRefused(f"Postgres at {where} refused a statement: {reason}")
        return None

    def found_version(self) -> str | None:
        """Return the schema version that the database holds, None if it has none. Raises StoreUnavailable."""
        with self._translated(), self.engine.connect() as connection:
            try:
                return connection.scalar(sa.select(_VERSION))
            except exc.ProgrammingError as error:
                if isinstance(error.orig, _NOT_MIGRATED):
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
