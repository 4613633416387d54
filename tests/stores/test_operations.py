"""The operations of write transactions: what they run on each dialect, and that both answer them alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from spanloom.stores import InMemoryExecutionStore, PostgresExecutionStore
from spanloom.stores.postgres import transaction as postgres_transaction
from spanloom.stores.schema import to_micros
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
        assert _comparable(on_postgres[name]) == _comparable(in_memory[name]), name


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
    text, values = for_sqlite(statement)
    assert text == "SELECT x FROM t WHERE id IN (SELECT value FROM json_each(?)) AND n = ? ORDER BY id"
    assert values({"n": 1, "ids": ["a", "b"], "else": 2}) == ['["a", "b"]', 1]
    assert for_postgres(statement, "odd schema") == (
        b'SELECT x FROM "odd schema".t WHERE id = ANY(%(ids)s::uuid[]) AND n = %(n)s::integer '
        b"ORDER BY id FOR NO KEY UPDATE"
    )


@pytest.mark.parametrize(
    "lock", ["FOR UPDATE", "FOR SHARE", "FOR NO KEY UPDATE", "FOR UPDATE SKIP LOCKED", "FOR UPDATE OF n SKIP LOCKED"]
)
def test_every_kind_of_lock_is_left_out_on_sqlite(lock: str) -> None:
    rendered = for_sqlite(f"SELECT 1 FROM {{s}}t n WHERE a = (SELECT 2 {lock}) {lock}")
    assert rendered.text == "SELECT 1 FROM t n WHERE a = (SELECT 2)"


def test_parameters_of_sqlite_follow_their_places() -> None:
    given = {"a": 1, "b": 2}
    statements = ["SELECT :b, :a, :b", "SELECT :b", "SELECT 1"]
    assert [list(for_sqlite(statement).values(given)) for statement in statements] == [[2, 1, 2], [2], []]


def test_an_insert_and_an_update_name_their_columns() -> None:
    assert insert("t", ("a", "b"), "ON CONFLICT DO NOTHING") == (
        "INSERT INTO {s}t (a, b) VALUES (:a, :b) ON CONFLICT DO NOTHING"
    )
    assert update_of("t", ("a",), "id = :id", returning="b", also="n = n + 1") == (
        "UPDATE {s}t SET a = :a, n = n + 1 WHERE id = :id RETURNING b"
    )


def _comparable(answer: Any) -> Any:
    """Return an answer with every time in microseconds, the form in which SQLite keeps them."""
    if isinstance(answer, datetime):
        return to_micros(answer)
    if isinstance(answer, dict):
        return {key: _comparable(value) for key, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [_comparable(value) for value in answer]
    return answer


def _noted(patch: pytest.MonkeyPatch, module: Any, name: str, render: Callable[..., Any]) -> set[str]:
    """Note what is rendered for a dialect from now on."""
    rendered: set[str] = set()

    def noting(*given: str) -> Any:
        text = render(*given)
        rendered.add(text.decode() if isinstance(text, bytes) else text.text)
        return text

    patch.setattr(module, name, noting)
    return rendered
