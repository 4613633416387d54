"""The conformance suite for execution stores: everything the port promises, as tests that see only the port.

Subclass `StoreConformance` in a test module and give it a `store` fixture that yields a fresh, migrated, empty store:

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self, tmp_path):
            store = MyStore(tmp_path / "my.db")
            store.migrate()
            yield store
            store.close()

Each subject is a nested class, so `pytest -k TestJoinRaces` runs one. Nothing asks which store it runs on.
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

# Before the modules are imported: only then do their assertions show what they compared.
pytest.register_assert_rewrite(*_SUBJECTS)


class StoreConformance:
    """Hold a store to the port's contract; override the `store` fixture in a subclass whose name begins with Test."""

    @pytest.fixture
    def store(self) -> ExecutionStore:
        """A fresh, migrated, empty store."""
        pytest.fail("give your StoreConformance subclass a `store` fixture that yields a fresh, migrated store")

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The time that the tests tell the store."""
        return ManualClock()

    @pytest.fixture
    def driver(self, store: ExecutionStore, clock: ManualClock) -> StoreDriver:
        """A worker played by hand, on the tests' time."""
        return StoreDriver(store, clock=clock)


def _test_classes() -> Iterator[type]:
    """List the classes with tests that the modules of this package define."""
    for name in _SUBJECTS:
        for found in vars(import_module(name)).values():
            if inspect.isclass(found) and found.__module__ == name and any(map(_is_test, vars(found))):
                yield found


def _is_test(name: str) -> bool:
    return name.startswith("test_")


for _subject in _test_classes():
    assert not hasattr(StoreConformance, f"Test{_subject.__name__}"), f"two test classes are named {_subject.__name__}"
    setattr(StoreConformance, f"Test{_subject.__name__}", _subject)
