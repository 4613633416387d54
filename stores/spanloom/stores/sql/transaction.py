"""The write transaction of SQL stores: the operations of `Transaction` as statements that both dialects share."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from spanloom.engine.store.requests import ExecutionHeader, NodeKey, StartRequest
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.sql.recovery import SqlRecovery
from spanloom.stores.sql.results import SqlResults
from spanloom.stores.sql.rows import KEY, Row
from spanloom.stores.sql.statements import ARRIVE, EXECUTION, HEADER, RUN, RUN_COLUMNS, insert, update_of
from spanloom.stores.transitions.rows import (
    ExecutionRow,
    Graph,
    GraphEdge,
    NewExecution,
    RunFilter,
    RunRow,
    VersionRow,
)

__all__ = ["SqlTransaction"]


class SqlTransaction(SqlResults, SqlRecovery):
    """The operations that are the same in every dialect. A subclass runs statements, and writes buffered rows."""

    def __init__(self, graphs: MutableMapping[tuple[str, int], Graph], *, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch
        self._graphs = graphs
        self._seen: dict[tuple[str, int], Graph] = {}  # the graphs that this transaction uses
        self._versions: dict[tuple[str, int | None], VersionRow | None] = {}

    # ---- definitions ----

    def graph(self, workflow_id: str, version: int) -> Graph:
        """See Transaction.graph."""
        found = self._seen.get((workflow_id, version))
        if found is None:
            found = self._seen[workflow_id, version] = self._graph(workflow_id, version)
        return found

    def _graph(self, workflow_id: str, version: int) -> Graph:
        found = self._graphs.get((workflow_id, version))
        if found is None:
            rows = self._all(
                "SELECT source, target, kind, target_type, target_queue, target_inputs FROM {s}workflow_edges "
                "WHERE workflow_id = :workflow_id AND version = :version",
                {"workflow_id": workflow_id, "version": version},
            )
            found = self._graphs[workflow_id, version] = Graph(map(GraphEdge._make, rows))
        return found

    def version(self, workflow_id: str, version: int | None) -> VersionRow | None:
        """See Transaction.version."""
        if (workflow_id, version) in self._versions:
            return self._versions[workflow_id, version]
        row = self._one(
            "SELECT w.active, v.version FROM {s}workflows w LEFT JOIN {s}workflow_versions v ON v.workflow_id = w.id "
            "AND v.version = coalesce(:version::integer, w.latest_version) WHERE w.id = :workflow_id",
            {"workflow_id": workflow_id, "version": version},
        )
        found = self._versions[workflow_id, version] = None if row is None else VersionRow(bool(row[0]), row[1])
        return found

    # ---- executions ----

    def executions(self, ids: Collection[str]) -> dict[str, ExecutionRow]:
        """See Transaction.executions."""
        return self._executions_of(f"SELECT {EXECUTION} FROM {{s}}executions WHERE id = ANY(:ids::uuid[])", ids)

    def children(self, execution_id: str, node_ids: Collection[str]) -> list[ExecutionRow]:
        """See Transaction.children."""
        rows = self._all(
            f"SELECT {EXECUTION} FROM {{s}}executions WHERE parent_id = :parent_id AND parent_id IS NOT NULL "
            "AND parent_node_id = ANY(:nodes::text[]) ORDER BY created_at, id",
            {"parent_id": execution_id, "nodes": list(node_ids)},
        )
        return [self._execution(row) for row in rows]

    def insert_executions(self, new: Sequence[NewExecution]) -> set[str]:
        """See Transaction.insert_executions."""
        inserted: dict[str, StartRequest] = {}
        for one in new:
            given = {name: value for name, value in self._columns_of(one).items() if value is not None}
            if self._count(insert("executions", tuple(given), "ON CONFLICT (id) DO NOTHING"), given):
                inserted[one.request.execution_id] = one.request
        self._insert_metadata(inserted.values())
        return set(inserted)

    def _columns_of(self, new: NewExecution) -> dict[str, Any]:
        request, version, status = new
        parent = request.parent
        return {
            "id": request.execution_id,
            "workflow_id": request.workflow_id,
            "version": version,
            "status": status.value,
            "revision": 0,
            "priority": request.priority.value,
            "input": request.input,
            "metadata": json.dumps(dict(request.metadata)) if request.metadata else "{}",
            "parent_id": None if parent is None else parent.execution_id,
            "parent_node_id": None if parent is None else parent.node_id,
            "parent_item": None if parent is None else parent.item,
            "parent_fence": request.parent_fence,
            "depth": request.depth,
            "trace_parent": request.trace_parent,
            "trace_state": request.trace_state,
            "caller_span_id": request.caller_span_id,
            "deadline_seconds": request.deadline_seconds,
            "created_at": self.now,
            "started_at": None if status is ExecutionStatus.PENDING else self.now,
            "replay_of": None if request.replay is None else canonical_id(request.replay.source),
        }

    def _insert_metadata(self, requests: Iterable[StartRequest]) -> None:
        pairs = [
            {
                "execution_id": request.execution_id,
                "key": key,
                "value": value,
                "created_at": self.now,
                "workflow_id": request.workflow_id,
            }
            for request in requests
            for key, value in request.metadata.items()
        ]
        if pairs:
            self._run(insert("execution_metadata", tuple(pairs[0])), pairs)

    def update_executions(
        self, rows: Sequence[ExecutionRow], *, revise: bool = False, **columns: Any
    ) -> list[ExecutionRow]:
        """See Transaction.update_executions."""
        if not rows:
            return []
        also = "revision = revision + 1" if revise else ""
        statement = update_of("executions", tuple(columns), "id = ANY(:ids::uuid[])", also=also)
        self._run(statement, [{"ids": [row.id for row in rows], **columns}])
        known = {name: value for name, value in columns.items() if name in ExecutionRow._fields}
        return [row._replace(revision=row.revision + revise, **known) for row in rows]

    def headers(self, executions: Sequence[ExecutionRow]) -> dict[str, ExecutionHeader]:
        """See Transaction.headers."""
        rows = self._header_rows([row.id for row in executions]) if executions else ()
        others = {self._id(row[0]): row for row in rows}
        return {row.id: self._header(row, others[row.id]) for row in executions}

    def _header(self, execution: ExecutionRow, others: Row) -> ExecutionHeader:
        _, data, metadata, trace_parent, trace_state, caller_span_id = others
        return ExecutionHeader(
            execution.id, execution.workflow_id, execution.version, data, execution.priority, execution.depth,
            execution.parent_id, {} if metadata == "{}" else json.loads(metadata), trace_parent, trace_state,
            caller_span_id, self.as_datetime(execution.created_at),
        )  # fmt: skip

    def _header_rows(self, ids: Sequence[str]) -> list[Row]:
        return self._all(f"SELECT {HEADER} FROM {{s}}executions WHERE id = ANY(:ids::uuid[])", {"ids": list(ids)})

    # ---- open node runs ----

    def runs(self, keys: Collection[NodeKey]) -> dict[NodeKey, RunRow]:
        """See Transaction.runs."""
        return self._runs_of(f"SELECT {RUN} FROM {{s}}node_runs WHERE {KEY}", keys)

    def runs_made_ready(self, execution_id: str, reference: str) -> list[RunRow]:
        """See Transaction.runs_made_ready."""
        return self._found_runs(
            "execution_id = :execution_id AND claim_reference = :reference ORDER BY node_id, item",
            {"execution_id": execution_id, "reference": reference},
        )

    def runs_of_worker(self, worker_id: str) -> list[NodeKey]:
        """See Transaction.runs_of_worker."""
        return self._keys(
            "SELECT execution_id, node_id, item FROM {s}node_runs WHERE worker_id = :worker_id AND status = 'running' "
            "ORDER BY execution_id, node_id, item",
            {"worker_id": worker_id},
        )

    def find_runs(self, where: RunFilter) -> list[RunRow]:
        """See Transaction.find_runs."""
        condition, parameters = _filtered(where)
        return self._found_runs(f"{condition} ORDER BY execution_id, node_id, item", parameters)

    def insert_runs(self, rows: Sequence[RunRow]) -> None:
        """See Transaction.insert_runs."""
        if rows:
            self._run(insert("node_runs", RUN_COLUMNS), [row._asdict() for row in rows])

    def arrive(self, rows: Sequence[RunRow], arrivals: Mapping[str, int]) -> list[RunRow]:
        """See Transaction.arrive."""
        counted: list[RunRow] = []
        for row in sorted(rows, key=lambda row: row.key):
            found = self._one(ARRIVE, {**row._asdict(), "arrivals": arrivals[row.node_id]})
            assert found is not None
            counted.append(self._run_row(found))
        return counted

    def _write_runs(self, changes: Sequence[tuple[RunRow, RunRow]]) -> None:
        for old, new in changes:
            columns = tuple(name for name, before, after in zip(RUN_COLUMNS, old, new, strict=True) if before != after)
            if columns:
                values = {name: getattr(new, name) for name in columns}
                self._run(update_of("node_runs", columns, KEY), [{**values, **old.key._asdict()}])

    def _move_runs(self, where: RunFilter, *, push: bool, **columns: Any) -> list[RunRow]:
        condition, parameters = _filtered(where)
        also = "push = push + 1" if push else ""
        # A column that the condition contains as well has two parameters.
        renamed = {f"new_{name}": value for name, value in columns.items()}
        assignments = ", ".join([*(f"{name} = :new_{name}" for name in columns), *([also] if also else [])])
        statement = f"UPDATE {{s}}node_runs SET {assignments} WHERE {condition} RETURNING {RUN}"
        return sorted(map(self._run_row, self._all(statement, {**parameters, **renamed})))

    def delete_runs(self, keys: Sequence[NodeKey]) -> None:
        """See Transaction.delete_runs."""
        if keys:
            self._run(f"DELETE FROM {{s}}node_runs WHERE {KEY}", [key._asdict() for key in keys])

    def delete_runs_of(self, execution_ids: Sequence[str], node_ids: Collection[str] | None = None) -> list[RunRow]:
        """See Transaction.delete_runs_of."""
        condition = "execution_id = ANY(:executions::uuid[])"
        parameters: dict[str, Any] = {"executions": list(execution_ids)}
        if node_ids is not None:
            condition += " AND node_id = ANY(:nodes::text[])"
            parameters["nodes"] = list(node_ids)
        rows = self._all(f"DELETE FROM {{s}}node_runs WHERE {condition} RETURNING {RUN}", parameters)
        return sorted(map(self._run_row, rows))


def _filtered(where: RunFilter) -> tuple[str, dict[str, Any]]:
    condition = "execution_id = ANY(:executions::uuid[]) AND status = ANY(:statuses::text[])"
    parameters: dict[str, Any] = {
        "executions": list(where.executions),
        "statuses": [status.value for status in where.statuses],
    }
    if where.wait_kind is not None:
        condition += " AND wait_kind = :wait_kind"
        parameters["wait_kind"] = where.wait_kind
    return condition, parameters
