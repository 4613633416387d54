"""Pairs of stores that are given the same commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model.twins import FUNCTIONS_AND_PYTHON, MEMORY_AND_MIXED, MEMORY_AND_POSTGRES, TwinWorld
from model.world import MixedWorld, World
from spanloom.testing.servers import PostgresServer
from support.postgres import copied_database


@pytest.fixture
def other_postgres_url(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    """A second database beside that of `postgres_url`, migrated and empty like it."""
    with copied_database(postgres_server, _postgres_template) as name:
        yield postgres_server.database_url(name)


@pytest.fixture
def twins(request: pytest.FixtureRequest, postgres_url: str, other_postgres_url: str) -> Iterator[TwinWorld]:
    """Two empty stores, for one run of the machine after the other; one at least runs transitions in Python."""
    made = {
        MEMORY_AND_POSTGRES: lambda: TwinWorld(World("memory://"), World(postgres_url)),
        FUNCTIONS_AND_PYTHON: lambda: TwinWorld(World(postgres_url), World(other_postgres_url, accelerated=False)),
        MEMORY_AND_MIXED: lambda: TwinWorld(World("memory://"), MixedWorld(postgres_url)),
    }[request.param]()
    yield made
    made.close()
