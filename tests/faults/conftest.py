"""Where the crash tests play: a nursery of processes, a Redis of their own, and a new store for each play."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from databases import copied_database
from faults.crash_plays import Plays
from faults.crash_processes import Nursery
from faults.crash_processes import nursery as new_nursery
from spanloom.stores import open_store
from spanloom.testing.servers import PostgresServer
from spanloom.testing.servers import redis_server as new_redis_server


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """What forks the processes of all plays."""
    with new_nursery() as made:
        yield made


@pytest.fixture(scope="module")
def own_redis_url() -> Iterator[str]:
    """A Redis that no other module's tests touch."""
    with new_redis_server() as server:
        yield server.url


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def plays(
    request: pytest.FixtureRequest, nursery: Nursery, own_redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Plays:
    """Plays over each kind of store in turn."""
    folder = tmp_path_factory.mktemp(f"crash-{request.param}")
    if request.param == "sqlite":
        return Plays(request.param, nursery, own_redis_url, folder, _sqlite_stores(folder), lambda: None)
    server: PostgresServer = request.getfixturevalue("postgres_server")
    template: str = request.getfixturevalue("_postgres_template")
    server.start()
    return Plays(
        request.param, nursery, own_redis_url, folder, _postgres_stores(server, template), partial(_settle, server)
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
