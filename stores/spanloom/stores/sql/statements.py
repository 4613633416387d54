"""Statements of transactions: written once in Postgres' SQL, and rendered for each dialect.

- `:name` is a parameter, and `{s}` the qualifier of a table.
- SQLite has no row locks: their clauses are left out.
- SQLite has no arrays: `= ANY(:ids::uuid[])` becomes a look-up in a JSON list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from spanloom.stores.schema import executions, node_results, node_runs

__all__ = ["EXECUTION", "RESULT", "RUN", "for_postgres", "for_sqlite", "insert", "update_of"]

_ARRAY = re.compile(r"= ANY\((:\w+)::\w+\[\]\)")
_LOCK = re.compile(r"\s+FOR (?:NO KEY UPDATE|UPDATE|SHARE)(?: OF \w+)?(?: SKIP LOCKED)?")
_CAST = re.compile(r"::\w+")
_PARAMETER = re.compile(r"(?<!:):(\w+)")


@cache
def for_sqlite(statement: str) -> str:
    """Render a statement for sqlite3, whose named parameters have the same form."""
    text = _LOCK.sub("", _ARRAY.sub(r"IN (SELECT value FROM json_each(\1))", statement))
    return _CAST.sub("", text).replace("{s}", "")


@cache
def for_postgres(statement: str, schema: str) -> bytes:
    """Render a statement for psycopg."""
    return _PARAMETER.sub(r"%(\1)s", statement.replace("{s}", f'"{schema}".')).encode()


EXECUTION_COLUMNS = (
    "id", "workflow_id", "version", "status", "revision", "priority", "parent_id", "parent_node_id", "parent_item",
    "parent_fence", "depth", "deadline_seconds", "created_at", "ended_at", "acknowledged_at",
)  # fmt: skip
RUN_COLUMNS = tuple(column.name for column in node_runs.columns)
RESULT_COLUMNS = tuple(column.name for column in node_results.columns)

#: The columns that a statement must select, or return, for the row of that name.
EXECUTION = ", ".join(EXECUTION_COLUMNS)
RUN = ", ".join(RUN_COLUMNS)
RESULT = ", ".join(RESULT_COLUMNS)

assert set(EXECUTION_COLUMNS) <= set(executions.columns.keys())


@cache
def insert(table: str, columns: tuple[str, ...], conflict: str = "") -> str:
    """Return the text of an insert of one row."""
    values = ", ".join(f":{name}" for name in columns)
    return f"INSERT INTO {{s}}{table} ({', '.join(columns)}) VALUES ({values}) {conflict}"


@cache
def update_of(table: str, columns: tuple[str, ...], where: str, returning: str = "", also: str = "") -> str:
    """Return the text of an update of some columns. `also` is a further assignment."""
    assignments = [*(f"{name} = :{name}" for name in columns), *([also] if also else [])]
    ending = f" RETURNING {returning}" if returning else ""
    return f"UPDATE {{s}}{table} SET {', '.join(assignments)} WHERE {where}{ending}"


def placeholders(names: Iterable[str]) -> str:
    """Return the text of parameters, separated by commas."""
    return ", ".join(f":{name}" for name in names)
