"""The writes that a transaction on SQLite has yet to make: few statements, each of many rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

from spanloom.engine.store.requests import NodeKey, SpanLine
from spanloom.stores.sql.statements import RESULT_COLUMNS, RUN_COLUMNS
from spanloom.stores.transitions.rows import Event, ResultRow, RunRow

__all__ = ["LAST_EVENT", "THE_KEY", "Key", "PendingWrites", "keys_given", "places", "portions"]

Row = TypeVar("Row")
Key = tuple[str, str, int]  #: as NodeKey; the first columns of a run's row are one, too, and are quicker to make

_SIZES = (32, 16, 8, 4, 2, 1)  # few, so that there are few statements to prepare

_COLUMNS = {
    "node_runs": RUN_COLUMNS,
    "node_results": RESULT_COLUMNS,
    "events": (*Event._fields, "at", "seq"),
    "logs": (
        "execution_id", "node_id", "item", "attempt", "level", "message", "fields", "at", "trace_id", "span_id", "id",
    ),
    "spans": ("execution_id", *SpanLine._fields),
}  # fmt: skip
#: The number of the last event of an execution `x`.
LAST_EVENT = "SELECT coalesce(max(seq), 0) FROM events WHERE execution_id = x"
#: The condition of one run, whose key is the first three parameters.
THE_KEY = "execution_id = ?1 AND node_id = ?2 AND item = ?3"
_KEY = "execution_id = ? AND node_id = ? AND item = ?"


class PendingWrites:
    """Writes that `write` makes.

    SQLite and its driver take as long to begin a statement as to write a row, and while other threads run, each step
    of a statement waits for its turn. So the rows of all records of a transaction are written together. A row that is
    pending is written before it is read or written to again: its key is in `runs` or `executions`.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self.runs: set[Key] = set()  #: the open runs that are to be inserted, changed or deleted
        self.executions: set[str] = set()  #: the executions that are to be changed
        self.results: list[ResultRow] = []
        self.events: list[tuple[Any, ...]] = []  #: without their number
        self.logs: list[tuple[Any, ...]] = []  #: without their number
        self.spans: list[tuple[Any, ...]] = []
        self._inserted: list[RunRow] = []
        self._deleted: list[NodeKey] = []
        self._changed: dict[tuple[tuple[int, ...], tuple[Any, ...]], list[NodeKey]] = {}  # by columns and values
        self._changed_executions: dict[tuple[str, tuple[Any, ...]], list[str]] = {}
        self.last_events: dict[str, int] = {}  #: by execution: the number of its last event, once it is known

    def insert_executions(self, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> list[str]:
        """Insert executions now, and return the ids of those that did not exist."""
        kept, values_of = _without_nulls(rows)
        names = tuple([columns[place] for place in kept])
        inserted: list[str] = []
        for some in portions(rows):
            text = _insertion("INSERT", "executions", names, len(some)) + " ON CONFLICT (id) DO NOTHING RETURNING id"
            inserted += [row[0] for row in self._execute(text, _joined(map(values_of, some))).fetchall()]
        self.last_events |= dict.fromkeys(inserted, 0)
        return inserted

    def insert_run(self, row: RunRow) -> None:
        """Insert an open run."""
        self._touch(row[:3])
        self._inserted.append(row)

    def delete_run(self, key: NodeKey) -> None:
        """Delete an open run."""
        self._touch(key)
        self._deleted.append(key)

    def change_run(self, key: NodeKey, columns: tuple[int, ...], values: Iterable[Any]) -> None:
        """Set columns of an open run, which are given by their places in its row."""
        self._touch(key)
        self._changed.setdefault((columns, tuple(values)), []).append(key)

    def change_execution(self, execution_id: str, assignments: str, values: tuple[Any, ...]) -> None:
        """Set columns of an execution."""
        if execution_id in self.executions:
            self.write()
        self.executions.add(execution_id)
        self._changed_executions.setdefault((assignments, values), []).append(execution_id)

    def _touch(self, key: Key) -> None:
        if key in self.runs:
            self.write()
        self.runs.add(key)

    def write(self) -> None:
        """Write all of it."""
        if self.runs:
            self._write_runs()
        for (assignments, values), ids in self._changed_executions.items():
            for some in portions(ids):
                self._execute(_change_of_executions(assignments, len(some)), (*values, *some))
        self._changed_executions.clear()
        self.executions.clear()
        if self.results:
            self._insert("INSERT OR FAIL", "node_results", self.results)
        if self.events:
            self._insert("INSERT OR FAIL", "events", self._numbered(LAST_EVENT, self.events, self.last_events))
        if self.logs:
            self._insert("INSERT OR FAIL", "logs", self._numbered(_LAST_LOG, self.logs, {}))
        if self.spans:
            self._insert("INSERT OR REPLACE", "spans", self.spans)

    def _write_runs(self) -> None:
        for some in portions(self._deleted):
            self._execute(_deletion(len(some)), _joined(some))
        for (columns, values), keys in self._changed.items():
            for some in portions(keys):
                self._execute(_change_of_runs(columns, len(some)), [*_joined(some), *values])
        if self._inserted:
            self._insert("INSERT OR FAIL", "node_runs", self._inserted)
        self._deleted.clear()
        self._changed.clear()
        self.runs.clear()

    def _insert(self, how: str, table: str, rows: list[Any]) -> None:
        """Insert rows and forget them.

        "OR FAIL" as SQLite need not be able to undo the statement: an error undoes the transaction, or its savepoint.
        """
        if len(rows) == 1:
            kept = tuple([place for place, value in enumerate(rows[0]) if value is not None])
            self._execute(_insertion_at(how, table, kept, 1), [value for value in rows[0] if value is not None])
        else:
            kept, values_of = _without_nulls(rows)
            for some in portions(rows):
                self._execute(_insertion_at(how, table, kept, len(some)), _joined(map(values_of, some)))
        rows.clear()

    def _numbered(self, last: str, rows: list[tuple[Any, ...]], numbers: dict[str, int]) -> list[tuple[Any, ...]]:
        """Number rows for each execution, and forget them.

        There is one writer at a time, so the highest number plus one is free, and readers see the numbers in commit
        order.
        """
        unknown = list({row[0]: None for row in rows if row[0] not in numbers})
        for some in portions(unknown):
            numbers.update(self._execute(_of_each(last, len(some)), some).fetchall())
        numbered: list[tuple[Any, ...]] = []
        for row in rows:
            numbers[row[0]] = number = numbers[row[0]] + 1
            numbered.append((*row, number))
        rows.clear()
        return numbered


def _without_nulls(
    rows: Sequence[tuple[Any, ...]],
) -> tuple[tuple[int, ...], Callable[[tuple[Any, ...]], tuple[Any, ...]]]:
    """Return the places that are not null in all rows, and a function that returns the values there.

    sqlite3 takes longer to bind a None than any other value.
    """
    number = len(rows)
    kept = tuple(
        [
            place
            for place, value in enumerate(rows[0])
            if value is not None or (number > 1 and [row[place] for row in rows].count(None) < number)
        ]
    )
    return kept, itemgetter(*kept)


def portions(rows: Sequence[Row]) -> Sequence[Sequence[Row]]:
    """Cut rows into portions of few sizes."""
    begin, left = 0, len(rows)
    if left < 2:
        return (rows,) if left else ()
    found: list[Sequence[Row]] = []
    for size in _SIZES:
        while left >= size:
            found.append(rows[begin : begin + size])
            begin, left = begin + size, left - size
    return found


def keys_given(number: int) -> str:
    """Return the beginning of a statement that reads `given (x, node, i)`, the keys that it is given."""
    return f"WITH given (x, node, i) AS (VALUES {places('(?, ?, ?)', number)}) "


def places(of_one: str, number: int) -> str:
    """Return the text of the parameters of many rows."""
    return ", ".join([of_one] * number)


def _joined(rows: Iterable[Iterable[Any]]) -> list[Any]:
    return list(chain.from_iterable(rows))


_LAST_LOG = "SELECT coalesce(max(id), 0) FROM logs WHERE execution_id = x"


@cache
def _of_each(query: str, number: int) -> str:
    return f"WITH given (x) AS (VALUES {places('(?)', number)}) SELECT x, ({query}) FROM given"


@cache
def _insertion_at(how: str, table: str, kept: Sequence[int], number: int) -> str:
    return _insertion(how, table, tuple([_COLUMNS[table][place] for place in kept]), number)


@cache
def _insertion(how: str, table: str, names: tuple[str, ...], number: int) -> str:
    one = f"({places('?', len(names))})"
    return f"{how} INTO {table} ({', '.join(names)}) VALUES {places(one, number)}"


@cache
def _deletion(number: int) -> str:
    return f"DELETE FROM node_runs WHERE {' OR '.join([_KEY] * number)}"


@cache
def _change_of_runs(columns: Sequence[int], number: int) -> str:
    if number == 1:
        assignments = ", ".join(f"{RUN_COLUMNS[place]} = ?{at}" for at, place in enumerate(columns, 4))
        return f"UPDATE node_runs SET {assignments} WHERE {THE_KEY}"
    assignments = ", ".join(f"{RUN_COLUMNS[place]} = ?" for place in columns)
    return (
        f"{keys_given(number)} UPDATE node_runs SET {assignments} FROM given "
        "WHERE execution_id = x AND node_id = node AND item = i"
    )


@cache
def _change_of_executions(assignments: str, number: int) -> str:
    return f"UPDATE executions SET {assignments} WHERE id IN ({places('?', number)})"
