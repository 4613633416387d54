"""A Postgres that refuses for as long as a test wants: by a trigger on a table, or by what its user may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

__all__ = ["USER", "end_sessions", "grant", "refusing", "revoke", "set_for_user", "user_url"]

USER = "worker_of_tests"


@contextmanager
def refusing(url: str, state: str, table: str = "node_results", when: str = "true") -> Iterator[None]:
    """Have inserts into a table of a Postgres store fail with a SQLSTATE while the block lasts, for rows `when`."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"""
            create function spanloom.refuse() returns trigger language plpgsql as
            $$ begin raise exception 'no such words here' using errcode = '{state}'; end $$;
            create trigger refuse before insert on spanloom.{table}
            for each row when ({when}) execute function spanloom.refuse()
            """
        )
        try:
            yield
        finally:
            connection.execute(f"drop trigger refuse on spanloom.{table}; drop function spanloom.refuse()")


@contextmanager
def user_url(url: str) -> Iterator[str]:
    """Make a user with the rights that a store needs, and return the URL with this user."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create role {USER} login")
        grant(connection)
        try:
            yield url.replace("://spanloom@", f"://{USER}@")
        finally:
            connection.execute(f"drop owned by {USER}; drop role {USER}")


def grant(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Give the user all rights that a store needs."""
    connection.execute(
        f"""
        grant usage on schema spanloom to {USER};
        grant select, insert, update, delete on all tables in schema spanloom to {USER};
        grant execute on all functions in schema spanloom to {USER}
        """
    )


def revoke(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Take the rights to write away from the user."""
    connection.execute(f"revoke insert, update, delete on all tables in schema spanloom from {USER}")


def end_sessions(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """End the user's sessions, as settings of a role are those of new sessions only."""
    connection.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s", [USER])


def set_for_user(connection: psycopg.Connection[tuple[object, ...]], setting: str, value: str | None) -> None:
    """Set a parameter for the user, or reset it, and have all sessions take it."""
    change = sql.SQL("reset {}").format(sql.Identifier(setting))
    if value is not None:
        change = sql.SQL("set {} = {}").format(sql.Identifier(setting), sql.Literal(value))
    connection.execute(sql.SQL("alter role {} {}").format(sql.Identifier(USER), change))
    end_sessions(connection)
