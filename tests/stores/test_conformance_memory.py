"""The conformance suite over the in-memory store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine.store import ExecutionStore
from spanloom.stores import open_store
from spanloom.testing.conformance import StoreConformance
from support.stores import truncate


@pytest.fixture(scope="module")
def opened() -> Iterator[ExecutionStore]:
    store = open_store("memory://")
    store.open()
    yield store
    store.close()


class TestMemory(StoreConformance):
    @pytest.fixture
    def store(self, opened: ExecutionStore) -> ExecutionStore:
        return truncate(opened)
