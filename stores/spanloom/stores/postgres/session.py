"""The needs of this store of a session, under any settings of a role, a database or a pooler."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy.dialects.postgresql.psycopg import PGExecutionContext_psycopg

from spanloom.engine.errors import ConfigurationError
from spanloom.stores.postgres.time_limit import TimeLimitedConnection
from spanloom.stores.postgres.url import Location

__all__ = ["BinaryResults", "check_settings", "open_session", "pooled_by_transaction"]

_SETTINGS = "SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('transaction_isolation')"
_ISOLATION = "read committed"
# psycopg and libpq refuse such a value before they connect.
_BAD_OPTION = re.compile(
    r"(invalid \S+ value|invalid integer value|invalid port number|definition of service|bad value)"
)
_PREPARED = (errors.DuplicatePreparedStatement, errors.InvalidSqlStatementName)
_ITS_STATEMENTS = 'prepared statement "_pg3_'  # psycopg's names


class BinaryResults(PGExecutionContext_psycopg):
    """The reading of binary values, which are the same under any DateStyle, IntervalStyle and number of digits."""

    def create_default_cursor(self) -> Any:
        """Return a cursor for a statement of SQLAlchemy's."""
        return self._dbapi_connection.cursor(binary=True)


def open_session(location: Location, *, prepare: bool, limit_seconds: float) -> TimeLimitedConnection:
    """Connect, without a statement that would set session state: a pooler may stand between.

    Raises ConfigurationError for an option that libpq refuses, and for a database that is not UTF8.
    """
    prepare_after = 5 if prepare else None
    try:
        connection = TimeLimitedConnection.connect(
            autocommit=True, prepare_threshold=prepare_after, **location.parameters
        )
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        reason = str(error).strip().partition("\n")[0]
        if (wrong := _BAD_OPTION.search(reason)) is not None:
            raise ConfigurationError(
                f"the URL of {location.shown} has a wrong option: {reason[wrong.start() :]}"
            ) from error
        raise
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        name = connection.info.dbname
        connection.close()
        raise ConfigurationError(
            f"the database of {location.shown} has the encoding {encoding}, which can't keep every text; use one in "
            f"UTF8: create database {name}_utf8 encoding 'UTF8' locale 'C' template template0"
        )
    connection.limit_seconds = limit_seconds
    return connection


def check_settings(connection: psycopg.Connection[Any], location: Location) -> None:
    """Raise ConfigurationError for defaults of the role or the database under which transitions would go wrong."""
    row = connection.execute(_SETTINGS).fetchone()
    assert row is not None
    search_path, isolation = row
    schemas = [schema.strip(' "') for schema in search_path.split(",")]
    if "pg_catalog" in schemas[1:]:
        raise ConfigurationError(
            f"the search_path at {location.shown} is {search_path!r}: what {schemas[0]} holds would be taken for "
            "Postgres' own functions; leave pg_catalog out, which puts it first, by alter role or alter database"
        )
    if isolation != _ISOLATION:
        raise ConfigurationError(
            f"transactions at {location.shown} are {isolation!r} by default, and would miss what commits meanwhile; "
            f"set default_transaction_isolation to '{_ISOLATION}', by alter role or alter database"
        )


def pooled_by_transaction(cause: BaseException | None, reason: str) -> bool:
    """Return whether an error is that of statements prepared on a session that a pooler lends to others."""
    return isinstance(cause, _PREPARED) or (isinstance(cause, psycopg.Error) and _ITS_STATEMENTS in reason)
