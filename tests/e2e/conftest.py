"""Whole systems for the end-to-end tests: one per module and kind of store, with a Redis of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from e2e.support.harness import System
from e2e.support.harness import system as new_system
from spanloom.testing.servers import PostgresServer, RedisServer
from support.postgres import copied_database


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """Workers outlive a test here; what is left is looked at when their system ends."""


def _store_url(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if kind == "memory":
        yield "memory://"
    elif kind == "sqlite":
        yield f"sqlite:///{folder}/spanloom.db"
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        with copied_database(server, request.getfixturevalue("_postgres_template")) as name:
            yield server.database_url(name)


@pytest.fixture(scope="module", params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def system(
    request: pytest.FixtureRequest, own_redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """A running system over each store in turn: two workers with four slots each."""
    yield from _system(request, own_redis_url, tmp_path_factory, workers=2)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def idle_system(
    request: pytest.FixtureRequest, own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """A system without workers, with a Redis of its own, for one test; it starts its own workers."""
    yield from _system(request, own_redis.url, tmp_path_factory, workers=0)


def _system(
    request: pytest.FixtureRequest, redis_url: str, folders: pytest.TempPathFactory, workers: int
) -> Iterator[System]:
    before = set(threading.enumerate())
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    stores = _store_url(request.param, request, folders.mktemp("store"))
    store_url = next(stores)
    with new_system(request.param, store_url, redis_url, workers) as made:
        yield made
    next(stores, None)
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not left, f"the system left threads behind: {left}"
