"""The conformance suite over SQLite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import open_store
from spanloom.testing.conformance import StoreConformance
from support.stores import truncate


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutionStore]:
    folder = tmp_path_factory.mktemp("store")
    store = open_store(f"sqlite:///{folder}/spanloom.db")
    store.open()
    yield store
    store.close()


class TestSqlite(StoreConformance):
    @pytest.fixture
    def store(self, opened: ExecutionStore) -> ExecutionStore:
        return truncate(opened)
