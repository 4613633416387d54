"""The first release's tables, indexes and functions."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from spanloom.stores.migrations import create_functions

revision = "0001"
down_revision = None

FUNCTIONS = (
    "shared_v1", "start_v1", "claim_v1", "record_batch_v1", "items_v1", "waits_v1", "record_v1", "link_v1",
    "wake_parents_v1", "sweep_v1",
)  # fmt: skip

# Written out instead of imported from schema.py, which changes while this revision does not.
ID = sa.Uuid(as_uuid=False).with_variant(sa.Text(), "sqlite")
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
INSTANT = sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")
SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the schema's objects and the one row of store_state."""
    _create_workflows()
    _create_executions()
    _create_node_runs()
    _create_history()
    connection, schema = op.get_bind(), _schema()
    if schema is not None and connection.dialect.name == "postgresql":
        _set_vacuuming(schema)
        create_functions(connection, schema, FUNCTIONS)


def _set_vacuuming(schema: str) -> None:
    """Let autovacuum come by rows that changed, where its default is a fifth of a table.

    A node's row is inserted and deleted within its run: a small table, which would be many times its size before the
    default is reached. The history loses a day's rows to a purge: a fifth of it would be months of dead ones.
    """
    op.execute(
        f"alter table {schema}.node_runs set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)"
    )
    for table in ("executions", "execution_metadata", "idempotency_keys", "node_results", "logs", "spans", "events"):
        op.execute(
            f"alter table {schema}.{table} set (autovacuum_vacuum_scale_factor = 0.02,"
            f" autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02)"
        )


def _schema() -> str | None:
    schema: str | None = context.config.attributes["schema"]
    return schema


def _qualified(column: str) -> str:
    schema = _schema()
    return column if schema is None else f"{schema}.{column}"


def _column(name: str, type_: Any, *parts: Any, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, type_, *parts, nullable=nullable)


def _optional(name: str, type_: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=True)


def _table(name: str, key: tuple[str, ...], *columns: sa.Column[Any], clustered: bool = False) -> sa.Table:
    options: dict[str, Any] = {"sqlite_with_rowid": False} if clustered else {}
    return op.create_table(name, *columns, sa.PrimaryKeyConstraint(*key), schema=_schema(), **options)


def _index(name: str, table: str, *columns: str, where: str | None = None) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(
        name, table, list(columns), schema=_schema(), sqlite_where=condition, postgresql_where=condition
    )  # fmt: skip


def _create_workflows() -> None:
    state = _table(
        "store_state", ("one",),
        _column("one", sa.Integer()),
        _column("store_id", sa.Text()),
        _column("epoch", sa.BigInteger()),
        _optional("redis_run_id", sa.Text()),
    )  # fmt: skip
    op.bulk_insert(state, [{"one": 1, "store_id": str(uuid.uuid4()), "epoch": 0}])
    _table(
        "workflows", ("id",),
        _column("id", NAME),
        _column("active", sa.Boolean()),
        _column("latest_version", sa.Integer()),
        _column("created_at", INSTANT),
        _column("updated_at", INSTANT),
    )  # fmt: skip
    _table(
        "workflow_versions", ("workflow_id", "version"),
        _column("workflow_id", NAME),
        _column("version", sa.Integer()),
        _column("name", sa.Text()),
        _column("definition", sa.Text()),
        _column("digest", sa.Text()),
        _column("sinks", sa.Integer()),
        _optional("change_notes", sa.Text()),
        _optional("created_by", sa.Text()),
        _column("created_at", INSTANT),
    )  # fmt: skip
    _table(
        "workflow_edges", ("source", "workflow_id", "version", "target"),
        _column("source", NAME),
        _column("workflow_id", NAME),
        _column("version", sa.Integer()),
        _column("target", NAME),
        _column("kind", sa.Text()),
        _column("target_type", sa.Text()),
        _column("target_queue", sa.Text()),
        _column("target_inputs", sa.Integer()),
        clustered=True,
    )  # fmt: skip
    _index("workflow_edges_target", "workflow_edges", "target", "workflow_id", "version")


