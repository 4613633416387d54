"""Databases of a Postgres server that are copied from a migrated one, which takes a fraction of a migration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from spanloom.testing.servers import PostgresServer

_numbers = itertools.count(1)


@contextmanager
def copied_database(server: PostgresServer, template: str) -> Iterator[str]:
    """Make a copy, give its name, and drop it after the block. Starts the server if it is down."""
    import psycopg

    name = f"copy_{next(_numbers)}"
    server.start()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"create database {name} template {template}")
    try:
        yield name
    finally:
        server.start()
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)")
