"""The tables of every SQL store (SQLAlchemy Core).

- Hot and cold rows are apart: open node runs leave their small table when they end.
- Times are microseconds since 1970 in UTC on SQLite, and timestamptz on Postgres.
- Ids are text on SQLite, and uuid on Postgres.
- Payloads are text, never jsonb.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

__all__ = [
    "ATTEMPT",
    "EXECUTIONS_ACKNOWLEDGED",
    "EXECUTIONS_CHILDREN",
    "EXECUTIONS_ENDED",
    "EXECUTIONS_NOT_COMPLETED",
    "EXECUTIONS_TO_ACKNOWLEDGE",
    "FENCES_A_REVISION",
    "SCHEMA_VERSION",
    "from_micros",
    "metadata",
    "to_micros",
]

SCHEMA_VERSION = "0001"  #: the Alembic revision that this release reads and writes

#: A run's fence begins at its execution's revision times this, so that a run that a retry resets is never claimed under
#: a fence that was used before.
FENCES_A_REVISION = 1 << 20

#: The kind of a span in short form: `status` is the outcome, and reads derive the name and the common attributes.
ATTEMPT = "attempt"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime: timestamptz, or integer microseconds where there is none."""

    impl = sa.BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(sa.DateTime(timezone=True) if dialect.name == "postgresql" else sa.BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else to_micros(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if dialect.name == "postgresql" else from_micros(value)


def to_micros(value: datetime) -> int:
    """Return whole microseconds since 1970."""
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(value: int) -> datetime:
    """Return the datetime of whole microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=value)


Id = sa.Uuid(as_uuid=False).with_variant(sa.Text(), "sqlite")
Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # sorts by bytes everywhere, and compares faster
Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite has no identity: transitions number the rows

metadata = sa.MetaData()


def _table(name: str, *parts: Any) -> sa.Table:
    return sa.Table(name, metadata, *parts)


def _clustered(name: str, *parts: Any) -> sa.Table:
    # SQLite keeps such a table as one B-tree ordered by its key: half the writes of a row id beside a unique index.
    return sa.Table(name, metadata, *parts, sqlite_with_rowid=False)


def _column(name: str, type_: Any, *parts: Any, **options: Any) -> sa.Column[Any]:
    options.setdefault("nullable", False)
    return sa.Column(name, type_, *parts, **options)


def _index(name: str, where: sa.TextClause, *columns: str) -> sa.Index:
    return sa.Index(name, *columns, sqlite_where=where, postgresql_where=where)


store_state = _table(  # one row: the identity of this store, and the epoch of Redis
    "store_state",
    _column("one", sa.Integer, primary_key=True),
    _column("store_id", sa.Text),
    _column("epoch", sa.BigInteger),
    _column("redis_run_id", sa.Text, nullable=True),
)

workflows = _table(
    "workflows",
    _column("id", Name, primary_key=True),
    _column("active", sa.Boolean),
    _column("latest_version", sa.Integer),
    _column("created_at", Instant),
    _column("updated_at", Instant),
)

workflow_versions = _table(
    "workflow_versions",
    _column("workflow_id", Name, primary_key=True),
    _column("version", sa.Integer, primary_key=True),
    _column("name", sa.Text),
    _column("definition", sa.Text),
    _column("digest", sa.Text),
    _column("sinks", sa.Integer),  # the number of arrivals that $end waits for
    _column("change_notes", sa.Text, nullable=True),
    _column("created_by", sa.Text, nullable=True),
    _column("created_at", Instant),
)

workflow_edges = _clustered(  # derived from the definition when it is saved, for transitions
    "workflow_edges",
    _column("source", Name, primary_key=True),
    _column("workflow_id", Name, primary_key=True),
    _column("version", sa.Integer, primary_key=True),
    _column("target", Name, primary_key=True),
    _column("kind", sa.Text),  # success | failure | always
    _column("target_type", sa.Text),
    _column("target_queue", sa.Text),
    _column("target_inputs", sa.Integer),
    sa.Index("workflow_edges_target", "target", "workflow_id", "version"),
)

# The conditions of partial indexes, which queries repeat word for word: a parameter proves no condition.
EXECUTIONS_NOT_COMPLETED = sa.text("status <> 'completed'")
EXECUTIONS_ENDED = sa.text("ended_at is not null")
EXECUTIONS_CHILDREN = sa.text("parent_id is not null")
EXECUTIONS_ACKNOWLEDGED = sa.text("acknowledged_at is not null")
EXECUTIONS_TO_ACKNOWLEDGE = sa.text("status = 'failed' and acknowledged_at is null")

executions = _table(
    "executions",
    _column("id", Id, primary_key=True),
    _column("workflow_id", Name),
    _column("version", sa.Integer),
    _column("status", sa.Text),
    _column("revision", sa.Integer),
    _column("priority", sa.Text),
    _column("input", sa.Text),
    _column("error", sa.Text, nullable=True),
    _column("metadata", sa.Text),
    # No child without its parent: a deletion of executions can't leave half a family behind.
    _column("parent_id", Id, sa.ForeignKey("executions.id"), nullable=True),
    _column("parent_node_id", Name, nullable=True),
    _column("parent_item", sa.Integer, nullable=True),
    _column("parent_fence", sa.BigInteger, nullable=True),
    _column("depth", sa.Integer),
    _column("trace_parent", sa.Text, nullable=True),
    _column("trace_state", sa.Text, nullable=True),
    _column("caller_span_id", sa.Text, nullable=True),
    _column("deadline_seconds", sa.Float, nullable=True),
    _column("created_at", Instant),
    _column("started_at", Instant, nullable=True),
    _column("ended_at", Instant, nullable=True),
    _column("replay_of", Id, nullable=True),  # no key: the source may be purged before
    _column("acknowledged_at", Instant, nullable=True),
    # A list reads one of these in its order. A count reads indexes only: their last columns are there for it.
    sa.Index("executions_created", "created_at", "id"),
    sa.Index("executions_workflow", "workflow_id", "created_at", "id"),
    _index(
        "executions_not_completed", EXECUTIONS_NOT_COMPLETED, "status", "created_at", "id", "workflow_id", "parent_id"
    ),
    _index("executions_parent", EXECUTIONS_CHILDREN, "parent_id", "created_at", "id", "workflow_id", "status"),
    _index("executions_ended", EXECUTIONS_ENDED, "status", "ended_at", "id", "parent_id"),
    _index(
        "executions_acknowledged", EXECUTIONS_ACKNOWLEDGED, "created_at", "id", "workflow_id", "status", "parent_id"
    ),
    _index("executions_to_acknowledge", EXECUTIONS_TO_ACKNOWLEDGE, "created_at", "id", "workflow_id", "parent_id"),
)

execution_metadata = _clustered(  # to find executions by; reads return executions.metadata
    "execution_metadata",
    _column("execution_id", Id, primary_key=True),
    _column("key", sa.Text, primary_key=True),
    _column("value", sa.Text),
    _column("created_at", Instant),  # its execution's, as is the next: a list by metadata reads one index, in its order
    _column("workflow_id", Name),
    sa.Index("execution_metadata_pair", "key", "value", "created_at", "execution_id", "workflow_id"),
)

idempotency_keys = _clustered(
    "idempotency_keys",
    _column("workflow_id", Name, primary_key=True),
    _column("key", sa.Text, primary_key=True),
    _column("input_hash", sa.Text),
    _column("execution_id", Id),
    _column("expires_at", Instant, nullable=True),
    sa.Index("idempotency_keys_execution", "execution_id"),
    sa.Index(
        "idempotency_keys_expiry", "expires_at",
        sqlite_where=sa.text("expires_at is not null"), postgresql_where=sa.text("expires_at is not null"),
    ),
)  # fmt: skip

node_runs = _clustered(  # open ones only
    "node_runs",
    _column("execution_id", Id, primary_key=True),
    _column("node_id", Name, primary_key=True),
    _column("item", sa.Integer, primary_key=True),
    _column("status", sa.Text),
    _column("node_type", sa.Text),
    _column("queue", sa.Text),
    _column("priority", sa.Text),
    _column("pending", sa.Integer),  # inputs that have not arrived
    _column("taken", sa.Integer),  # arrived inputs whose edge was taken
    _column("fence", sa.BigInteger),
    _column("attempt", sa.Integer),
    _column("recovery_attempts", sa.Integer),
    _column("worker_id", sa.Text, nullable=True),
    # node/item/fence of the record that made it ready, until another claim: finds a lost answer's continuation
    _column("claim_reference", sa.Text, nullable=True),
    # the wait under way; of a run that is queued, held or running, the wait that it goes on from
    _column("wait_kind", sa.Text, nullable=True),
    _column("wait_key", sa.Text, nullable=True),
    # of a mapped node's run (item 0): its pending counts open items, its taken how many more may fail
    _column("items", sa.Integer, nullable=True),  # their number
    _column("max_concurrency", sa.Integer, nullable=True),
    _column("tolerated_failures", sa.Integer, nullable=True),
    _column("next_item", sa.Integer, nullable=True),  # all before it were started
    # of its latest recorded attempt: the span that the next attempt links to, or that goes on after a wait
    _column("span", sa.Text, nullable=True),
    _column("due_at", Instant, nullable=True),
    _column("push", sa.Integer),
    _column("pushed_epoch", sa.BigInteger),
    _column("pushed_at", Instant, nullable=True),
    _column("started_at", Instant, nullable=True),
    sa.Index(
        "node_runs_due", "due_at",
        sqlite_where=sa.text("due_at is not null"), postgresql_where=sa.text("due_at is not null"),
    ),
    sa.Index(
        "node_runs_worker", "worker_id",
        sqlite_where=sa.text("worker_id is not null"), postgresql_where=sa.text("worker_id is not null"),
    ),
    sa.Index(
        "node_runs_pushed", "pushed_epoch",
        sqlite_where=sa.text("status = 'queued'"), postgresql_where=sa.text("status = 'queued'"),
    ),
)  # fmt: skip

node_results = _table(  # ended ones
    "node_results",
    _column("execution_id", Id, primary_key=True),
    _column("node_id", Name, primary_key=True),
    _column("item", sa.Integer, primary_key=True),
    _column("node_type", sa.Text),
    _column("status", sa.Text),
    _column("data", sa.Text, nullable=True),
    _column("error", sa.Text, nullable=True),
    _column("taken", sa.Text, nullable=True),  # JSON list of targets; null: by each edge's kind
    _column("arrived", sa.Boolean),  # at its successors; false for a failure that is not handled, and when cancelled
    _column("attempt", sa.Integer),
    _column("recovery_attempts", sa.Integer),
    _column("fence", sa.BigInteger),
    _column("push", sa.Integer),
    _column("worker_id", sa.Text, nullable=True),
    # of the attempt that ended it, to which its successors link; with a start also its own span, in short form
    _column("span", sa.Text, nullable=True),
    _column("span_start_ns", sa.BigInteger, nullable=True),
    _column("span_end_ns", sa.BigInteger, nullable=True),
    _column("span_attributes", sa.Text, nullable=True),
    _column("span_links", sa.Text, nullable=True),
    _column("started_at", Instant, nullable=True),
    _column("ended_at", Instant),
)

node_items = _clustered(  # the items of mapped nodes, kept so that a retry can run an item again
    "node_items",
    _column("execution_id", Id, primary_key=True),
    _column("node_id", Name, primary_key=True),
    _column("item", sa.Integer, primary_key=True),
    _column("data", sa.Text),
)

workers = _table(
    "workers",
    _column("id", sa.Text, primary_key=True),
    _column("name", sa.Text),
    _column("host", sa.Text),
    _column("pid", sa.Integer),
    _column("queues", sa.Text),  # JSON list
    _column("started_at", Instant),
    _column("lease_until", Instant),
    _column("released_at", Instant, nullable=True),  # set by the sweep; a released lease can't be renewed
    # null: it exports no spans, or has exported all; else those that it recorded before this time
    _column("spans_confirmed_at", Instant, nullable=True),
    _column("spans_exporter", sa.Text, nullable=True),  # the worker that has taken over the rest
    _column("spans_cursor", sa.Text, nullable=True),  # how far that one has come
)

logs = _clustered(
    "logs",
    _column("execution_id", Id, primary_key=True),
    _column("id", Serial, sa.Identity(), primary_key=True),
    _column("node_id", Name, nullable=True),
    _column("item", sa.Integer),
    _column("attempt", sa.Integer),
    _column("level", sa.Text),
    _column("message", sa.Text),
    _column("fields", sa.Text),
    _column("at", Instant),
    _column("trace_id", sa.Text, nullable=True),
    _column("span_id", sa.Text, nullable=True),
)

spans = _clustered(
    "spans",
    _column("execution_id", Id, primary_key=True),
    _column("span_id", sa.Text, primary_key=True),
    _column("trace_id", sa.Text),
    _column("parent_span_id", sa.Text, nullable=True),
    _column("node_id", Name, nullable=True),
    _column("item", sa.Integer),
    _column("attempt", sa.Integer),
    _column("name", sa.Text),
    _column("kind", sa.Text),
    _column("status", sa.Text),
    _column("start_ns", sa.BigInteger),
    _column("end_ns", sa.BigInteger, nullable=True),
    _column("attributes", sa.Text),
    _column("links", sa.Text),
)

# The cursor is (xid, seq) on Postgres, where a lower seq may commit later, and seq on SQLite, which has one writer.
events = _clustered(
    "events",
    _column("execution_id", Id, primary_key=True),
    _column("seq", Serial, sa.Identity(), primary_key=True),
    _column("xid", sa.BigInteger, nullable=True),  # the writing transaction, where transactions overlap
    _column("kind", sa.Text),
    _column("node_id", Name, nullable=True),
    _column("item", sa.Integer),
    _column("attempt", sa.Integer, nullable=True),
    _column("worker_id", sa.Text, nullable=True),
    _column("data", sa.Text, nullable=True),
    _column("at", Instant),
)
