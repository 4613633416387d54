"""Two stores of different kinds behind one port: each call is made to both, what they answer and hold is compared."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel

from model.world import MixedWorld, PlayedEngine, World
from spanloom.engine.errors import SpanloomError
from spanloom.engine.store.models import Event, LogRecord
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeJob, SweepResult
from spanloom.stores.schema import events, executions, metadata, node_results, node_runs
from spanloom.testing.clock import ManualClock

MEMORY_AND_POSTGRES = "memory and postgres"
FUNCTIONS_AND_PYTHON = "functions and python"  #: the hot transitions of Postgres in their two forms
MEMORY_AND_MIXED = "memory and mixed"  #: both forms by turns on one database
PAIRS = (MEMORY_AND_POSTGRES, FUNCTIONS_AND_PYTHON, MEMORY_AND_MIXED)

HOT = (executions, node_runs, node_results, events)
_PORT = {name for name, _ in inspect.getmembers(ExecutionStore, inspect.isfunction) if not name.startswith("_")}
_APART = {"open", "close", "migrate", "transaction", "health", "get_events"}  # for each by itself; cursors differ

#: Columns that number rows in an order of the store's own, or name the store.
_NUMBERS = {("events", "seq"), ("events", "xid"), ("logs", "id"), ("store_state", "store_id")}
_JSON = {
    ("events", "data"),
    ("executions", "error"),
    ("node_results", "taken"),
    ("node_items", "data"),
}  # equal if their values are
_ORDER = {"events": ("execution_id", "xid", "seq"), "logs": ("execution_id", "id")}  # others: by all of their columns


class Disagreement(AssertionError):
    """Raised when two stores that were given the same calls differ."""


@ExecutionStore.register
class Twins:
    """Two stores as one: calls go to both, and return what the first returns, or raise what it raises."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    def __getattr__(self, name: str) -> Any:
        mine = getattr(self.first, name)
        if name not in _PORT or name in _APART:
            return mine
        return _both(name, mine, getattr(self.second, name))

    @property
    def clock(self) -> Any:
        """The clock of both."""
        return self.first.clock

    def check(self, tables: Sequence[sa.Table] = metadata.sorted_tables) -> None:
        """Raise Disagreement if a row of any of these tables is not the same in both."""
        differences = [line for table in tables for line in self._differences(table)]
        if differences:
            raise Disagreement("\n".join(differences))

    def _differences(self, table: sa.Table) -> Iterator[str]:
        mine, others = rows_of(self.first, table), rows_of(self.second, table)
        if mine != others:
            names = [column.name for column in table.columns]
            for one, other in _unequal(mine, others):
                fields = names if one is None or other is None else _unlike(names, one, other)
                yield f"{table.name}: {_shown(names, one, fields)}\n   and {_shown(names, other, fields)}"


class TwinWorld:
    """Two worlds, of which each run of a machine is given both stores as one."""

    def __init__(self, first: World, second: World | MixedWorld) -> None:
        self._worlds = first, second

    def fresh(self, clock: ManualClock) -> tuple[Any, PlayedEngine]:
        """Return two empty stores on this clock, and an engine over them."""
        twins: Any = Twins(*(world.fresh(clock)[0] for world in self._worlds))
        return twins, PlayedEngine(twins)

    def close(self) -> None:
        """Give up the connections of both."""
        for world in self._worlds:
            world.close()


def _both(name: str, first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        answer, error = _answered(first, args, options)
        other, other_error = _answered(second, args, options)
        mine, others = plain(error or answer), plain(other_error or other)
        if mine != others:
            raise Disagreement(f"{name}{args} {options}\n       {mine}\n   and {others}")
        if error is not None:
            raise error
        return answer

    return call


def _answered(
    method: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Any, SpanloomError | None]:
    try:
        return method(*args, **options), None
    except SpanloomError as error:
        return None, error


def plain(value: Any) -> Any:
    """Return an answer as plain values, without what each store numbers for itself; jobs and ends are sets."""
    if isinstance(value, SweepResult):
        # Of one due_at they come as they are found. When a pass is due next is a hint that not each store has.
        value = dataclasses.replace(value, ended=sorted(value.ended), due_in_seconds=0.0)
    if isinstance(value, BaseModel):
        left_out = {"cursor"} if isinstance(value, (Event, LogRecord)) else None
        return type(value).__name__, plain(value.model_dump(exclude=left_out))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [one.name for one in dataclasses.fields(value) if one.name != "store_id"]
        return type(value).__name__, {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, BaseException):
        return type(value).__name__, str(value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(one, NodeJob) for one in value):
            value = sorted(value, key=lambda job: (job.execution_id, job.node_id, job.item, job.push))
        return [plain(one) for one in value]
    return value


def rows_of(store: Any, table: sa.Table) -> list[tuple[Any, ...]]:
    """Read all rows of a table in the order that counts, without what each store numbers for itself."""
    by = _ORDER.get(table.name, [column.name for column in table.primary_key.columns])
    with store._reading() as connection:
        found = connection.execute(sa.select(table).order_by(*(table.c[name] for name in by))).all()
    return [_normal(table, one._asdict()) for one in found]


def _normal(table: sa.Table, row: dict[str, Any]) -> tuple[Any, ...]:
    for name in row:
        if (table.name, name) in _NUMBERS:
            row[name] = None
        elif (table.name, name) in _JSON and row[name] is not None:
            row[name] = json.loads(row[name])
    return tuple(row.values())


def _unequal(mine: list[Any], others: list[Any]) -> Iterator[tuple[Any, Any]]:
    for place in range(max(len(mine), len(others))):
        one = mine[place] if place < len(mine) else None
        other = others[place] if place < len(others) else None
        if one != other:
            yield one, other


def _unlike(names: list[str], one: tuple[Any, ...], other: tuple[Any, ...]) -> list[str]:
    keys = ("execution_id", "node_id", "item", "kind")
    return [name for name, a, b in zip(names, one, other, strict=True) if a != b or name in keys]


def _shown(names: list[str], row: tuple[Any, ...] | None, fields: list[str]) -> Any:
    return row and {name: value for name, value in zip(names, row, strict=True) if name in fields}
