"""The database that tests run on refuses what states.py does not have, so that they hold Postgres' functions to it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import EXECUTION_TRANSITIONS, NODE_TRANSITIONS, ExecutionStatus, NodeStatus
from spanloom.stores import open_store
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain

pytestmark = pytest.mark.services


@pytest.fixture
def connection(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url) as connection:
        yield connection


@pytest.fixture
def store(postgres_url: str) -> Iterator[ExecutionStore]:
    store = open_store(postgres_url)
    store.open()
    yield store
    store.close()


def _allowed(connection: psycopg.Connection, statement: str, *values: object) -> bool:
    try:
        with connection.transaction(force_rollback=True):
            assert connection.execute(statement, values).rowcount == 1
    except psycopg.errors.RaiseException:
        return False
    return True


def _set_status(connection: psycopg.Connection, table: str, key: str, status: str) -> None:
    """Put a row into a status, whatever it was in before."""
    connection.execute("set session_replication_role = replica")  # no trigger fires
    connection.execute(f"update spanloom.{table} set status = %s where {key}", [status])
    connection.execute("set session_replication_role = origin")


def test_an_execution_takes_only_the_steps_of_the_table(store: ExecutionStore, connection: psycopg.Connection) -> None:
    key = f"id = '{StoreDriver(store).start(chain(1))}'"
    update = f"update spanloom.executions set status = %s where {key}"
    for old in ExecutionStatus:
        _set_status(connection, "executions", key, old)
        allowed = {new for new in ExecutionStatus if _allowed(connection, update, new.value)}
        assert allowed == {old, *EXECUTION_TRANSITIONS[old]}


def test_a_node_run_takes_only_the_steps_of_the_table(store: ExecutionStore, connection: psycopg.Connection) -> None:
    key = f"execution_id = '{StoreDriver(store).start(chain(1))}' and node_id = 'n1'"
    connection.execute(f"update spanloom.node_runs set worker_id = 'w' where {key}")  # nobody's may be an operator's
    update = f"update spanloom.node_runs set status = %s where {key}"
    for old in NodeStatus:
        _set_status(connection, "node_runs", key, old)
        allowed = {new for new in NodeStatus if _allowed(connection, update, new.value)}
        assert allowed == {old, *NODE_TRANSITIONS[old]}


def test_a_node_run_ends_only_as_the_table_has_it(store: ExecutionStore, connection: psycopg.Connection) -> None:
    key = f"execution_id = '{StoreDriver(store).start(chain(1))}' and node_id = 'n1'"
    end = f"""
        with ended as (delete from spanloom.node_runs where {key} returning *)
        insert into spanloom.node_results (
            execution_id, node_id, item, node_type, status, arrived, attempt, recovery_attempts, fence, push, ended_at
        )
        select execution_id, node_id, item, node_type, %s, true, 1, 0, 0, 1, now() from ended
    """
    for old in [status for status in NodeStatus if not status.ended]:
        _set_status(connection, "node_runs", key, old)
        allowed = {new for new in NodeStatus if new.ended and _allowed(connection, end, new.value)}
        assert allowed == {new for new in NODE_TRANSITIONS[old] if new.ended}
