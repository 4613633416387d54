"""The operations of write transactions: what they run on each dialect, and that both answer them alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from spanloom.stores import InMemoryExecutionStore, PostgresExecutionStore
from spanloom.stores.postgres import transaction as postgres_transaction
from spanloom.stores.sql.statements import for_postgres, for_sqlite, insert, update_of
from spanloom.stores.sqlite import transaction as sqlite_transaction
from spanloom.stores.transitions.transaction import Transaction
from stores.operations import OPERATIONS, play

#: What only Postgres has: locks, arrays, casts; and what no rendered statement has.
_OF_POSTGRES = re.compile(r"\bFOR (UPDATE|SHARE|NO KEY)|SKIP LOCKED|\bANY\b|::|\{")
_LOCKS = re.compile(r"FOR (UPDATE|SHARE|NO KEY UPDATE)( OF n)? *$")


def test_all_operations_are_played() -> None:
    assert Transaction.__abstractmethods__ - {"epoch"} <= OPERATIONS.keys()


def test_what_runs_on_sqlite_has_no_lock_array_or_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = _noted(monkeypatch, sqlite_transaction, "for_sqlite", for_sqlite)
    play(InMemoryExecutionStore())
    assert len(rendered) > 40
    assert [statement for statement in rendered if _OF_POSTGRES.search(statement)] == []


@pytest.mark.services
def test_both_dialects_answer_every_operation_alike(postgres_url: str) -> None:
    store = PostgresExecutionStore(postgres_url)
    on_postgres, in_memory = play(store), play(InMemoryExecutionStore())
    store.close()
    for name in OPERATIONS:
        assert on_postgres[name] == in_memory[name], name


@pytest.mark.services
def test_what_waits_for_several_rows_on_postgres_locks_them_in_an_order(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    rendered = _noted(monkeypatch, postgres_transaction, "for_postgres", for_postgres)
    store = PostgresExecutionStore(postgres_url)
    play(store)
    store.close()
    locking = [statement for statement in rendered if _LOCKS.search(statement)]
    assert len(locking) > 2
    orders = ("ORDER BY id", "ORDER BY n.execution_id, n.node_id, n.item")
    assert [statement for statement in locking if not any(order in statement for order in orders)] == []


def test_a_statement_is_rendered_for_each_dialect() -> None:
    statement = "SELECT x FROM {s}t WHERE id = ANY(:ids::uuid[]) AND n = :n::integer ORDER BY id FOR NO KEY UPDATE"
    assert for_sqlite(statement) == (
        "SELECT x FROM t WHERE id IN (SELECT value FROM json_each(:ids)) AND n = :n ORDER BY id"
    )
    assert for_postgres(statement, "odd schema") == (
        b'SELECT x FROM "odd schema".t WHERE id = ANY(%(ids)s::uuid[]) AND n = %(n)s::integer '
        b"ORDER BY id FOR NO KEY UPDATE"
    )


@pytest.mark.parametrize(
    "lock", ["FOR UPDATE", "FOR SHARE", "FOR NO KEY UPDATE", "FOR UPDATE SKIP LOCKED", "FOR UPDATE OF n SKIP LOCKED"]
)
def test_every_kind_of_lock_is_left_out_on_sqlite(lock: str) -> None:
    assert for_sqlite(f"SELECT 1 FROM {{s}}t n WHERE a = (SELECT 2 {lock}) {lock}") == (
        "SELECT 1 FROM t n WHERE a = (SELECT 2)"
    )


def test_an_insert_and_an_update_name_their_columns() -> None:
    assert insert("t", ("a", "b"), "ON CONFLICT DO NOTHING") == (
        "INSERT INTO {s}t (a, b) VALUES (:a, :b) ON CONFLICT DO NOTHING"
    )
    assert update_of("t", ("a",), "id = :id", returning="b", also="n = n + 1") == (
        "UPDATE {s}t SET a = :a, n = n + 1 WHERE id = :id RETURNING b"
    )


def _noted(patch: pytest.MonkeyPatch, module: Any, name: str, render: Callable[..., Any]) -> set[str]:
    """Note what is rendered for a dialect from now on."""
    rendered: set[str] = set()

    def noting(*given: str) -> Any:
        text = render(*given)
        rendered.add(text if isinstance(text, str) else text.decode())
        return text

    patch.setattr(module, name, noting)
    return rendered
