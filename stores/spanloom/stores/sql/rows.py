"""The conversion of a driver's rows to those of transitions, over the hooks of each dialect."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from spanloom.engine.store.requests import NodeKey
from spanloom.stores.sql.statements import KEEP_SPANS, RESULT_WITHOUT_DATA, RUN
from spanloom.stores.transitions.rows import ExecutionRow, ResultRow, RunRow, StoredEvent
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["KEY", "Row", "SqlRows"]

Row = Sequence[Any]

#: The condition of one node run.
KEY = "execution_id = :execution_id AND node_id = :node_id AND item = :item"


class SqlRows(Transaction):
    """The hooks of a dialect, and the conversion of its driver's rows."""

    def __init__(self) -> None:
        self._live: dict[str, bool] = {}  # the workers whose leases have been read

    # ---- hooks of a dialect ----

    @abstractmethod
    def _all(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        """Run a statement and return its rows."""

    @abstractmethod
    def _count(self, statement: str, parameters: Mapping[str, Any]) -> int:
        """Run a statement and return the number of rows that it has written."""

    @abstractmethod
    def _run(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement for each set of parameters. Its errors may be raised by a later statement."""

    @abstractmethod
    def _id(self, value: Any) -> Any:
        """Read an id, or None."""

    @abstractmethod
    def _time(self, value: Any) -> Any:
        """Read a time, or None."""

    def _one(self, statement: str, parameters: Mapping[str, Any]) -> Row | None:
        rows = self._all(statement, parameters)
        return rows[0] if rows else None

    # ---- reading rows ----

    def _execution(self, row: Row) -> ExecutionRow:
        values = list(row)
        values[0], values[6] = self._id(values[0]), self._id(values[6])
        for place in (12, 13, 14):
            values[place] = self._time(values[place])
        return ExecutionRow._make(values)

    def _run_row(self, row: Row) -> RunRow:
        values = list(row)
        values[0] = self._id(values[0])
        values[21], values[24], values[25] = self._time(values[21]), self._time(values[24]), self._time(values[25])
        return RunRow._make(values)

    def _result(self, row: Row) -> ResultRow:
        values = list(row)
        values[0], values[8] = self._id(values[0]), bool(values[8])
        values[-2], values[-1] = self._time(values[-2]), self._time(values[-1])
        return ResultRow._make(values)

    def _executions_of(self, statement: str, ids: Collection[str]) -> dict[str, ExecutionRow]:
        rows = map(self._execution, self._all(statement, {"ids": sorted(ids)})) if ids else ()
        return {row.id: row for row in rows}

    def _runs_of(self, statement: str, keys: Collection[NodeKey]) -> dict[NodeKey, RunRow]:
        found = (self._one(statement, key._asdict()) for key in sorted(set(keys)))
        rows = (self._run_row(row) for row in found if row is not None)
        return {row.key: row for row in rows}

    def _found_runs(self, condition: str, parameters: Mapping[str, Any]) -> list[RunRow]:
        rows = self._all(f"SELECT {RUN} FROM {{s}}node_runs WHERE {condition}", parameters)
        return [self._run_row(row) for row in rows]

    def _deleted_results(self, condition: str, parameters: Mapping[str, Any]) -> list[ResultRow]:
        self._run(KEEP_SPANS.replace("{condition}", condition), [parameters])
        statement = f"DELETE FROM {{s}}node_results WHERE {condition} RETURNING {RESULT_WITHOUT_DATA}"
        return sorted(map(self._result, self._all(statement, parameters)))

    def _stored_events(self, condition: str, parameters: Mapping[str, Any]) -> list[StoredEvent]:
        rows = self._all(
            f"SELECT kind, worker_id, data, at FROM {{s}}events WHERE {condition} ORDER BY seq DESC",
            parameters,
        )
        return [StoredEvent(kind, worker_id, data, self._time(at)) for kind, worker_id, data, at in rows]

    def _keys(self, statement: str, parameters: Mapping[str, Any]) -> list[NodeKey]:
        return [NodeKey(self._id(row[0]), row[1], row[2]) for row in self._all(statement, parameters)]
