"""Where the crash tests play: a fork server, a Redis of their own, and a new store for each play."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from faults.crash_plays import Plays
from spanloom.stores import open_store
from spanloom.testing.crash_points import FOLDER
from spanloom.testing.servers import PostgresServer
from support.fork_server import ForkServer
from support.postgres import copied_database


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    """What the processes of all plays are forked from."""
    server = ForkServer(
        ("faults.crash_app", "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite"),
        {FOLDER: ""},
    )
    yield server
    server.close()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def plays(
    request: pytest.FixtureRequest,
    fork_server: ForkServer,
    own_redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Plays:
    """Plays over each kind of store in turn."""
    folder = tmp_path_factory.mktemp(f"crash-{request.param}")
    if request.param == "sqlite":
        return Plays(request.param, fork_server, own_redis_url, folder, _sqlite_stores(folder), lambda: None)
    server: PostgresServer = request.getfixturevalue("postgres_server")
    template: str = request.getfixturevalue("_postgres_template")
    server.start()
    return Plays(
        request.param, fork_server, own_redis_url, folder, _postgres_stores(server, template), partial(_settle, server)
    )


def _sqlite_stores(folder: Path) -> Callable[[Path], Iterator[str]]:
    template = folder / "template.db"
    store = open_store(f"sqlite:///{template}")
    store.migrate()
    store.close()

    def new_store(place: Path) -> Iterator[str]:
        shutil.copy(template, place / "spanloom.db")
        yield f"sqlite:///{place}/spanloom.db"

    return new_store


def _settle(server: PostgresServer) -> None:
    """Wait until every transaction has ended that was at work, in any database: until then late events do not show."""
    import psycopg

    pause = threading.Event()
    with psycopg.connect(server.url, autocommit=True) as connection:
        (newest,) = connection.execute("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone() or (
            0,
        )
        for _ in range(1000):
            oldest = connection.execute("select pg_snapshot_xmin(pg_current_snapshot())::text::bigint").fetchone() or (
                0,
            )
            if oldest[0] >= newest:
                return
            pause.wait(0.01)
    raise TimeoutError("a transaction stays at work")


def _postgres_stores(server: PostgresServer, template: str) -> Callable[[Path], Iterator[str]]:
    def new_store(_place: Path) -> Iterator[str]:
        with copied_database(server, template) as name:
            # The namespace is that of Redis alone: the template has the default schema.
            yield f"{server.database_url(name)}&namespace=spanloom"

    return new_store