def _create_executions() -> None:
    _table(
        "executions", ("id",),
        _column("id", ID),
        _column("workflow_id", NAME),
        _column("version", sa.Integer()),
        _column("status", sa.Text()),
        _column("revision", sa.Integer()),
        _column("priority", sa.Text()),
        _column("input", sa.Text()),
        _optional("error", sa.Text()),
        _column("metadata", sa.Text()),
        sa.Column("parent_id", ID, sa.ForeignKey(_qualified("executions.id")), nullable=True),
        _optional("parent_node_id", NAME),
        _optional("parent_item", sa.Integer()),
        _optional("parent_fence", sa.BigInteger()),
        _column("depth", sa.Integer()),
        _optional("trace_parent", sa.Text()),
        _optional("trace_state", sa.Text()),
        _optional("caller_span_id", sa.Text()),
        _optional("deadline_seconds", sa.Float()),
        _column("created_at", INSTANT),
        _optional("started_at", INSTANT),
        _optional("ended_at", INSTANT),
        _optional("replay_of", ID),
        _optional("acknowledged_at", INSTANT),
    )  # fmt: skip
    _index("executions_created", "executions", "created_at", "id")
    _index("executions_workflow", "executions", "workflow_id", "created_at", "id")
    _index(
        "executions_not_completed", "executions", "status", "created_at", "id", "workflow_id", "parent_id",
        where="status <> 'completed'",
    )  # fmt: skip
    _index(
        "executions_parent", "executions", "parent_id", "created_at", "id", "workflow_id", "status",
        where="parent_id is not null",
    )  # fmt: skip
    _index("executions_ended", "executions", "status", "ended_at", "id", "parent_id", where="ended_at is not null")
    _index(
        "executions_acknowledged", "executions", "created_at", "id", "workflow_id", "status", "parent_id",
        where="acknowledged_at is not null",
    )  # fmt: skip
    _index(
        "executions_to_acknowledge", "executions", "created_at", "id", "workflow_id", "parent_id",
        where="status = 'failed' and acknowledged_at is null",
    )  # fmt: skip
    _table(
        "execution_metadata", ("execution_id", "key"),
        _column("execution_id", ID),
        _column("key", sa.Text()),
        _column("value", sa.Text()),
        _column("created_at", INSTANT),
        _column("workflow_id", NAME),
        clustered=True,
    )  # fmt: skip
    _index(
        "execution_metadata_pair", "execution_metadata", "key", "value", "created_at", "execution_id", "workflow_id"
    )  # fmt: skip
    _table(
        "idempotency_keys", ("workflow_id", "key"),
        _column("workflow_id", NAME),
        _column("key", sa.Text()),
        _column("input_hash", sa.Text()),
        _column("execution_id", ID),
        _optional("expires_at", INSTANT),
        clustered=True,
    )  # fmt: skip
    _index("idempotency_keys_execution", "idempotency_keys", "execution_id")
    _index("idempotency_keys_expiry", "idempotency_keys", "expires_at", where="expires_at is not null")


