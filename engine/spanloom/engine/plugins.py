"""Plug-ins of the engine: the entry points of installed packages by group and name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from spanloom.engine.errors import ConfigurationError

__all__ = ["STORES", "WORKERS", "load_threads", "plugins"]

STORES = "spanloom.stores"  #: a store class for each URL scheme
WORKERS = "spanloom.workers"  #: a function for each way of running workers; `threads` is the engine's own


@cache  # reading the metadata of all installed packages takes milliseconds
def plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by their names, without importing them."""
    return {point.name: point for point in entry_points(group=group)}


def load_threads() -> Callable[..., AbstractContextManager[Any]]:
    """Return the function that runs workers in threads. Raises ConfigurationError.

    It is found by an entry point, like stores: the engine does not import the worker.
    """
    if "threads" not in (installed := plugins(WORKERS)):
        raise ConfigurationError("no installed package runs workers in threads; reinstall spanloom")
    start_workers: Callable[..., AbstractContextManager[Any]] = installed["threads"].load()
    return start_workers
