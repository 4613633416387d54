"""The operations of every node job on SQLite, with positional parameters: a dictionary per row costs twice as much."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, MutableMapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from spanloom.engine.store.requests import NodeKey
from spanloom.stores.schema import from_micros, to_micros
from spanloom.stores.sql.statements import (
    EXECUTION,
    EXECUTION_COLUMNS,
    RESULT,
    RESULT_COLUMNS,
    RUN,
    RUN_COLUMNS,
)
from spanloom.stores.sql.transaction import SqlTransaction
from spanloom.stores.transitions.rows import ExecutionRow, Graph, ResultRow, RunRow

__all__ = ["SqliteRows"]

_EXECUTION_TIMES = tuple(EXECUTION_COLUMNS.index(name) for name in ("created_at", "ended_at", "acknowledged_at"))
_RUN_TIMES = tuple(RUN_COLUMNS.index(name) for name in ("due_at", "pushed_at", "started_at"))
_RESULT_TIMES = tuple(RESULT_COLUMNS.index(name) for name in ("started_at", "ended_at"))

_KEY = "execution_id = ? AND node_id = ? AND item = ?"
_EXECUTION = f"SELECT {EXECUTION} FROM executions WHERE id = ?"
_RUN = f"SELECT {RUN} FROM node_runs WHERE {_KEY}"
_DELETE_RUN = f"DELETE FROM node_runs WHERE {_KEY}"
_ADD_RUN = f"INSERT INTO node_runs ({RUN}) VALUES ({', '.join('?' * len(RUN_COLUMNS))})"
_ADD_RESULT = f"INSERT INTO node_results ({RESULT}) VALUES ({', '.join('?' * len(RESULT_COLUMNS))})"


class SqliteRows(SqlTransaction):
    """The rows of executions, open runs and results. Results are buffered until they are read or deleted."""

    def __init__(
        self, connection: sqlite3.Connection, graphs: MutableMapping[tuple[str, int], Graph], *, epoch: int
    ) -> None:
        super().__init__(graphs, epoch=epoch)
        self._execute = connection.execute
        self._executemany = connection.executemany
        self._results: list[list[Any]] = []

    def executions(self, ids: Collection[str]) -> dict[str, ExecutionRow]:
        """See Transaction.executions."""
        found: dict[str, ExecutionRow] = {}
        for execution_id in ids:
            row = self._execute(_EXECUTION, (execution_id,)).fetchone()
            if row is not None:
                found[execution_id] = self._execution(row)
        return found

    def runs(self, keys: Collection[NodeKey]) -> dict[NodeKey, RunRow]:
        """See Transaction.runs."""
        found: dict[NodeKey, RunRow] = {}
        for key in keys:
            row = self._execute(_RUN, key).fetchone()
            if row is not None:
                found[key] = self._run_row(row)
        return found

    def insert_runs(self, rows: Sequence[RunRow]) -> None:
        """See Transaction.insert_runs."""
        if len(rows) == 1:
            self._execute(_ADD_RUN, _stored(rows[0], _RUN_TIMES))
        elif rows:
            self._executemany(_ADD_RUN, [_stored(row, _RUN_TIMES) for row in rows])

    def delete_runs(self, keys: Sequence[NodeKey]) -> None:
        """See Transaction.delete_runs."""
        if len(keys) == 1:
            self._execute(_DELETE_RUN, keys[0])
        elif keys:
            self._executemany(_DELETE_RUN, keys)

    def insert_results(self, rows: Sequence[ResultRow]) -> None:
        """See Transaction.insert_results."""
        self._results.extend(_stored(row, _RESULT_TIMES) for row in rows)

    def flush(self) -> None:
        """See Transaction.flush."""
        if self._results:
            results, self._results = self._results, []
            self._executemany(_ADD_RESULT, results)

    def _write_runs(self, changes: Sequence[tuple[RunRow, RunRow]]) -> None:
        for old, new in changes:
            places = tuple([place for place, value in enumerate(new) if value != old[place]])
            if places:
                values = [new[place] for place in places]
                self._execute(_update_of_run(places), [*map(_value, values), *old[:3]])

    def update_executions(
        self, rows: Sequence[ExecutionRow], *, revise: bool = False, **columns: Any
    ) -> list[ExecutionRow]:
        """See Transaction.update_executions."""
        statement = _update_of_execution(tuple(columns), revise)
        values = [_value(value) for value in columns.values()]
        for row in rows:
            self._execute(statement, (*values, row.id))
        known = {name: value for name, value in columns.items() if name in ExecutionRow._fields}
        return [row._replace(revision=row.revision + revise, **known) for row in rows]

    # ---- reading rows ----

    def _execution(self, row: Sequence[Any]) -> ExecutionRow:
        return ExecutionRow._make(_read(row, _EXECUTION_TIMES))

    def _run_row(self, row: Sequence[Any]) -> RunRow:
        return RunRow._make(_read(row, _RUN_TIMES))

    def _result(self, row: Sequence[Any]) -> ResultRow:
        values = _read(row, _RESULT_TIMES)
        values[8] = bool(values[8])
        return ResultRow._make(values)


@cache
def _update_of_execution(columns: tuple[str, ...], revise: bool) -> str:
    assignments = [*(f"{name} = ?" for name in columns), *(["revision = revision + 1"] if revise else [])]
    return f"UPDATE executions SET {', '.join(assignments)} WHERE id = ?"


@cache
def _update_of_run(places: tuple[int, ...]) -> str:
    return f"UPDATE node_runs SET {', '.join(f'{RUN_COLUMNS[place]} = ?' for place in places)} WHERE {_KEY}"


def _stored(row: Iterable[Any], times: Sequence[int]) -> list[Any]:
    """Return a row in the form that SQLite stores: times in microseconds."""
    values = list(row)
    for place in times:
        if values[place] is not None:
            values[place] = to_micros(values[place])
    return values


def _read(row: Iterable[Any], times: Sequence[int]) -> list[Any]:
    values = list(row)
    for place in times:
        if values[place] is not None:
            values[place] = from_micros(values[place])
    return values


def _value(value: Any) -> Any:
    return to_micros(value) if isinstance(value, datetime) else value
