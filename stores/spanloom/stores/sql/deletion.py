"""Statements that delete everything of executions: one for each table that names an execution, by the metadata."""

from __future__ import annotations

from functools import cache

from spanloom.stores.schema import idempotency_keys, metadata

__all__ = ["DELETE_EXECUTIONS", "DELETE_KEYS", "delete_statements"]

DELETE_EXECUTIONS = "DELETE FROM {s}executions WHERE id = ANY(:ids::uuid[])"
DELETE_KEYS = "DELETE FROM {s}idempotency_keys WHERE execution_id = ANY(:ids::uuid[]) RETURNING 1"


@cache
def delete_statements() -> tuple[str, ...]:
    """Return statements over `:ids` for all tables that name an execution, but keys, which are counted."""
    return tuple(
        f"DELETE FROM {{s}}{table.name} WHERE execution_id = ANY(:ids::uuid[])"
        for table in metadata.sorted_tables
        if "execution_id" in table.columns and table is not idempotency_keys
    )
