"""The conformance suite over Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import open_store
from spanloom.testing.conformance import StoreConformance
from support.stores import truncate


@pytest.fixture(scope="module")
def opened(module_postgres_url: str) -> Iterator[ExecutionStore]:
    store = open_store(module_postgres_url)
    store.open()
    yield store
    store.close()


@pytest.mark.usefixtures("no_transaction_left")
class TestPostgres(StoreConformance):
    @pytest.fixture
    def store(self, opened: ExecutionStore) -> ExecutionStore:
        return truncate(opened)
