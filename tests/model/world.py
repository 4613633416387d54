"""What the machine drives: an engine over an empty store of one kind, on a clock that stands still between steps."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from spanloom.engine import NodeRegistry, WorkflowEngine
from spanloom.engine.queue.redis_epoch import Epoch
from spanloom.engine.settings import Settings
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeJob
from spanloom.stores import open_store
from spanloom.stores.schema import node_runs
from spanloom.testing.clock import ManualClock
from support.forms import MixedForms
from support.stores import truncate

_numbers = itertools.count(1)


class _Clocked:
    """What is put before a store's own methods: the clock's time, where the caller gives none."""

    clock: Callable[[], datetime]


def _on_the_clock(name: str) -> Callable[..., Any]:
    def method(self: _Clocked, *args: Any, **options: Any) -> Any:
        options.setdefault("now", self.clock())
        return getattr(super(_Clocked, self), name)(*args, **options)

    return method


for _name, _method in inspect.getmembers(ExecutionStore, inspect.isfunction):
    if "now" in inspect.signature(_method).parameters:
        setattr(_Clocked, _name, _on_the_clock(_name))


class _PlayedEpoch(Epoch):
    """The epoch as the machine says it is, in place of one that is kept in a Redis."""

    number: Any = 0  # type: ignore[assignment]

    def check(self) -> int:
        return int(self.number)

    recent = check

    def release(self) -> None:
        pass


class PlayedEngine(WorkflowEngine):
    """An engine whose Redis is a list: what it would push gathers in `pushed`."""

    def __init__(self, store: ExecutionStore) -> None:
        registry = NodeRegistry()
        registry.register("work", lambda ctx: None)
        super().__init__(registry, store, "redis://nowhere", settings=Settings())
        self.pushed: list[NodeJob] = []
        self.epoch.__class__ = _PlayedEpoch  # the engine's parts have the same one

    def push(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = (), changed: Iterable[str] = ()) -> None:
        """Keep the jobs."""
        self.pushed.extend(jobs)


class World:
    """A store of one kind, which is emptied for each run of the machine."""

    def __init__(self, url: str, **options: Any) -> None:
        kind = type(open_store(url))
        clocked: Any = type(f"Clocked{kind.__name__}", (_Clocked, kind), {})
        self._store = clocked(url, **options) if options else clocked.from_url(url)
        self._store.open()

    def fresh(self, clock: ManualClock) -> tuple[Any, PlayedEngine]:
        """Return an empty store on this clock, and an engine over it."""
        store = truncate(self._store)
        store.clock = clock
        return store, PlayedEngine(store)

    def close(self) -> None:
        """Give up the store's connections."""
        self._store.close()


class MixedWorld:
    """One Postgres database under two stores, one of each form of the hot transitions, whose calls take turns."""

    def __init__(self, url: str) -> None:
        self._worlds = World(url), World(url, accelerated=False)

    def fresh(self, clock: ManualClock) -> tuple[Any, PlayedEngine]:
        """Return the empty store on this clock, and an engine over it."""
        store: Any = MixedForms(*(world.fresh(clock)[0] for world in self._worlds))
        return store, PlayedEngine(store)

    def close(self) -> None:
        """Give up the connections of both stores."""
        for world in self._worlds:
            world.close()


_COUNTERS = sa.select(
    *(
        node_runs.c[name]
        for name in ("execution_id", "node_id", "item", "status", "pending", "taken", "fence", "due_at")
    )
)


def open_rows(store: Any) -> dict[str, dict[tuple[str, int], sa.Row[Any]]]:
    """Read the open node runs of a SQL store as its tables hold them, with the counters that no read shows."""
    found: dict[str, dict[tuple[str, int], sa.Row[Any]]] = {}
    with store._reading() as connection:
        for row in connection.execute(_COUNTERS):
            found.setdefault(row.execution_id, {})[row.node_id, row.item] = row
    return found


def unique_name() -> str:
    """Return a workflow id that no run of any machine has used: stores remember what a version's edges were."""
    return f"w{next(_numbers)}"
