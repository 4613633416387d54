"""One running system for each kind of store, which all drawn workflows of a test share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from differential.processes import process_runner
from differential.runner import Runner, runner
from spanloom.testing.servers import PostgresServer
from support.postgres import copied_database


@pytest.fixture(autouse=True, scope="module")
def _failures_are_expected() -> Iterator[None]:
    """Drawn nodes fail by the thousand: do not log it."""
    configured = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    yield
    structlog.configure(**configured)


@pytest.fixture
def running(request: pytest.FixtureRequest, kind: str, own_redis_url: str) -> Iterator[Runner]:
    """Workers over an empty store of this kind."""
    import redis

    with redis.Redis.from_url(own_redis_url) as client:
        client.flushall()
    for store_url in _store_urls(kind, request):
        with runner(store_url, own_redis_url) as made:
            yield made


@pytest.fixture
def running_processes(
    request: pytest.FixtureRequest, kind: str, own_redis_url: str, tmp_path: Path
) -> Iterator[Runner]:
    """Worker processes over an empty store of this kind."""
    import redis

    with redis.Redis.from_url(own_redis_url) as client:
        client.flushall()
    for store_url in _store_urls(kind, request):
        with process_runner(store_url, own_redis_url, tmp_path) as made:
            yield made


def _store_urls(kind: str, request: pytest.FixtureRequest) -> Iterator[str]:
    if kind == "memory":
        yield "memory://"
        return
    if kind == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    with copied_database(server, request.getfixturevalue("_postgres_template")) as name:
        yield server.database_url(name)
