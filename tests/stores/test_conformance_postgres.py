"""The conformance suite over Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine.store import ExecutionStore
from spanloom.stores import open_store
from spanloom.testing.conformance import StoreConformance


class TestPostgres(StoreConformance):
    @pytest.fixture
    def store(self, emptied_postgres_url: str) -> Iterator[ExecutionStore]:
        store = open_store(emptied_postgres_url)
        store.open()
        yield store
        store.close()
