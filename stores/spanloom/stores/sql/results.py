"""Operations of a write transaction on results, items and history."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from spanloom.engine.limits import MAX_CLAIM_BYTES
from spanloom.engine.store.requests import LEFT_OUT, NodeKey
from spanloom.stores.sql.rows import KEY, SqlRows
from spanloom.stores.sql.statements import KEEP_SPANS, RESULT, RESULT_COLUMNS, RESULT_WITHOUT_DATA, insert, update_of
from spanloom.stores.transitions.rows import InputRow, ResultRow, StoredEvent

__all__ = ["SqlResults"]


# The window's sum reads no data: it is known for each row.
_DATA = f"CASE WHEN sum(octet_length(data)) OVER () > :most THEN '{LEFT_OUT}' ELSE data END"
_INPUTS = (
    f"SELECT {', '.join(_DATA if name == 'data' else name for name in InputRow._fields)} FROM {{s}}node_results "
    "WHERE execution_id = :execution_id AND node_id = ANY(:nodes::text[]) AND item = 0 ORDER BY node_id"
)


class SqlResults(SqlRows):
    """Operations on results, items and history."""

    # ---- ended node runs, and items ----

    def insert_results(self, rows: Sequence[ResultRow]) -> None:
        """See Transaction.insert_results."""
        if rows:
            self._run(insert("node_results", RESULT_COLUMNS), [row._asdict() for row in rows])

    def results(self, execution_id: str, node_ids: Collection[str] | None = None) -> list[ResultRow]:
        """See Transaction.results."""
        condition = "execution_id = :execution_id AND item = 0"
        parameters: dict[str, Any] = {"execution_id": execution_id}
        if node_ids is not None:
            condition += " AND node_id = ANY(:nodes::text[])"
            parameters["nodes"] = list(node_ids)
        rows = self._all(
            f"SELECT {RESULT_WITHOUT_DATA} FROM {{s}}node_results WHERE {condition} ORDER BY node_id",
            parameters,
        )
        return [self._result(row) for row in rows]

    def inputs(self, execution_id: str, node_ids: Collection[str]) -> list[InputRow]:
        """See Transaction.inputs."""
        parameters = {"execution_id": execution_id, "nodes": list(node_ids), "most": MAX_CLAIM_BYTES}
        return [InputRow._make(row) for row in self._all(_INPUTS, parameters)]

    def result(self, key: NodeKey) -> ResultRow | None:
        """See Transaction.result."""
        row = self._one(f"SELECT {RESULT} FROM {{s}}node_results WHERE {KEY}", key._asdict())
        return None if row is None else self._result(row)

    def mark_cancelled(self, result: ResultRow) -> bool:
        """See Transaction.mark_cancelled."""
        columns = ("taken", "span", "span_start_ns", "span_end_ns", "span_attributes", "span_links")
        condition = f"{KEY} AND status = 'cancelled' AND taken IS NULL"
        statement = update_of("node_results", columns, condition, returning="item")
        return bool(self._all(statement, {**result._asdict(), "taken": "[]"}))

    def delete_result(self, key: NodeKey) -> None:
        """See Transaction.delete_result."""
        self._run(KEEP_SPANS.replace("{condition}", KEY), [key._asdict()])
        self._run(f"DELETE FROM {{s}}node_results WHERE {KEY}", [key._asdict()])

    def delete_results(self, execution_id: str, node_ids: Collection[str]) -> list[ResultRow]:
        """See Transaction.delete_results."""
        return self._deleted_results(
            "execution_id = :execution_id AND node_id = ANY(:nodes::text[])",
            {"execution_id": execution_id, "nodes": list(node_ids)},
        )

    def delete_item_results(self, execution_id: str, node_id: str, *, failed_only: bool) -> list[ResultRow]:
        """See Transaction.delete_item_results."""
        return self._deleted_results(
            "execution_id = :execution_id AND node_id = :node_id AND item > 0"
            + (" AND status = 'failed'" if failed_only else ""),
            {"execution_id": execution_id, "node_id": node_id},
        )

    def insert_items(self, execution_id: str, node_id: str, items: Mapping[int, str]) -> None:
        """See Transaction.insert_items."""
        rows = [
            {"execution_id": execution_id, "node_id": node_id, "item": item, "data": data}
            for item, data in items.items()
        ]
        self._run(insert("node_items", ("execution_id", "node_id", "item", "data")), rows)

    def delete_items(self, execution_id: str, node_ids: Collection[str]) -> None:
        """See Transaction.delete_items."""
        self._run(
            "DELETE FROM {s}node_items WHERE execution_id = :execution_id AND node_id = ANY(:nodes::text[])",
            [{"execution_id": execution_id, "nodes": list(node_ids)}],
        )

    def item(self, key: NodeKey) -> str | None:
        """See Transaction.item."""
        row = self._one(f"SELECT data FROM {{s}}node_items WHERE {KEY}", key._asdict())
        return None if row is None else str(row[0])

    def bounds(self, execution_id: str, node_ids: Collection[str]) -> dict[str, str]:
        """See Transaction.bounds."""
        rows = self._all(
            "SELECT node_id, data FROM {s}node_items "
            "WHERE execution_id = :execution_id AND node_id = ANY(:nodes::text[]) AND item = 0",
            {"execution_id": execution_id, "nodes": list(node_ids)},
        )
        return {str(node_id): str(data) for node_id, data in rows}

    def item_count(self, execution_id: str, node_id: str) -> int:
        """See Transaction.item_count."""
        row = self._one(
            "SELECT max(item) FROM {s}node_items WHERE execution_id = :execution_id AND node_id = :node_id",
            {"execution_id": execution_id, "node_id": node_id},
        )
        return int(row[0]) if row is not None and row[0] is not None else 0

    def next_items(self, execution_id: str, node_id: str, first: int, limit: int) -> list[int]:
        """See Transaction.next_items."""
        if limit <= 0:
            return []
        # After a retry there may be holes: items that had ended well before it, or are still open.
        other = "o.execution_id = i.execution_id AND o.node_id = i.node_id AND o.item = i.item"
        rows = self._all(
            "SELECT i.item FROM {s}node_items i "
            "WHERE i.execution_id = :execution_id AND i.node_id = :node_id AND i.item >= :first "
            f"AND NOT EXISTS (SELECT 1 FROM {{s}}node_runs o WHERE {other}) "
            f"AND NOT EXISTS (SELECT 1 FROM {{s}}node_results o WHERE {other}) ORDER BY i.item LIMIT :limit",
            {"execution_id": execution_id, "node_id": node_id, "first": max(first, 1), "limit": limit},
        )
        return [item for (item,) in rows]

    def copy_results(self, source: str, target: str, node_ids: Sequence[str]) -> None:
        """See Transaction.copy_results."""
        parameters = {"source": source, "target": target, "nodes": list(node_ids)}
        changed = {
            "execution_id": ":target::uuid", "arrived": "true", "fence": "0", "push": "0", "span": "NULL::text",
            "span_start_ns": "NULL::bigint", "span_end_ns": "NULL::bigint", "span_attributes": "NULL::text",
            "span_links": "NULL::text",
        }  # fmt: skip
        self._run(
            f"INSERT INTO {{s}}node_results ({RESULT}) "
            f"SELECT {', '.join(changed.get(name, name) for name in RESULT_COLUMNS)} FROM {{s}}node_results "
            "WHERE execution_id = :source AND node_id = ANY(:nodes::text[])",
            [parameters],
        )
        self._run(
            "INSERT INTO {s}node_items (execution_id, node_id, item, data) "
            "SELECT :target::uuid, node_id, item, data FROM {s}node_items "
            "WHERE execution_id = :source AND node_id = ANY(:nodes::text[])",
            [parameters],
        )

    # ---- history and telemetry ----

    def end_events(self, execution_id: str) -> list[StoredEvent]:
        """See Transaction.end_events."""
        return self._stored_events(
            "execution_id = :execution_id AND kind IN ('execution.completed', 'execution.failed')",
            {"execution_id": execution_id},
        )

    def events(self, key: NodeKey, kinds: Sequence[str]) -> list[StoredEvent]:
        """See Transaction.events."""
        return self._stored_events(f"{KEY} AND kind = ANY(:kinds::text[])", {**key._asdict(), "kinds": list(kinds)})
