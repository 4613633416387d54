"""The write transaction on SQLite. There is one writer at a time, so it needs no locks and numbers rows itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from spanloom.engine.store.requests import LogLine, NodeKey, SpanLine
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.store.texts import storable
from spanloom.stores.schema import from_micros, to_micros
from spanloom.stores.sql.deletion import DELETE_EXECUTIONS, DELETE_KEYS, delete_statements
from spanloom.stores.sql.rows import Row
from spanloom.stores.sql.statements import EXECUTION, for_sqlite
from spanloom.stores.sqlite.rows import SqliteRows
from spanloom.stores.transitions.rows import Event, ExecutionRow, Graph, RunRow, Time
from spanloom.stores.transitions.transaction import never

__all__ = ["SqliteTransaction"]

_MICROSECOND = timedelta(microseconds=1)
_LATEST = to_micros(datetime.max.replace(tzinfo=UTC))

_FAMILY = f"""
WITH RECURSIVE family (family_id, level) AS (
  SELECT id, 0 FROM executions WHERE id = ANY(:ids::uuid[])
  UNION ALL
  SELECT e.id, level + 1 FROM family JOIN executions e ON e.parent_id = family_id
)
SELECT {EXECUTION} FROM family JOIN executions ON id = family_id WHERE level >= :least
ORDER BY level, created_at, id
"""


class SqliteTransaction(SqliteRows):
    """A write transaction: each write is pending until it is read, or until `flush`."""

    children_joined = "JOIN {s}executions x ON x.parent_id = member_id AND x.parent_id IS NOT NULL"

    def __init__(
        self,
        connection: sqlite3.Connection,
        graphs: MutableMapping[tuple[str, int], Graph],
        *,
        now: int,
        epoch: int = 0,
    ) -> None:
        super().__init__(connection, graphs, epoch=epoch)
        self._now = now
        self._date: datetime | None = None  # of `now`, which most answers name
        self._run_many = connection.executemany

    # ---- the clock: times are whole microseconds since 1970 ----

    @property
    def now(self) -> int:
        """See Transaction.now."""
        return self._now

    def later(self) -> int:
        """See Transaction.later. The only wait, for the writer, is over when the transaction begins."""
        return self._now

    def after(self, delay: timedelta) -> int:
        """See Transaction.after."""
        time = self._now + delay // _MICROSECOND
        if time > _LATEST:
            raise OverflowError("date value out of range")  # it could be stored, and then not be read as a datetime
        return time

    def elapsed(self, since: Any, until: Any) -> timedelta:
        """See Transaction.elapsed."""
        return timedelta(microseconds=until - since)

    def as_time(self, value: datetime) -> int:
        """See Transaction.as_time."""
        return to_micros(value)

    def as_datetime(self, time: Any) -> datetime:
        """See Transaction.as_datetime."""
        if time != self._now:
            return from_micros(time)
        if self._date is None:
            self._date = from_micros(time)
        return self._date

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
        runs = self.runs(keys)
        return runs if status is None else {key: run for key, run in runs.items() if run.status == status}

    # ---- history and telemetry ----

    def add_events(self, events: Iterable[Event], *, at: Time | None = None) -> None:
        """See Transaction.add_events."""
        time, pending = self._now if at is None else at, self._pending.events
        for event in events:
            pending.append((*event, time))

    def add_telemetry(self, key: NodeKey, logs: Sequence[LogLine], spans: Sequence[SpanLine]) -> None:
        """See Transaction.add_telemetry."""
        execution_id, node_id, item = key
        if logs:
            self._pending.logs += [
                (execution_id, node_id, item, line.attempt, storable(line.level), storable(line.message), line.fields,
                 to_micros(line.at), line.trace_id, line.span_id)
                for line in logs
            ]  # fmt: skip
        for span in spans:
            if (name := storable(span.name)) is not span.name:
                span = span._replace(name=name)
            self._pending.spans.append((execution_id, *span))

    # ---- retention ----

    def lock_keys(self, ids: Sequence[str]) -> set[str]:
        """See Transaction.lock_keys."""
        return set()

    def delete_executions(self, ids: Sequence[str]) -> int:
        """See Transaction.delete_executions."""
        every = {"ids": list(ids)}
        keys = self._all(DELETE_KEYS, every)
        for statement in (*delete_statements(), DELETE_EXECUTIONS):
            self._run(statement, [every])
        return len(keys)

    # ---- hooks of the dialect ----

    def _all(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        text, values = self._rendered(statement)
        return self._execute(text, values(parameters)).fetchall()

    def _count(self, statement: str, parameters: Mapping[str, Any]) -> int:
        text, values = self._rendered(statement)
        return self._execute(text, values(parameters)).rowcount

    def _run(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        text, values = self._rendered(statement)
        if len(parameters) == 1:
            self._execute(text, values(parameters[0]))
        elif parameters:
            self._run_many(text, map(values, parameters))

    def _rendered(self, statement: str) -> tuple[str, Callable[[Mapping[str, Any]], Sequence[Any]]]:
        """Render a statement, make the pending writes, which it may read, and drop the rows that it may change."""
        rendered = for_sqlite(statement)
        if not rendered.text.startswith("SELECT"):
            self._known.clear()
            self._prefetched.clear()
            self._inputs.clear()
        self._pending.write()
        return rendered.text, rendered.values

    def _id(self, value: Any) -> Any:
        return value

    def _time(self, value: Any) -> Any:
        return value
