"""The conformance suite over Postgres: its hot transitions as PL/pgSQL functions, and all of them in Python."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import PostgresExecutionStore
from spanloom.testing.conformance import StoreConformance
from support.stores import truncate


@pytest.fixture(scope="module", params=[True, False], ids=["accelerated", "python"])
def opened(request: pytest.FixtureRequest, module_postgres_url: str) -> Iterator[ExecutionStore]:
    store = PostgresExecutionStore(module_postgres_url, accelerated=request.param)
    store.open()
    yield store
    store.close()


@pytest.mark.usefixtures("no_transaction_left")
class TestPostgres(StoreConformance):
    @pytest.fixture
    def store(self, opened: ExecutionStore) -> ExecutionStore:
        return truncate(opened)
