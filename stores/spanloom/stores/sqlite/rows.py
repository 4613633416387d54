"""The operations of every node job on SQLite: reads and writes of many rows in one statement."""

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
    RUN,
    RUN_COLUMNS,
    for_sqlite,
)
from spanloom.stores.sql.transaction import SqlTransaction
from spanloom.stores.sqlite.pending import LAST_EVENT, THE_KEY, Key, PendingWrites, keys_given, places, portions
from spanloom.stores.transitions.rows import ExecutionRow, Graph, InputRow, NewExecution, ResultRow, RunRow

__all__ = ["SqliteRows"]

_ARRIVE, _IS_LIVE = (for_sqlite(statement).text for statement in (ARRIVE, IS_LIVE))
_INPUT = f"SELECT {', '.join(InputRow._fields)} FROM node_results WHERE execution_id = ? AND node_id = ? AND item = 0"
_OF_NODES = "WHERE execution_id = ? AND node_id IN (SELECT value FROM json_each(?)) AND item = 0"
_INPUTS = f"SELECT {', '.join(InputRow._fields)} FROM node_results {_OF_NODES}"
_INPUTS_WITHOUT_DATA = _INPUTS.replace("data", f"'{LEFT_OUT}'", 1)
_DATA = InputRow._fields.index("data")

_COLUMNS = len(EXECUTION_COLUMNS)

_row = tuple.__new__  # as `_make` does, without its function in Python


