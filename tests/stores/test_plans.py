"""The plans of lists, counts and purges: by indexes, in their order, so that a big store answers as a small one does.

A regression is seen on an empty store: other ways of reading are switched off, or other indexes are dropped, and what
then stands in the plan has no index to replace it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from spanloom.engine import ExecutionFilter, ExecutionStatus
from spanloom.engine.limits import MAX_METADATA_PAIRS
from spanloom.stores import InMemoryExecutionStore, PostgresExecutionStore
from spanloom.stores.postgres import transaction as postgres_transaction
from spanloom.stores.postgres.execution_read import execution_statement
from spanloom.stores.schema import executions
from spanloom.stores.sql.statements import for_postgres

NOW = datetime(2026, 12, 1, tzinfo=UTC)
PARENT = "01a22fa5-9552-7035-b2e9-dd5eeabf0b8f"
#: Values of the fields of a filter; a field that can be on many executions, or on few, has both.
VALUES: tuple[tuple[str, object], ...] = (
    ("workflow_id", "orders"),
    ("status", ExecutionStatus.COMPLETED),
    ("status", ExecutionStatus.FAILED),
    ("status", ExecutionStatus.CANCELLED),
    ("status", ExecutionStatus.RUNNING),
    ("parent_execution_id", PARENT),
    ("root", True),
    ("root", False),
    ("acknowledged", True),
    ("acknowledged", False),
    ("created_after", NOW - timedelta(days=9)),
    ("created_before", NOW - timedelta(days=1)),
    ("metadata", {"region": "eu"}),
    ("metadata", {"region": "eu", "tier": "gold"}),
)
FILTERS = [
    ExecutionFilter.model_validate(dict(some))
    for size in (0, 1, 2)
    for some in combinations(VALUES, size)
    if len({name for name, _ in some}) == size
]
#: Filters whose executions are counted without looking at any of them.
COUNTED_BY_INDEXES = [
    ExecutionFilter.model_validate(fields)
    for fields in (
        {},
        {"workflow_id": "orders"},
        *({"status": status} for status in ExecutionStatus),
        {"parent_execution_id": PARENT},
        {"root": True},
        {"root": False},
        {"acknowledged": True},
        {"acknowledged": False},
        {"created_after": NOW},
        {"created_after": NOW, "created_before": NOW},
        {"metadata": {"region": "eu"}},
        {"metadata": {"region": "eu", "tier": "gold"}, "created_before": NOW},
        {"workflow_id": "orders", "created_after": NOW},
        {"workflow_id": "orders", "status": "completed"},
        {"workflow_id": "orders", "status": "failed", "created_before": NOW},
        {"workflow_id": "orders", "status": "completed", "created_before": NOW},
        {"status": "completed", "root": True},
        {"status": "completed", "created_before": NOW},
        {"status": "failed", "acknowledged": False},
    )
]
#: For each index of executions a filter whose list it serves by itself, in its order.
SERVED = {
    "executions_created": {"created_before": NOW},
    "executions_workflow": {"workflow_id": "orders", "created_before": NOW},
    "executions_not_completed": {"status": "cancelled", "created_before": NOW},
    "executions_parent": {"parent_execution_id": PARENT, "created_before": NOW},
    "executions_acknowledged": {"acknowledged": True, "created_before": NOW},
    "executions_to_acknowledge": {"status": "failed", "acknowledged": False, "created_before": NOW},
}
Sent = list[tuple[str, Any]]


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[PostgresExecutionStore]:
    store = PostgresExecutionStore(postgres_url)
    yield store
    store.close()


@pytest.fixture
def sqlite() -> Iterator[InMemoryExecutionStore]:
    store = InMemoryExecutionStore()
    yield store
    store.close()


def _sent(store: Any, call: str, filter: ExecutionFilter) -> tuple[str, Any]:
    """Return the statement, with its parameters, that a list or a count sends first."""
    sent: Sent = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    with store._reading() as connection:
        engine = connection.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        getattr(store, call)(filter)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return next((statement, parameters) for statement, parameters in sent if "execution" in statement)


def _sqlite_plan(store: InMemoryExecutionStore, call: str, filter: ExecutionFilter) -> list[str]:
    statement, parameters = _sent(store, call, filter)
    with store._reading() as connection:
        rows = connection.exec_driver_sql(f"explain query plan {statement}", parameters).all()
    return [row[3] for row in rows]


def test_sqlite_lists_by_an_index_in_its_order(sqlite: InMemoryExecutionStore) -> None:
    sqlite.migrate()
    for filter in FILTERS:
        plan = _sqlite_plan(sqlite, "list_executions", filter)
        if filter.metadata and "pair" not in plan[0]:
            # It has no statistics, and takes another index than that of metadata if there is one: what it finds is
            # then sorted.
            plan.remove("USE TEMP B-TREE FOR ORDER BY")
        assert not [step for step in plan if "TEMP B-TREE" in step or " USING " not in step], (filter, plan)


def test_sqlite_counts_by_indexes(sqlite: InMemoryExecutionStore) -> None:
    sqlite.migrate()
    for filter in FILTERS:
        steps = [step for step in _sqlite_plan(sqlite, "get_execution_count", filter) if "executions" in step]
        assert not [step for step in steps if " USING " not in step], (filter, steps)


def test_sqlite_counts_what_it_subtracts_by_the_index_of_the_few(sqlite: InMemoryExecutionStore) -> None:
    sqlite.migrate()
    filter = ExecutionFilter(workflow_id="orders", status=ExecutionStatus.COMPLETED, root=True, created_before=NOW)
    steps = [step for step in _sqlite_plan(sqlite, "get_execution_count", filter) if "executions" in step]
    assert len(steps) == 4
    assert not [step for step in steps if "COVERING INDEX" not in step]
    assert ["executions_workflow" in step for step in steps] == [True, False, False, False]


@pytest.mark.services
def test_postgres_lists_by_an_index_in_its_order(postgres: PostgresExecutionStore) -> None:
    postgres.open()
    for filter in FILTERS:
        plan = _postgres_plan(postgres, "list_executions", filter, off=("seqscan", "sort", "bitmapscan"))
        assert not [step for step in plan if "Seq Scan" in step or "Sort" in step], (filter, plan)


@pytest.mark.services
@pytest.mark.parametrize("index", SERVED)
def test_postgres_lists_in_the_order_of_the_only_index_that_it_has(
    postgres: PostgresExecutionStore, index: str
) -> None:
    filter = ExecutionFilter.model_validate(SERVED[index])
    others = [str(one.name) for one in executions.indexes if one.name != index]
    plan = _postgres_plan(postgres, "list_executions", filter, off=("seqscan", "sort", "bitmapscan"), dropped=others)
    assert any(index in step for step in plan), plan
    assert not [step for step in plan if "Sort" in step or "Filter: (created_at" in step], plan


@pytest.mark.services
def test_postgres_counts_by_indexes_alone(postgres: PostgresExecutionStore) -> None:
    for filter in COUNTED_BY_INDEXES:
        plan = _postgres_plan(postgres, "get_execution_count", filter, off=("seqscan", "bitmapscan"))
        scans = [step for step in plan if " Scan " in step]
        assert scans, plan
        assert not [step for step in scans if "Index Only Scan" not in step], (filter, plan)


@pytest.mark.services
def test_postgres_joins_the_first_pairs_of_metadata_and_looks_up_the_others(postgres: PostgresExecutionStore) -> None:
    filter = ExecutionFilter(metadata={f"key {number}": "value" for number in range(MAX_METADATA_PAIRS)})
    plan = _postgres_plan(postgres, "list_executions", filter, off=("seqscan", "bitmapscan"))
    looked_up = [step for step in plan if "SubPlan" in step and "Filter" not in step]
    assert len(looked_up) > MAX_METADATA_PAIRS - 9  # planning a join of all takes seconds
    assert not [step for step in plan if "Seq Scan" in step], plan


@pytest.mark.services
def test_postgres_plans_each_list_and_count_for_its_values(postgres: PostgresExecutionStore) -> None:
    with postgres.transaction():  # of one connection
        for _ in range(12):
            postgres.list_executions(ExecutionFilter(workflow_id="orders", metadata={"region": "eu"}))
            postgres.get_execution_count(ExecutionFilter(workflow_id="orders", status=ExecutionStatus.COMPLETED))
            postgres.get_child_executions(PARENT)
        with postgres._reading() as connection:
            prepared = connection.exec_driver_sql("select statement from pg_prepared_statements").scalars().all()
    assert [statement for statement in prepared if "parent_id = " in statement]
    assert not [statement for statement in prepared if "workflow_id = " in statement]


@pytest.mark.services
def test_postgres_purges_by_indexes_whatever_is_in_the_tables(
    postgres: PostgresExecutionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []

    def note(statement: str, schema: str) -> bytes:
        statements.append(statement)
        return for_postgres(statement, schema)

    monkeypatch.setattr(postgres_transaction, "for_postgres", note)
    postgres._transact(lambda tx: [tx.lock_families([PARENT]), tx.lock_keys([PARENT]), tx.delete_executions([PARENT])])
    postgres.purge_executions(ended_before=NOW, statuses=[ExecutionStatus.COMPLETED])
    given = {"ids": [PARENT], "status": "completed", "until": NOW, "limit": 9, "now": NOW}
    assert len(statements) > 5
    with postgres._writing() as connection:
        connection.exec_driver_sql("set local enable_seqscan = off")
        for statement in statements:
            rendered = for_postgres(statement, "spanloom").decode()
            plan = [row[0] for row in connection.exec_driver_sql(f"explain {rendered}", given)]
            assert not [step for step in plan if "Seq Scan" in step], plan


def _postgres_plan(
    store: PostgresExecutionStore,
    call: str,
    filter: ExecutionFilter,
    *,
    off: tuple[str, ...],
    dropped: Sequence[str] = (),
) -> list[str]:
    statement, parameters = _sent(store, call, filter)
    with store._reading() as lent:
        connection: psycopg.Connection[Any] = lent.connection.driver_connection
        with connection.transaction(force_rollback=True):
            for way in off:
                connection.execute(f"set local enable_{way} = off".encode())
            for index in dropped:
                connection.execute(f'drop index "spanloom"."{index}"'.encode())
            return [row[0] for row in connection.execute(f"explain {statement}".encode(), parameters)]


def test_the_output_of_an_execution_is_read_by_one_look_up_per_sink(postgres_url: str) -> None:
    statement = execution_statement("spanloom").replace("%s::bigint", "$1").replace("%s::uuid", "$2")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("set plan_cache_mode = force_generic_plan")
        connection.execute(f"prepare reading (bigint, uuid) as {statement}".encode())
        plan = connection.execute(f"explain execute reading (1, '{PARENT}')".encode()).fetchall()
    assert any("node_id = e.source" in line and "Index Cond" in line for (line,) in plan), plan
