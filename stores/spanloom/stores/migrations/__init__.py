"""The migration of a database to this release's schema, with Alembic."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from spanloom.stores.version import check_not_newer

__all__ = ["PINNED", "create_functions", "current", "upgrade"]

VERSION_TABLE = "alembic_version"

_SCRIPTS = Path(__file__).parent
PINNED = "pg_catalog, pg_temp"  #: the search_path of all functions, and of migrations
_LOCK_KEY = 0x7370616E6C6F6F6D  # any number, the same in every process; as text "spanloom"
_alembic = threading.Lock()  # `alembic.op` is a global of the process


def upgrade(connection: sa.Connection, schema: str | None, where: str | None = None) -> None:
    """Migrate the tables in `schema` (None: the only one, as on SQLite) to this release's version.

    Creates the schema if it is missing. Idempotent, and safe when several processes call it at once: the second waits
    and finds nothing to do. Runs in one transaction: the caller's if one is open, else one that is committed here.
    Raises StoreNotMigrated, with `where` in it, for tables of a newer release.
    """
    with _alembic, nullcontext() if connection.in_transaction() else connection.begin(), _built_in_names(connection):
        _lock(connection)
        check_not_newer(where or f"schema {schema}", current(connection, schema))
        if schema is not None and not sa.inspect(connection).has_schema(schema):
            # Without `if not exists`, which needs the right to create a schema even if an operator has created it.
            connection.execute(sa.schema.CreateSchema(schema))
        config = Config()
        config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
        config.attributes.update(connection=connection, schema=schema)
        command.upgrade(config, "head")


def current(connection: sa.Connection, schema: str | None) -> str | None:
    """Return the revision of `schema`, None if it has no tables of Spanloom."""
    options = {"version_table": VERSION_TABLE, "version_table_schema": schema}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def create_functions(connection: sa.Connection, schema: str, names: tuple[str, ...]) -> None:
    """Create the Postgres functions of these files in `schema`, in this order."""
    folder = resources.files("spanloom.stores.postgres").joinpath("functions")
    driver: Any = connection.connection.driver_connection
    with (
        driver.cursor() as cursor
    ):  # its own: a file has several statements, which can't be run if they return binary values
        for name in names:
            text = folder.joinpath(f"{name}.sql").read_text(encoding="utf-8")
            cursor.execute(text.replace("{schema}", schema))


@contextmanager
def _built_in_names(connection: sa.Connection) -> Generator[None]:
    """Let names in the statements of the block be Postgres' own, whatever others have created in their schemas."""
    if connection.dialect.name != "postgresql":
        yield
        return
    previous: str = connection.exec_driver_sql("select pg_catalog.current_setting('search_path')").scalar_one()
    _set_search_path(connection, PINNED)
    yield
    _set_search_path(connection, previous)  # it would last until the end of a caller's transaction


def _set_search_path(connection: sa.Connection, path: str) -> None:
    connection.exec_driver_sql("select pg_catalog.set_config('search_path', %s::text, true)", (path,))


def _lock(connection: sa.Connection) -> None:
    """Block other migrations of this database until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.literal(_LOCK_KEY, sa.BigInteger))))
        return
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction:  # sqlite3 itself begins none before DDL
        connection.exec_driver_sql("BEGIN IMMEDIATE")