def _create_node_runs() -> None:
    key = ("execution_id", "node_id", "item")
    _table(
        "node_runs", key,
        _column("execution_id", ID),
        _column("node_id", NAME),
        _column("item", sa.Integer()),
        _column("status", sa.Text()),
        _column("node_type", sa.Text()),
        _column("queue", sa.Text()),
        _column("priority", sa.Text()),
        _column("pending", sa.Integer()),
        _column("taken", sa.Integer()),
        _column("fence", sa.BigInteger()),
        _column("attempt", sa.Integer()),
        _column("recovery_attempts", sa.Integer()),
        _optional("worker_id", sa.Text()),
        _optional("claim_reference", sa.Text()),
        _optional("wait_kind", sa.Text()),
        _optional("wait_key", sa.Text()),
        _optional("items", sa.Integer()),
        _optional("max_concurrency", sa.Integer()),
        _optional("tolerated_failures", sa.Integer()),
        _optional("next_item", sa.Integer()),
        _optional("span", sa.Text()),
        _optional("due_at", INSTANT),
        _column("push", sa.Integer()),
        _column("pushed_epoch", sa.BigInteger()),
        _optional("pushed_at", INSTANT),
        _optional("started_at", INSTANT),
        clustered=True,
    )  # fmt: skip
    _index("node_runs_due", "node_runs", "due_at", where="due_at is not null")
    _index("node_runs_worker", "node_runs", "worker_id", where="worker_id is not null")
    _index("node_runs_pushed", "node_runs", "pushed_epoch", where="status = 'queued'")
    _table(
        "node_results", key,
        _column("execution_id", ID),
        _column("node_id", NAME),
        _column("item", sa.Integer()),
        _column("node_type", sa.Text()),
        _column("status", sa.Text()),
        _optional("data", sa.Text()),
        _optional("error", sa.Text()),
        _optional("taken", sa.Text()),
        _column("arrived", sa.Boolean()),
        _column("attempt", sa.Integer()),
        _column("recovery_attempts", sa.Integer()),
        _column("fence", sa.BigInteger()),
        _column("push", sa.Integer()),
        _optional("worker_id", sa.Text()),
        _optional("span", sa.Text()),
        _optional("span_start_ns", sa.BigInteger()),
        _optional("span_end_ns", sa.BigInteger()),
        _optional("span_attributes", sa.Text()),
        _optional("span_links", sa.Text()),
        _optional("started_at", INSTANT),
        _column("ended_at", INSTANT),
    )  # fmt: skip
    _table(
        "node_items", key,
        _column("execution_id", ID),
        _column("node_id", NAME),
        _column("item", sa.Integer()),
        _column("data", sa.Text()),
        clustered=True,
    )  # fmt: skip
    _table(
        "workers", ("id",),
        _column("id", sa.Text()),
        _column("name", sa.Text()),
        _column("host", sa.Text()),
        _column("pid", sa.Integer()),
        _column("queues", sa.Text()),
        _column("started_at", INSTANT),
        _column("lease_until", INSTANT),
        _optional("released_at", INSTANT),
        _optional("spans_confirmed_at", INSTANT),
        _optional("spans_exporter", sa.Text()),
        _optional("spans_cursor", sa.Text()),
    )  # fmt: skip


def _create_history() -> None:
    _table(
        "logs", ("execution_id", "id"),
        _column("execution_id", ID),
        _column("id", SERIAL, sa.Identity()),
        _optional("node_id", NAME),
        _column("item", sa.Integer()),
        _column("attempt", sa.Integer()),
        _column("level", sa.Text()),
        _column("message", sa.Text()),
        _column("fields", sa.Text()),
        _column("at", INSTANT),
        _optional("trace_id", sa.Text()),
        _optional("span_id", sa.Text()),
        clustered=True,
    )  # fmt: skip
    _table(
        "spans", ("execution_id", "span_id"),
        _column("execution_id", ID),
        _column("span_id", sa.Text()),
        _column("trace_id", sa.Text()),
        _optional("parent_span_id", sa.Text()),
        _optional("node_id", NAME),
        _column("item", sa.Integer()),
        _column("attempt", sa.Integer()),
        _column("name", sa.Text()),
        _column("kind", sa.Text()),
        _column("status", sa.Text()),
        _column("start_ns", sa.BigInteger()),
        _optional("end_ns", sa.BigInteger()),
        _column("attributes", sa.Text()),
        _column("links", sa.Text()),
        clustered=True,
    )  # fmt: skip
    _table(
        "events", ("execution_id", "seq"),
        _column("execution_id", ID),
        _column("seq", SERIAL, sa.Identity()),
        _optional("xid", sa.BigInteger()),
        _column("kind", sa.Text()),
        _optional("node_id", NAME),
        _column("item", sa.Integer()),
        _optional("attempt", sa.Integer()),
        _optional("worker_id", sa.Text()),
        _optional("data", sa.Text()),
        _column("at", INSTANT),
        clustered=True,
    )  # fmt: skip
