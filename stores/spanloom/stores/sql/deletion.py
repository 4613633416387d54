"""Statements that delete everything of executions: one for each table that names an execution, by the metadata."""

from __future__ import annotations

from functools import cache

from spanloom.stores.schema import execution_metadata, idempotency_keys, metadata

__all__ = ["DELETE_EXECUTIONS", "DELETE_KEYS", "delete_statements"]

DELETE_EXECUTIONS = "DELETE FROM {s}executions WHERE id = ANY(:ids::uuid[])"
DELETE_KEYS = "DELETE FROM {s}idempotency_keys WHERE execution_id = ANY(:ids::uuid[]) RETURNING 1"

# Deleted otherwise: a key by its name, metadata by the pairs that are stored with the execution.
_FOUND_OTHERWISE = (idempotency_keys, execution_metadata)


@cache
def delete_statements() -> tuple[str, ...]:
    """Return statements over `:ids` for all tables that name an execution, but keys and metadata."""
    return tuple(
        f"DELETE FROM {{s}}{table.name} WHERE execution_id = ANY(:ids::uuid[])"
        for table in metadata.sorted_tables
        if "execution_id" in table.columns and table not in _FOUND_OTHERWISE
    )
