"""The conformance suite over SQLite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine.store import ExecutionStore
from spanloom.stores import open_store
from spanloom.testing.conformance import StoreConformance


class TestSqlite(StoreConformance):
    @pytest.fixture
    def store(self, sqlite_url: str) -> Iterator[ExecutionStore]:
        store = open_store(sqlite_url)
        store.open()
        yield store
        store.close()
