"""The write transaction on SQLite. There is one writer at a time, so it needs no locks and numbers rows itself."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from datetime import datetime
from typing import Any

from spanloom.engine.store.requests import LogLine, NodeKey, SpanLine
from spanloom.engine.store.states import NodeStatus
from spanloom.stores.schema import from_micros, to_micros
from spanloom.stores.sql.rows import Row
from spanloom.stores.sql.statements import EXECUTION, for_sqlite
from spanloom.stores.sqlite.rows import SqliteRows
from spanloom.stores.transitions.rows import Event, ExecutionRow, Graph, RunRow
from spanloom.stores.transitions.transaction import never

__all__ = ["SqliteTransaction"]

# There is one writer at a time, so the highest number plus one is free, and readers see the numbers in commit order.
_ADD_EVENT = """
INSERT INTO events (execution_id, seq, kind, node_id, item, attempt, worker_id, data, at)
VALUES (?1, (SELECT coalesce(max(seq), 0) + 1 FROM events WHERE execution_id = ?1), ?2, ?3, ?4, ?5, ?6, ?7, ?8)
"""

_ADD_LOG = """
INSERT INTO logs (execution_id, id, node_id, item, attempt, level, message, fields, at, trace_id, span_id)
VALUES (?1, (SELECT coalesce(max(id), 0) + 1 FROM logs WHERE execution_id = ?1), ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
"""

_ADD_SPAN = """
INSERT OR REPLACE INTO spans (execution_id, span_id, trace_id, parent_span_id, node_id, item, attempt, name, kind,
                              status, start_ns, end_ns, attributes, links)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_FAMILY = f"""
WITH RECURSIVE family (family_id, level) AS (
  SELECT id, 0 FROM executions WHERE id IN (SELECT value FROM json_each(:ids))
  UNION ALL
  SELECT e.id, level + 1 FROM family JOIN executions e ON e.parent_id = family_id
)
SELECT {EXECUTION} FROM family JOIN executions ON id = family_id WHERE level >= :least
ORDER BY level, created_at, id
"""


class SqliteTransaction(SqliteRows):
    """A write transaction that buffers results and events until `flush`."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        graphs: MutableMapping[tuple[str, int], Graph],
        *,
        now: int,
        epoch: int = 0,
    ) -> None:
        super().__init__(connection, graphs, epoch=epoch)
        self._now = from_micros(now)
        self._micros = now
        self._events: list[tuple[Any, ...]] = []
        self._logs: list[tuple[Any, ...]] = []
        self._spans: list[tuple[Any, ...]] = []

    @property
    def now(self) -> datetime:
        """See Transaction.now."""
        return self._now

    def later(self) -> datetime:
        """See Transaction.later. The only wait, for the writer, is over when the transaction begins."""
        return self._now

    # ---- locks: none are needed ----

    def lock_executions(
        self, ids: Collection[str], *, alone: Callable[[ExecutionRow], bool] = never, wait: bool = True
    ) -> dict[str, ExecutionRow]:
        """See Transaction.lock_executions."""
        return self.executions(ids)

    def lock_descendants(self, ids: Sequence[str]) -> list[ExecutionRow]:
        """See Transaction.lock_descendants."""
        rows = map(self._execution, self._all(_FAMILY, {"ids": list(ids), "least": 1}))
        return sorted(
            (row for row in rows if row.status not in ("completed", "cancelled")),
            key=lambda row: (row.depth, row.created_at, row.id),
        )

    def lock_runs(
        self, keys: Collection[NodeKey], *, wait: bool = True, status: NodeStatus | None = None
    ) -> dict[NodeKey, RunRow]:
        """See Transaction.lock_runs."""
        return {key: run for key, run in self.runs(keys).items() if status is None or run.status == status}

    def lock_family(self, root: str) -> list[ExecutionRow] | None:
        """See Transaction.lock_family."""
        return [self._execution(row) for row in self._all(_FAMILY, {"ids": [root], "least": 0})]

    # ---- history and telemetry ----

    def add_events(self, events: Iterable[Event], *, at: datetime | None = None) -> None:
        """See Transaction.add_events."""
        time = self._micros if at is None else to_micros(at)
        self._events.extend([(*event, time) for event in events])

    def add_telemetry(self, key: NodeKey, logs: Sequence[LogLine], spans: Sequence[SpanLine]) -> None:
        """See Transaction.add_telemetry."""
        execution_id, node_id, item = key
        self._logs.extend(
            [
                (execution_id, node_id, item, line.attempt, line.level, _storable(line.message), line.fields,
                 to_micros(line.at), line.trace_id, line.span_id)
                for line in logs
            ]
        )  # fmt: skip
        self._spans.extend(
            [
                (execution_id, span.span_id, span.trace_id, span.parent_span_id, span.node_id, span.item, span.attempt,
                 _storable(span.name), span.kind, span.status, span.start_ns, span.end_ns, span.attributes, span.links)
                for span in spans
            ]
        )  # fmt: skip

    def flush(self) -> None:
        """See Transaction.flush."""
        super().flush()
        for statement, rows in ((_ADD_EVENT, self._events), (_ADD_LOG, self._logs), (_ADD_SPAN, self._spans)):
            if rows:
                self._executemany(statement, rows)
                rows.clear()

    # ---- retention ----

    def _hold_keys(self, ids: Sequence[str]) -> bool:
        return True

    # ---- hooks of the dialect ----

    def _all(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        if self._results or self._events:
            self.flush()  # the statement may read, or delete, buffered rows
        return self._execute(for_sqlite(statement), _bound(parameters)).fetchall()

    def _run(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        rendered = for_sqlite(statement)
        if len(parameters) == 1:
            self._execute(rendered, _bound(parameters[0]))
        elif parameters:
            self._executemany(rendered, map(_bound, parameters))

    def _id(self, value: Any) -> Any:
        return value

    def _time(self, value: Any) -> Any:
        return None if value is None else from_micros(value)


def _bound(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters in SQLite's types: times in microseconds, lists as JSON."""
    return {
        name: to_micros(value)
        if isinstance(value, datetime)
        else json.dumps(value)
        if isinstance(value, list)
        else value
        for name, value in parameters.items()
    }


def _storable(text: str) -> str:
    """Return text without halves of a surrogate pair, as in odd file names, which UTF-8 can't hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
