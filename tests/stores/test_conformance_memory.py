"""The conformance suite over the in-memory store: what is its own in every run, and all of it in `make torture`.

Its transitions are those of the SQLite store, over `:memory:`. Its own are that it lives with the object, that its
threads share one connection, and that values are copied.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import open_store
from spanloom.testing.conformance import StoreConformance
from support.stores import truncate

OWN = {
    "TestAliasing",
    "TestAtomicity",
    "TestChildEndRaces",
    "TestConcurrency",
    "TestItemRaces",
    "TestJoinRaces",
    "TestLifecycles",
    "TestTransactions",
}


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


for _name in [name for name in vars(StoreConformance) if name.startswith("Test") and name not in OWN]:
    _subject = type(_name, (getattr(StoreConformance, _name),), {"pytestmark": [pytest.mark.torture]})
    setattr(TestMemory, _name, _subject)
