"""The Postgres store: one schema of a database, any number of processes and machines."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from spanloom.engine.arguments import Bound, Text, Url, checked
from spanloom.engine.errors import ConfigurationError, StoreNotMigrated, StoreUnavailable, Unavailability
from spanloom.engine.store.models import Event, Execution
from spanloom.stores.postgres.accelerated import AcceleratedTransitions
from spanloom.stores.postgres.connections import PostgresConnections
from spanloom.stores.postgres.execution_read import execution_of, execution_statement
from spanloom.stores.postgres.time_limit import long
from spanloom.stores.postgres.url import DEFAULT_NAMESPACE, Location
from spanloom.stores.schema import events, metadata
from spanloom.stores.sql.base import Upsert, canonical_id
from spanloom.stores.sql.lists.paging import bad_cursor
from spanloom.stores.sql.reads import ANY_SIZE
from spanloom.stores.version import check_version

__all__ = ["PostgresExecutionStore"]

SETTLE_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.03, 0.05)  #: pauses of a reader while events may still commit late


class PostgresExecutionStore(AcceleratedTransitions):
    """A store in one schema of a Postgres database, version 14 or newer. `spanloom migrate` creates the schema.

    - `url` is libpq's, and may contain the schema: `postgresql://user:password@host/database?namespace=orders`, and
      `pool_size` and `prepare` (`?pool_size=5&prepare=false`). All three take precedence over the arguments.
    - At most `pool_size` connections are open in a process, and one more that renews leases.
    - With `prepare=False` no statement is prepared, for a PgBouncer that pools transactions and does not support
      prepared statements. Session state is never set.
    - With `accelerated=False` the hot transitions run in Python, as all others always do, instead of as PL/pgSQL
      functions. The Python form is the reference for the functions.
    - A statement that is not answered within 20 seconds is cancelled, and its connection closed: StoreUnavailable. The
      renewal of a lease has 5 seconds; migrations, purges, counts and lists have an hour.
    - Events are visible once no older transaction of the database server is running.

    >>> store = PostgresExecutionStore("postgresql://me:secret@db.internal/app?namespace=orders", pool_size=4)
    >>> store.url
    'postgresql://me@db.internal/app?namespace=orders'
    """

    @checked
    def __init__(
        self,
        url: Url,
        *,
        namespace: Text = DEFAULT_NAMESPACE,
        pool_size: Bound = 10,
        prepare: bool = True,
        accelerated: bool = True,
    ) -> None:
        self._location = location = Location.parse(url, namespace)
        connections = PostgresConnections(
            location,
            pool_size=pool_size if location.pool_size is None else location.pool_size,
            prepare=prepare if location.prepare is None else location.prepare,
        )
        super().__init__(connections, accelerated=accelerated)
        self._execution = execution_statement(f'"{location.namespace}"')

    # Over whole tables, or families of any size: no worker waits for these.
    stats = long()(AcceleratedTransitions.stats)
    list_executions = long()(AcceleratedTransitions.list_executions)
    get_execution_count = long()(AcceleratedTransitions.get_execution_count)
    purge_executions = long()(AcceleratedTransitions.purge_executions)
    control_executions = long()(AcceleratedTransitions.control_executions)
    _control = long()(AcceleratedTransitions._control)

    @classmethod
    def from_url(cls, url: str, namespace: str = DEFAULT_NAMESPACE) -> PostgresExecutionStore:
        """Return the store of `postgresql://…` or `postgres://…`. Raises ConfigurationError for a malformed URL."""
        return cls(url, namespace=namespace)

    @property
    def url(self) -> str:
        """See Lifecycle.url."""
        return self._location.shown

    @property
    def shared(self) -> bool:
        """Whether other processes can open the same store: they can."""
        return True

    def open(self) -> None:
        """See Lifecycle.open."""
        if not self._connections.opened:
            self.health()
            self._connections.check_settings()
            self._connections.opened = True

    def close(self) -> None:
        """See Lifecycle.close."""
        self._connections.opened = False
        self._connections.close()

    def migrate(self) -> None:
        """See Lifecycle.migrate."""
        from spanloom.stores.migrations import upgrade  # Alembic is slow to import

        with long(), self._connections.writing() as connection:
            upgrade(connection, self._location.namespace, self.url)

    def health(self) -> None:
        """See Lifecycle.health."""
        try:
            check_version(self.url, self._connections.found_version())
        except (StoreNotMigrated, ConfigurationError) as problem:
            if self._connections.opened:  # it was of this release: somebody is restoring it, or it was upgraded
                raise StoreUnavailable(str(problem), reason=Unavailability.SCHEMA) from problem
            raise

    def write_problem(self) -> str | None:
        """See Lifecycle.write_problem. It reads the session's settings and the rights of the user."""
        tables = ", ".join(f"'{table}'" for table in sorted(metadata.tables) if table != "alembic_version")
        may = " and ".join(
            f"pg_catalog.has_table_privilege(c.oid, '{right}')" for right in ("insert", "update", "delete")
        )
        query = (
            "select pg_catalog.current_setting('transaction_read_only'), "  # noqa: S608  names of this module and schema
            "(select pg_catalog.string_agg(c.relname, ', ' order by c.relname) from pg_catalog.pg_class c "
            f"where c.relname in ({tables}) "
            f"and c.relnamespace = pg_catalog.to_regnamespace('\"{self._location.namespace}\"') and not ({may}))"
        )
        with self._reading() as connection:
            read_only, barred = connection.exec_driver_sql(query).one()
        if read_only == "on":
            return "the database is read-only"
        return f"its user may not write {barred}" if barred else None

    @contextmanager
    def transaction(self) -> Generator[None]:
        """See Lifecycle.transaction. A transaction inside another joins it. A driver error ends all of it."""
        with self._writing():
            yield

    def get_execution(self, execution_id: str, *, data_limit: int | None = None) -> Execution | None:
        """See ExecutionReads.get_execution."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return None
        self.open()
        most = ANY_SIZE if data_limit is None else data_limit
        row = self._connections.row(self._execution, (most, spelled))
        return None if row is None else execution_of(row, most)

    def get_events(self, execution_id: str, *, after: str | None = None, limit: int = 1000) -> list[Event]:
        """See ExecutionReads.get_events. Waits up to a tenth of a second for older transactions to end."""
        if not self._connections.joined:
            for pause_seconds in SETTLE_SECONDS:
                if not self._unsettled(execution_id):
                    break
                time.sleep(pause_seconds)
        return super().get_events(execution_id, after=after, limit=limit)

    def _unsettled(self, execution_id: str) -> bool:
        spelled = canonical_id(execution_id)
        late = sa.exists().where(events.c.execution_id == spelled, events.c.xid >= _oldest_at_work())
        with self._reading() as connection:
            return spelled is not None and bool(connection.scalar(sa.select(late)))

    def _reading(self) -> AbstractContextManager[sa.Connection]:
        self.open()
        return self._connections.reading()

    @contextmanager
    def _searching(self) -> Generator[sa.Connection]:
        # A prepared statement may get one plan for all values: for a rare workflow that of a frequent one.
        with self._reading() as connection:
            raw: Any = connection.connection.driver_connection
            threshold, raw.prepare_threshold = raw.prepare_threshold, None
            try:
                yield connection
            finally:
                raw.prepare_threshold = threshold

    def _writing(self) -> AbstractContextManager[sa.Connection]:
        self.open()
        return self._connections.writing()

    def _clock(self, connection: sa.Connection) -> datetime:
        return connection.scalars(sa.select(sa.func.statement_timestamp(type_=sa.DateTime(timezone=True)))).one()

    def _insert(self, table: sa.Table) -> Upsert:
        return postgresql.insert(table)

    def _log_id(self, execution_id: str) -> None:
        return None

    def _event_query(self, execution_id: str, after: str | None) -> sa.Select[Any]:
        columns = events.c
        cursor = sa.func.concat(columns.xid, ":", columns.seq).label("cursor")
        query = (
            sa.select(events, cursor)
            # A cursor must not pass events that an older transaction may still write: newer events wait for those.
            .where(columns.execution_id == execution_id, columns.xid < _oldest_at_work())
            .order_by(columns.xid, columns.seq)
        )
        if after is None:
            return query
        parts = after.split(":")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
            raise bad_cursor(after)
        return query.where(sa.tuple_(columns.xid, columns.seq) > sa.tuple_(*map(int, parts)))


def _oldest_at_work() -> sa.ColumnElement[int]:
    """Return the number below which every transaction of the server has ended, as an expression."""
    oldest = sa.func.pg_snapshot_xmin(sa.func.pg_current_snapshot())
    return sa.cast(sa.cast(oldest, sa.Text), sa.BigInteger)
