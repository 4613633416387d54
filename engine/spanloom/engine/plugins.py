"""What installed packages add to the engine: the entry points of a group, by name."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

__all__ = ["STORES", "WORKERS", "plugins"]

STORES = "spanloom.stores"  #: a store class for each URL scheme
WORKERS = "spanloom.workers"  #: a function for each way of running workers; `threads` is the engine's own


@cache  # to look through all that is installed takes milliseconds
def plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by their names, without importing them."""
    return {point.name: point for point in entry_points(group=group)}
