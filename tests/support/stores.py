"""A store made empty again, and its work counted: rows that Postgres touches, or instructions of SQLite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa

from spanloom.engine import ExecutionStore
from spanloom.stores import PostgresExecutionStore
from spanloom.stores.schema import metadata, store_state

_KEPT = {"alembic_version", "store_state"}

_TOUCHED = (
    "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0) + n_tup_ins + n_tup_upd + n_tup_del)::bigint"
    " from pg_stat_user_tables where schemaname = 'spanloom'"
)
_BACKENDS = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'spanloom'"
_EVERY = 10  #: SQLite reports every so many instructions
_LEAVE_SECONDS = 10.0


def truncate(store: Any) -> Any:
    """Return an open SQL store of any kind as if it were new: without rows, and without what it remembers of them.

    To open another store costs more than most small tests. Uses privates of the stores: a store in memory has no
    connection but its own, and SQLite's transitions keep the edges of the versions that they met.
    """
    tables = [table for table in reversed(metadata.sorted_tables) if table.name not in _KEPT]
    with store._writing() as connection:
        if isinstance(store, PostgresExecutionStore):  # in one round trip
            schema = store._connections.location.namespace
            statements = [f'delete from "{schema}".{table.name}' for table in tables]
            statements.append(f'update "{schema}".store_state set epoch = 0, redis_run_id = null')
            connection.connection.driver_connection.execute("; ".join(statements), prepare=False)
        else:
            for table in tables:
                connection.exec_driver_sql(f"delete from {table.name}")
            connection.execute(sa.update(store_state).values(epoch=0, redis_run_id=None))
    if hasattr(store, "_graphs"):
        store._graphs.clear()
    return store


@contextmanager
def count_work(store: ExecutionStore, url: str) -> Iterator[Callable[[], int]]:
    """Count the store's work while the block lasts; what is yielded returns it afterwards.

    Never seconds. Uses a private of SQLite's store: instructions are counted on the connection that executes them.
    """
    if isinstance(store, PostgresExecutionStore):
        _keep_plans(url)
        before = _touched(store, url)
        yield lambda: _touched(store, url) - before
        return
    made = 0

    def note() -> int:
        nonlocal made
        made += _EVERY
        return 0

    connections: Any = store
    with connections._live().writing():
        writer = connections._live().raw_writer
    writer.set_progress_handler(note, _EVERY)
    try:
        yield lambda: made
    finally:
        writer.set_progress_handler(None, 0)


def _keep_plans(url: str) -> None:
    """Let no ANALYZE come in between, whenever it pleases: with other plans the same work touches other rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'spanloom'").fetchall()
        for (table,) in tables:
            connection.execute(f"alter table spanloom.{table} set (autovacuum_enabled = false)")


def _touched(store: ExecutionStore, url: str) -> int:
    """Return how many rows were touched so far. Sessions report it when they end."""
    store.close()
    give_up = time.monotonic() + _LEAVE_SECONDS
    with psycopg.connect(url, autocommit=True) as watcher:
        while watcher.execute(_BACKENDS).fetchone() != (0,):
            assert time.monotonic() < give_up, "the store's sessions do not end"
            watcher.execute("select pg_sleep(0.01)")
        (touched,) = watcher.execute(_TOUCHED).fetchone() or (0,)
    return int(touched)
