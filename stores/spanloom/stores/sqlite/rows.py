"""The operations of every node job on SQLite, with positional parameters: a dictionary per row costs twice as much."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from functools import cache
from typing import Any

from spanloom.engine.limits import MAX_CLAIM_BYTES
from spanloom.engine.store.requests import LEFT_OUT, NodeKey
from spanloom.stores.sql.rows import Row
from spanloom.stores.sql.statements import (
    ARRIVE,
    EXECUTION,
    EXECUTION_COLUMNS,
    HEADER,
    IS_LIVE,
    RESULT,
    RESULT_COLUMNS,
    RUN,
    RUN_COLUMNS,
    for_sqlite,
)
from spanloom.stores.sql.transaction import SqlTransaction
from spanloom.stores.transitions.rows import ExecutionRow, Graph, InputRow, ResultRow, RunRow

__all__ = ["SqliteRows"]

_KEY = "execution_id = ? AND node_id = ? AND item = ?"
_EXECUTION = f"SELECT {EXECUTION} FROM executions WHERE id = ?"
_RUN = f"SELECT {RUN} FROM node_runs WHERE {_KEY}"
_ARRIVE, _HEADER, _IS_LIVE = (for_sqlite(statement).text for statement in (ARRIVE, HEADER, IS_LIVE))
_DELETE_RUN = f"DELETE FROM node_runs WHERE {_KEY}"
_INPUT = f"SELECT {', '.join(InputRow._fields)} FROM node_results WHERE execution_id = ? AND node_id = ? AND item = 0"
_OF_NODES = "WHERE execution_id = ? AND node_id IN (SELECT value FROM json_each(?)) AND item = 0"
_INPUTS = f"SELECT {', '.join(InputRow._fields)} FROM node_results {_OF_NODES}"
_INPUTS_WITHOUT_DATA = _INPUTS.replace("data", f"'{LEFT_OUT}'", 1)
_DATA = InputRow._fields.index("data")
_ADD_RESULT = f"INSERT INTO node_results ({RESULT}) VALUES ({', '.join('?' * len(RESULT_COLUMNS))})"


_row = tuple.__new__  # as `_make` does, without its function in Python
_COLUMNS = len(EXECUTION_COLUMNS)
_BOTH = (
    f"SELECT {', '.join(f'e.{name}' for name in EXECUTION_COLUMNS)}, {', '.join(f'r.{name}' for name in RUN_COLUMNS)}, "
    "w.released_at IS NULL AND w.lease_until > ? FROM executions e "
    "LEFT JOIN node_runs r ON r.execution_id = e.id AND r.node_id = ? AND r.item = ? "
    "LEFT JOIN workers w ON w.id = r.worker_id WHERE e.id = ?"
)


class SqliteRows(SqlTransaction):
    """The rows of executions, open runs and results. Results are buffered until they are read or deleted."""

    def __init__(
        self, connection: sqlite3.Connection, graphs: MutableMapping[tuple[str, int], Graph], *, epoch: int
    ) -> None:
        super().__init__(graphs, epoch=epoch)
        self._execute = connection.execute
        self._executemany = connection.executemany
        self._results: list[ResultRow] = []
        # Rows of executions, and of runs by their execution: each until it is read, or its execution is written to.
        self._prefetched: dict[str, ExecutionRow] = {}
        self._prefetched_runs: dict[str, dict[NodeKey, RunRow]] = {}

    def prefetch(self, keys: Sequence[NodeKey]) -> None:
        """See Transaction.prefetch.

        One statement for an execution, its first run and the lease of the run's worker: while other threads run, each
        statement waits for its turn.
        """
        now = self.now
        for key in keys:
            if key.execution_id in self._prefetched:
                continue
            row = self._execute(_BOTH, (now, key.node_id, key.item, key.execution_id)).fetchone()
            if row is not None:
                self._prefetched[key.execution_id] = _row(ExecutionRow, row[:_COLUMNS])
                if row[_COLUMNS] is not None:
                    run = _row(RunRow, row[_COLUMNS:-1])
                    self._prefetched_runs[key.execution_id] = {key: run}
                    if run.worker_id is not None:
                        self._live[run.worker_id] = row[-1] == 1

    def executions(self, ids: Collection[str]) -> dict[str, ExecutionRow]:
        """See Transaction.executions."""
        found: dict[str, ExecutionRow] = {}
        for execution_id in ids:
            if (prefetched := self._prefetched.pop(execution_id, None)) is not None:
                found[execution_id] = prefetched
                continue
            row = self._execute(_EXECUTION, (execution_id,)).fetchone()
            if row is not None:
                found[execution_id] = self._execution(row)
        return found

    def runs(self, keys: Collection[NodeKey]) -> dict[NodeKey, RunRow]:
        """See Transaction.runs."""
        found: dict[NodeKey, RunRow] = {}
        for key in keys:
            prefetched = self._prefetched_runs.get(key.execution_id)
            if prefetched and (run := prefetched.pop(key, None)) is not None:
                found[key] = run
                continue
            row = self._execute(_RUN, key).fetchone()
            if row is not None:
                found[key] = self._run_row(row)
        return found

    def arrive(self, rows: Sequence[RunRow], arrivals: Mapping[str, int]) -> list[RunRow]:
        """See Transaction.arrive."""
        counted: list[RunRow] = []
        for row in sorted(rows) if len(rows) > 1 else rows:
            self._prefetched_runs.pop(row.execution_id, None)
            counted += map(self._run_row, self._execute(_ARRIVE, (*row, arrivals[row.node_id])).fetchall())
        return counted

    def insert_runs(self, rows: Sequence[RunRow]) -> None:
        """See Transaction.insert_runs."""
        for row in rows:
            self._prefetched_runs.pop(row.execution_id, None)
            # Without the columns that are null: sqlite3 takes longer to bind a None than any other value.
            places = tuple([place for place, value in enumerate(row) if value is not None])
            self._execute(_insert_of_run(places), [row[place] for place in places])

    def delete_runs(self, keys: Sequence[NodeKey]) -> None:
        """See Transaction.delete_runs."""
        for key in keys:
            self._prefetched_runs.pop(key.execution_id, None)
        if len(keys) == 1:
            self._execute(_DELETE_RUN, keys[0])
        elif keys:
            self._executemany(_DELETE_RUN, keys)

    def inputs(self, execution_id: str, node_ids: Collection[str]) -> list[InputRow]:
        """See Transaction.inputs."""
        SqliteRows.flush(self)
        if len(node_ids) == 1:
            rows = self._execute(_INPUT, (execution_id, *node_ids))
        else:
            rows = self._execute(_INPUTS, (execution_id, json.dumps(list(node_ids))))
        found: list[InputRow] = []
        size = 0
        for row in rows:  # one by one: SQLite reads a text to know its length
            found.append(_row(InputRow, row))
            size += len(row[_DATA] or "")
            if size > MAX_CLAIM_BYTES:
                rows.close()
                found = [
                    InputRow._make(row)
                    for row in self._execute(_INPUTS_WITHOUT_DATA, (execution_id, json.dumps(list(node_ids))))
                ]
                break
        return sorted(found) if len(found) > 1 else found

    def insert_results(self, rows: Sequence[ResultRow]) -> None:
        """See Transaction.insert_results."""
        self._results.extend(rows)

    def flush(self) -> None:
        """See Transaction.flush."""
        if self._results:
            results, self._results = self._results, []
            self._executemany(_ADD_RESULT, results)

    def _write_runs(self, changes: Sequence[tuple[RunRow, RunRow]]) -> None:
        for old, new in changes:
            places = tuple([place for place, value in enumerate(new) if value != old[place]])
            if places:
                self._prefetched_runs.pop(old.execution_id, None)
                values = [new[place] for place in places]
                self._execute(_update_of_run(places), [*values, *old[:3]])

    def update_executions(
        self, rows: Sequence[ExecutionRow], *, revise: bool = False, **columns: Any
    ) -> list[ExecutionRow]:
        """See Transaction.update_executions."""
        statement = _update_of_execution(tuple(columns), revise)
        for row in rows:
            self._prefetched.pop(row.id, None)
            self._execute(statement, (*columns.values(), row.id))
        known = {name: value for name, value in columns.items() if name in ExecutionRow._fields}
        return [row._replace(revision=row.revision + revise, **known) for row in rows]

    def _header_row(self, execution_id: str) -> Row | None:
        found: Row | None = self._execute(_HEADER, (execution_id,)).fetchone()
        return found

    def _holds_lease(self, worker_id: str) -> bool:
        return self._execute(_IS_LIVE, (worker_id, self.now)).fetchone() is not None

    # ---- reading rows ----

    def _execution(self, row: Sequence[Any]) -> ExecutionRow:
        return _row(ExecutionRow, row)

    def _run_row(self, row: Sequence[Any]) -> RunRow:
        return _row(RunRow, row)

    def _result(self, row: Sequence[Any]) -> ResultRow:
        return _row(ResultRow, row)


@cache
def _update_of_execution(columns: tuple[str, ...], revise: bool) -> str:
    assignments = [*(f"{name} = ?" for name in columns), *(["revision = revision + 1"] if revise else [])]
    return f"UPDATE executions SET {', '.join(assignments)} WHERE id = ?"


@cache
def _insert_of_run(places: tuple[int, ...]) -> str:
    names = ", ".join(RUN_COLUMNS[place] for place in places)
    return f"INSERT INTO node_runs ({names}) VALUES ({', '.join('?' * len(places))})"


@cache
def _update_of_run(places: tuple[int, ...]) -> str:
    return f"UPDATE node_runs SET {', '.join(f'{RUN_COLUMNS[place]} = ?' for place in places)} WHERE {_KEY}"
