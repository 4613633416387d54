"""Statements of transactions: written once in Postgres' SQL, and rendered for each dialect.

- `:name` is a parameter, and `{s}` the qualifier of a table.
- SQLite has no row locks: their clauses are left out.
- SQLite has no arrays: `= ANY(:ids::uuid[])` becomes a look-up in a JSON list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

from spanloom.stores.schema import ATTEMPT, executions, node_results, node_runs

__all__ = [
    "ARRIVE",
    "EXECUTION",
    "HEADER",
    "IS_LIVE",
    "KEEP_SPANS",
    "RESULT",
    "RUN",
    "for_postgres",
    "for_sqlite",
    "insert",
    "update_of",
]

_ARRAY = re.compile(r"= ANY\((:\w+)::\w+\[\]\)")
_LOCK = re.compile(r"\s+FOR (?:NO KEY UPDATE|UPDATE|SHARE)(?: OF \w+)?(?: SKIP LOCKED)?")
_CAST = re.compile(r"::\w+")
_PARAMETER = re.compile(r"(?<!:):(\w+)")


class SqliteStatement(NamedTuple):
    """A statement for sqlite3."""

    text: str
    values: Callable[[Mapping[str, Any]], Sequence[Any]]  # its parameters by position: by name they cost twice as much


@cache
def for_sqlite(statement: str) -> SqliteStatement:
    """Render a statement for sqlite3."""
    text = _LOCK.sub("", _ARRAY.sub(r"IN (SELECT value FROM json_each(\1))", statement))
    text = _CAST.sub("", text).replace("{s}", "")
    lists = {name.removeprefix(":") for name in _ARRAY.findall(statement)}
    return SqliteStatement(
        _PARAMETER.sub("?", text),
        _values(_PARAMETER.findall(text), lists),
    )


def _values(names: Sequence[str], lists: Collection[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """Return a function that returns the values of these names, in this order. Lists become JSON."""
    if len(names) > 1 and not lists:
        return itemgetter(*names)
    return lambda given: [json.dumps(given[name]) if name in lists else given[name] for name in names]


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
RESULT_WITHOUT_DATA = ", ".join("NULL" if name == "data" else name for name in RESULT_COLUMNS)

assert set(EXECUTION_COLUMNS) <= set(executions.columns.keys())


@cache
def insert(table: str, columns: tuple[str, ...], conflict: str = "") -> str:
    """Return the text of an insert of one row."""
    values = ", ".join(f":{name}" for name in columns)
    return f"INSERT INTO {{s}}{table} ({', '.join(columns)}) VALUES ({values}) {conflict}"


#: Keeps the spans of results that are about to be deleted: `{condition}` selects the results.
KEEP_SPANS = f"""
INSERT INTO {{s}}spans (
    execution_id, span_id, trace_id, parent_span_id, node_id, item, attempt, name, kind, status, start_ns, end_ns,
    attributes, links
)
SELECT execution_id, span, coalesce(substr(trace_parent, 4, 32), ''), substr(trace_parent, 37, 16), node_id, item,
    attempt, '', '{ATTEMPT}', outcome, span_start_ns, span_end_ns, span_attributes, span_links
FROM (
    SELECT *, status AS outcome FROM {{s}}node_results
    WHERE {{condition}} AND span IS NOT NULL AND span_start_ns IS NOT NULL
) r
JOIN {{s}}executions x ON x.id = execution_id
WHERE true  -- SQLite reads "ON CONFLICT" as a part of the join else
ON CONFLICT DO NOTHING
"""

#: Whether a worker's lease is live. SQLite binds the parameters of these three by position, in their order here.
IS_LIVE = "SELECT 1 FROM {s}workers WHERE id = :id AND released_at IS NULL AND lease_until > :now"

#: The columns that a statement must select for the header of an execution, but those of its row.
HEADER = "id, input, metadata, trace_parent, trace_state, caller_span_id"

#: Counts arrivals at a run, and inserts the run at the first; columns in `returning` are not those of the new row.
ARRIVE = insert(
    "node_runs",
    RUN_COLUMNS,
    "ON CONFLICT (execution_id, node_id, item) DO UPDATE SET pending = node_runs.pending - :arrivals, "
    "taken = node_runs.taken + excluded.taken, claim_reference = excluded.claim_reference "
    f"RETURNING {', '.join(f'node_runs.{name}' for name in RUN_COLUMNS)}",
)


@cache
def update_of(table: str, columns: tuple[str, ...], where: str, returning: str = "", also: str = "") -> str:
    """Return the text of an update of some columns. `also` is a further assignment."""
    assignments = [*(f"{name} = :{name}" for name in columns), *([also] if also else [])]
    ending = f" RETURNING {returning}" if returning else ""
    return f"UPDATE {{s}}{table} SET {', '.join(assignments)} WHERE {where}{ending}"


def placeholders(names: Iterable[str]) -> str:
    """Return the text of parameters, separated by commas."""
    return ", ".join(f":{name}" for name in names)
