"""The conformance suite for execution stores: all guarantees of the port, as tests that use only the port.

Subclass `StoreConformance` in a test module, with a `store` fixture that yields a fresh, migrated, empty store:

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self, tmp_path):
            store = MyStore(tmp_path / "my.db")
            store.migrate()
            yield store
            store.close()

Each subject is a nested class, so `pytest -k TestJoinRaces` runs one. No test depends on the kind of store.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver

__all__ = ["StoreConformance"]

_SUBJECTS = [found.name for found in walk_packages(__path__, f"{__name__}.") if not found.ispkg]

# Before the modules are imported, so that their assertions show the compared values.
pytest.register_assert_rewrite(*_SUBJECTS)


class StoreConformance:
    """The tests of the port's contract. Override the `store` fixture in a subclass, named Test…."""

    @pytest.fixture
    def store(self) -> ExecutionStore:
        """A fresh, migrated, empty store."""
        pytest.fail("give your StoreConformance subclass a `store` fixture that yields a fresh, migrated store")

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock that the tests pass to the store."""
        return ManualClock()

    @pytest.fixture
    def driver(self, store: ExecutionStore, clock: ManualClock) -> StoreDriver:
        """A worker played by hand, on the tests' clock."""
        return StoreDriver(store, clock=clock)


def _test_classes() -> Iterator[type]:
    """Yield the classes with tests that the modules of this package define."""
    for name in _SUBJECTS:
        for found in vars(import_module(name)).values():
            if inspect.isclass(found) and found.__module__ == name and any(map(_is_test, vars(found))):
                yield found


def _is_test(name: str) -> bool:
    return name.startswith("test_")


for _subject in _test_classes():
    assert not hasattr(StoreConformance, f"Test{_subject.__name__}"), f"two test classes are named {_subject.__name__}"
    setattr(StoreConformance, f"Test{_subject.__name__}", _subject)
