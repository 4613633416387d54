"""Spanloom's execution stores: in memory, on SQLite, on Postgres. Each is imported when its name is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanloom.engine.store.opening import open_store
    from spanloom.stores.postgres.store import PostgresExecutionStore
    from spanloom.stores.sqlite.memory import InMemoryExecutionStore
    from spanloom.stores.sqlite.store import SqliteExecutionStore

__all__ = ["InMemoryExecutionStore", "PostgresExecutionStore", "SqliteExecutionStore", "open_store"]

_MODULES = {
    "InMemoryExecutionStore": "spanloom.stores.sqlite.memory",
    "PostgresExecutionStore": "spanloom.stores.postgres.store",
    "SqliteExecutionStore": "spanloom.stores.sqlite.store",
    "open_store": "spanloom.engine.store.opening",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
