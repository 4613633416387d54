"""The write transaction on Postgres: statements over one psycopg connection, and the locks in their order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from spanloom.engine.store.requests import LogLine, NodeKey, SpanLine
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.store.texts import storable
from spanloom.stores.sql.deletion import DELETE_EXECUTIONS, DELETE_KEYS, delete_statements
from spanloom.stores.sql.rows import Row
from spanloom.stores.sql.statements import EXECUTION, RUN_COLUMNS, for_postgres, insert
from spanloom.stores.sql.transaction import SqlTransaction
from spanloom.stores.transitions.rows import Event, ExecutionRow, Graph, RunRow, Time
from spanloom.stores.transitions.transaction import always, never

__all__ = ["PostgresTransaction"]

# Planned by key: these tables grow from empty within seconds, faster than statistics follow. For this transaction only.
_BEGIN = (
    "SELECT clock_timestamp(), set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), "
    "set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true), "
    "set_config('plan_cache_mode', 'force_generic_plan', true)"
)

_EVENT = ("execution_id", "kind", "node_id", "item", "attempt", "worker_id", "data", "at")
# The transaction's number makes a cursor that skips no late commit.
_ADD_EVENT = (
    "INSERT INTO {s}events (xid, execution_id, kind, node_id, item, attempt, worker_id, data, at) VALUES "
    "(pg_current_xact_id()::text::bigint, :execution_id, :kind, :node_id, :item, :attempt, :worker_id, :data, :at)"
)
_KEYS_GIVEN = "unnest(:executions::uuid[], :nodes::text[], :items::integer[]) AS k (execution_id, node_id, item)"
_LOCK_RUNS = (
    f"SELECT {', '.join(f'n.{name}' for name in RUN_COLUMNS)} FROM {_KEYS_GIVEN} JOIN {{s}}node_runs n "
    'ON n.execution_id = k.execution_id AND n.node_id = k.node_id COLLATE "C" AND n.item = k.item '
    "{condition} ORDER BY n.execution_id, n.node_id, n.item FOR UPDATE OF n {skip}"
)
_LOG = ("execution_id", "node_id", "item", "attempt", "level", "message", "fields", "at", "trace_id", "span_id")
_SPAN = (
    "execution_id", "span_id", "trace_id", "parent_span_id", "node_id", "item", "attempt", "name", "kind", "status",
    "start_ns", "end_ns", "attributes", "links",
)  # fmt: skip
_NEWER_SPAN = "ON CONFLICT (execution_id, span_id) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in _SPAN[2:]
)


@cache
def _delete_all() -> str:
    """Return a statement over `:ids` that deletes executions with everything of theirs, and counts their keys."""
    statements = (*delete_statements(), DELETE_EXECUTIONS)
    parts = [f"part_{number} AS ({statement})" for number, statement in enumerate(statements)]
    return f"WITH {', '.join(parts)}, keys AS ({DELETE_KEYS}) SELECT count(*) FROM keys"


class PostgresTransaction(SqlTransaction):
    """A write transaction that buffers events until `flush`, which writes them in order."""

    # One look-up for each member, whatever the statistics are.
    children_joined = (
        "CROSS JOIN LATERAL (SELECT c.id FROM {s}executions c "
        "WHERE c.parent_id = member_id AND c.parent_id IS NOT NULL OFFSET 0) x"
    )

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        schema: str,
        graphs: MutableMapping[tuple[str, int], Graph],
        *,
        now: datetime | None,
        epoch: int = 0,
        prepare: bool | None = None,
        own: bool = True,
    ) -> None:
        super().__init__(graphs, epoch=epoch)
        self._connection = connection
        self._schema = schema
        self._prepare = prepare
        self._given = now
        self._began: datetime | None = None
        # Its answer arrives with the first one that is read.
        self._opening = self._cursor().execute(_BEGIN if own else "SELECT clock_timestamp()", prepare=prepare)
        self._events: list[dict[str, Any]] = []

    @property
    def now(self) -> datetime:
        """See Transaction.now."""
        if self._given is not None:
            return self._given
        if self._began is None:
            row = self._opening.fetchone()
            assert row is not None
            began: datetime = row[0].astimezone(UTC)
            self._began = began
        return self._began

    def later(self) -> datetime:
        """See Transaction.later."""
        return self._clock() if self._given is None else self._given

    def after(self, delay: timedelta) -> datetime:
        """See Transaction.after."""
        return self.now + delay

    def elapsed(self, since: Any, until: Any) -> timedelta:
        """See Transaction.elapsed."""
        difference: timedelta = until - since
        return difference

    def as_time(self, value: datetime) -> datetime:
        """See Transaction.as_time."""
        return value

    def as_datetime(self, time: Any) -> datetime:
        """See Transaction.as_datetime."""
        value: datetime = time
        return value

    # ---- locks ----

    def lock_executions(
        self, ids: Collection[str], *, alone: Callable[[ExecutionRow], bool] = never, wait: bool = True
    ) -> dict[str, ExecutionRow]:
        """See Transaction.lock_executions. Row by row where both kinds of locks are wanted, to keep their order."""
        _ = self.now  # the time before the wait for a lock
        if alone in (never, always):
            return self._locked(sorted(set(ids)), alone=alone is always, wait=wait)
        before = self.executions(ids)
        kinds = {execution_id: alone(before[execution_id]) for execution_id in sorted(before)}
        if len(set(kinds.values())) < 2:
            return self._locked(list(kinds), alone=any(kinds.values()), wait=wait)
        found: dict[str, ExecutionRow] = {}
        for execution_id, only in kinds.items():
            found |= self._locked([execution_id], alone=only, wait=wait)
        return found

    def lock_descendants(self, ids: Sequence[str]) -> list[ExecutionRow]:
        """See Transaction.lock_descendants."""
        found: list[ExecutionRow] = []
        level = list(ids)
        while level:
            # A completed descendant may still have a failed child, and that a running one.
            rows = self._all(
                "SELECT id FROM {s}executions "
                "WHERE parent_id = ANY(:ids::uuid[]) AND parent_id IS NOT NULL ORDER BY id",
                {"ids": level},
            )
            level = [str(execution_id) for (execution_id,) in rows]
            if level:
                statement = (
                    f"SELECT {EXECUTION} FROM {{s}}executions WHERE id = ANY(:ids::uuid[]) "
                    "AND status NOT IN ('completed', 'cancelled') ORDER BY id FOR NO KEY UPDATE"
                )
                found += map(self._execution, self._all(statement, {"ids": level}))
        return sorted(found, key=lambda row: (row.depth, row.created_at, row.id))

    def lock_runs(
        self, keys: Collection[NodeKey], *, wait: bool = True, status: NodeStatus | None = None
    ) -> dict[NodeKey, RunRow]:
        """See Transaction.lock_runs."""
        _ = self.now
        wanted = sorted(set(keys))
        if not wanted:
            return {}
        names: dict[str, Any] = {
            "executions": [key.execution_id for key in wanted],
            "nodes": [key.node_id for key in wanted],
            "items": [key.item for key in wanted],
        }
        if status is not None:
            # As a parameter: for a literal the planner might scan the partial index of all queued runs.
            names["status"] = status.value
        statement = _LOCK_RUNS.format(
            s="{s}", condition="" if status is None else "WHERE n.status = :status", skip="" if wait else "SKIP LOCKED"
        )
        rows = map(self._run_row, self._all(statement, names))
        return {row.key: row for row in rows}

    def lock_keys(self, ids: Sequence[str]) -> set[str]:
        """See Transaction.lock_keys. A start that repeats one of them holds its lock until its transaction ends."""
        condition = "FROM {s}idempotency_keys WHERE execution_id = ANY(:ids::uuid[])"
        every = {"ids": list(ids)}
        named = self._all(f"SELECT workflow_id, key, execution_id {condition}", every)
        held = self._all(f"SELECT workflow_id, key, execution_id {condition} FOR UPDATE SKIP LOCKED", every)
        return {str(execution_id) for _, _, execution_id in set(named) - set(held)}

    def delete_executions(self, ids: Sequence[str]) -> int:
        """See Transaction.delete_executions. In one statement, which looks at each table once."""
        ((keys,),) = self._all(_delete_all(), {"ids": list(ids)})
        return int(keys)

    # ---- history and telemetry ----

    def add_events(self, events: Iterable[Event], *, at: Time | None = None) -> None:
        """See Transaction.add_events."""
        time = self.now if at is None else at
        self._events.extend(dict(zip(_EVENT, (*event, time), strict=True)) for event in events)

    def _stored_events(self, condition: str, parameters: Mapping[str, Any]) -> list[Any]:
        self.flush()  # one of them may still be buffered
        return super()._stored_events(condition, parameters)

    def add_telemetry(self, key: NodeKey, logs: Sequence[LogLine], spans: Sequence[SpanLine]) -> None:
        """See Transaction.add_telemetry."""
        if logs:
            lines = [
                (
                    *key,
                    line.attempt,
                    storable(line.level),
                    storable(line.message),
                    line.fields,
                    line.at,
                    line.trace_id,
                    line.span_id,
                )
                for line in logs
            ]
            self._run(insert("logs", _LOG), [dict(zip(_LOG, line, strict=True)) for line in lines])
        if spans:
            rows = [
                {"execution_id": key.execution_id, **{name: getattr(span, name) for name in _SPAN[1:]}}
                for span in spans
            ]
            for row in rows:
                row["name"] = storable(row["name"])
            self._run(insert("spans", _SPAN, _NEWER_SPAN), rows)

    def flush(self) -> None:
        """See Transaction.flush."""
        if self._events:
            events, self._events = self._events, []
            self._run(_ADD_EVENT, events)

    # ---- hooks of the dialect ----

    def _all(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        rendered = for_postgres(statement, self._schema)
        return self._cursor().execute(rendered, parameters, prepare=self._prepare).fetchall()

    def _count(self, statement: str, parameters: Mapping[str, Any]) -> int:
        return len(self._all(f"{statement} RETURNING 1", parameters))  # in a pipeline the count is not known yet

    def _run(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        rendered = for_postgres(statement, self._schema)
        if len(parameters) == 1:
            self._cursor().execute(rendered, parameters[0], prepare=self._prepare)
        elif parameters:
            self._cursor().executemany(rendered, parameters)

    def _cursor(self) -> psycopg.Cursor[Row]:
        # A caller's connection may read rows in another form.
        return self._connection.cursor(binary=True, row_factory=tuple_row)

    def _id(self, value: Any) -> Any:
        return None if value is None else str(value)

    def _time(self, value: Any) -> Any:
        return None if value is None else value.astimezone(UTC)

    def _clock(self) -> datetime:
        (now,) = self._all("SELECT clock_timestamp()", {})[0]
        return now.astimezone(UTC)  # type: ignore[no-any-return]  # a timestamptz

    def _locked(self, ids: Sequence[str], *, alone: bool, wait: bool) -> dict[str, ExecutionRow]:
        lock = "FOR NO KEY UPDATE" if alone else "FOR SHARE"
        statement = f"SELECT {EXECUTION} FROM {{s}}executions WHERE id = ANY(:ids::uuid[]) ORDER BY id {lock}"
        return self._executions_of(statement + ("" if wait else " SKIP LOCKED"), ids)