class SqliteRows(SqlTransaction):
    """The rows of executions, open runs and results. Writes are pending until they are read, or `flush`."""

    def __init__(
        self, connection: sqlite3.Connection, graphs: MutableMapping[tuple[str, int], Graph], *, epoch: int
    ) -> None:
        super().__init__(graphs, epoch=epoch)
        self._execute = connection.execute
        self._pending = PendingWrites(connection)
        self._inputs: dict[tuple[str, tuple[str, ...]], list[InputRow]] = {}  # as read, for claims with one parent
        self._known: dict[str, ExecutionRow] = {}  # those prefetched, until they are written to
        self._prefetched: dict[Key, RunRow | None] = {}  # each until it is read, or written to

    def prefetch(self, keys: Sequence[NodeKey]) -> None:
        """See Transaction.prefetch.

        One statement reads executions, the numbers of their last events, their first runs, and the leases of the runs'
        workers. A second one reads the other runs.
        """
        if self._pending.runs or self._pending.executions:
            self._pending.write()
        first: dict[str, NodeKey] = {}
        others: list[NodeKey] = []
        for key in keys:
            if key.execution_id in self._known or key.execution_id in first:
                others.append(key)
            else:
                first[key.execution_id] = key
        runs = self._read_runs(others) if others else {}
        for some in portions(list(first.values())):
            given = [value for key in some for value in key]
            for row in self._execute(_together(len(some)), (*given, self.now)).fetchall():
                execution = self._known[row[0]] = _row(ExecutionRow, row[:_COLUMNS])
                self._pending.last_events.setdefault(execution.id, row[_COLUMNS])
                if row[_COLUMNS + 1] is not None:
                    run = _row(RunRow, row[_COLUMNS + 1 : -1])
                    runs[run.key] = run
                    if run.worker_id is not None:
                        self._live[run.worker_id] = row[-1] == 1
        for key in keys:
            self._prefetched[key] = runs.get(key)

    def executions(self, ids: Collection[str]) -> dict[str, ExecutionRow]:
        """See Transaction.executions."""
        if not self._pending.executions.isdisjoint(ids):
            self._pending.write()
        found = {execution_id: self._known[execution_id] for execution_id in ids if execution_id in self._known}
        others = [execution_id for execution_id in ids if execution_id not in found] if len(found) < len(ids) else ()
        for some in portions(others):
            for row in self._execute(_executions(len(some)), some).fetchall():
                found[row[0]] = _row(ExecutionRow, row)
        return found

    def insert_executions(self, new: Sequence[NewExecution]) -> set[str]:
        """See Transaction.insert_executions."""
        if not new:
            return set()
        rows = [self._columns_of(one) for one in new]
        inserted = set(self._pending.insert_executions(tuple(rows[0]), [tuple(row.values()) for row in rows]))
        first = {one.request.execution_id: one.request for one in reversed(new)}
        self._insert_metadata(first[execution_id] for execution_id in inserted)
        return inserted

    def runs(self, keys: Collection[NodeKey]) -> dict[NodeKey, RunRow]:
        """See Transaction.runs."""
        found: dict[NodeKey, RunRow] = {}
        others: list[NodeKey] = []
        for key in keys:
            if key not in self._prefetched:
                others.append(key)
            elif (run := self._prefetched.pop(key)) is not None:
                found[key] = run
        return {**found, **self._read_runs(others)} if others else found

    def _read_runs(self, keys: Collection[NodeKey]) -> dict[NodeKey, RunRow]:
        if not self._pending.runs.isdisjoint(keys):
            self._pending.write()
        found: dict[NodeKey, RunRow] = {}
        for some in portions(list(dict.fromkeys(keys))):
            given = [value for key in some for value in key]
            for row in self._execute(_runs(len(some)), given).fetchall():
                found[NodeKey(row[0], row[1], row[2])] = _row(RunRow, row)
        return found

    def arrive(self, rows: Sequence[RunRow], arrivals: Mapping[str, int]) -> list[RunRow]:
        """See Transaction.arrive."""
        counted: list[RunRow] = []
        for row in sorted(rows) if len(rows) > 1 else rows:
            key = row.key
            self._prefetched.pop(key, None)
            if key in self._pending.runs:
                self._pending.write()
            counted += map(self._run_row, self._execute(_ARRIVE, (*row, arrivals[row.node_id])).fetchall())
        return counted

    def insert_runs(self, rows: Sequence[RunRow]) -> None:
        """See Transaction.insert_runs."""
        for row in rows:
            self._prefetched.pop(row[:3], None)
            self._pending.insert_run(row)

    def delete_runs(self, keys: Sequence[NodeKey]) -> None:
        """See Transaction.delete_runs."""
        for key in keys:
            self._prefetched.pop(key, None)
            self._pending.delete_run(key)

    def inputs(self, execution_id: str, node_ids: Collection[str]) -> list[InputRow]:
        """See Transaction.inputs."""
        if (known := self._inputs.get((execution_id, tuple(node_ids)))) is not None:
            return known
        if self._pending.results:
            self._pending.write()
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
        self._inputs[execution_id, tuple(node_ids)] = sorted(found)
        return self._inputs[execution_id, tuple(node_ids)]

    def insert_results(self, rows: Sequence[ResultRow]) -> None:
        """See Transaction.insert_results."""
        self._inputs.clear()
        self._pending.results += rows

    def flush(self) -> None:
        """See Transaction.flush."""
        self._pending.write()

    def _write_runs(self, changes: Sequence[tuple[RunRow, RunRow]]) -> None:
        for old, new in changes:
            changed = tuple([place for place, value in enumerate(new) if value != old[place]])
            if changed:
                self._prefetched.pop(old.key, None)
                self._pending.change_run(old.key, changed, [new[place] for place in changed])

    def update_executions(
        self, rows: Sequence[ExecutionRow], *, revise: bool = False, **columns: Any
    ) -> list[ExecutionRow]:
        """See Transaction.update_executions."""
        text, values = _assignments(tuple(columns), revise), tuple(columns.values())
        for row in rows:
            self._known.pop(row.id, None)
            self._pending.change_execution(row.id, text, values)
        known = {name: value for name, value in columns.items() if name in ExecutionRow._fields}
        return [row._replace(revision=row.revision + revise, **known) for row in rows]

    def _header_rows(self, ids: Sequence[str]) -> list[Row]:
        return [row for some in portions(ids) for row in self._execute(_headers(len(some)), some).fetchall()]

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
def _together(number: int) -> str:
    execution = ", ".join(f"e.{name}" for name in EXECUTION_COLUMNS)
    run = ", ".join(f"r.{name}" for name in RUN_COLUMNS)
    text = (
        f"SELECT {execution}, ({LAST_EVENT}), {run}, w.released_at IS NULL AND w.lease_until > :now "
        "FROM given CROSS JOIN executions e ON e.id = x "
        "LEFT JOIN node_runs r ON r.execution_id = x AND r.node_id = node AND r.item = i "
        "LEFT JOIN workers w ON w.id = r.worker_id"
    )
    if number > 1:
        return keys_given(number) + text.replace(":now", "?")
    text = text.replace("given CROSS JOIN executions e ON e.id = x", "executions e") + " WHERE e.id = ?1"
    for name, place in {"= x": "= ?1", "= node": "= ?2", "= i ": "= ?3 ", ":now": "?4"}.items():
        text = text.replace(name, place)
    return text


@cache
def _executions(number: int) -> str:
    return f"SELECT {EXECUTION} FROM executions WHERE id IN ({places('?', number)})"


@cache
def _headers(number: int) -> str:
    return f"SELECT {HEADER} FROM executions WHERE id IN ({places('?', number)})"


@cache
def _runs(number: int) -> str:
    """Return the read of runs by their keys, one look-up for each: "CROSS" keeps the order of the join."""
    if number == 1:
        return f"SELECT {RUN} FROM node_runs WHERE {THE_KEY}"
    return (
        f"{keys_given(number)} SELECT {RUN} FROM given CROSS JOIN node_runs "
        "ON execution_id = x AND node_id = node AND item = i"
    )


@cache
def _assignments(columns: tuple[str, ...], revise: bool) -> str:
    return ", ".join([*(f"{name} = ?" for name in columns), *(["revision = revision + 1"] if revise else [])])
