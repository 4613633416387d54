"""The sizes of payloads, which are known without reading them, and the reads of those that fit into a limit."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from spanloom.engine.store.payloads import Payloads
from spanloom.stores.schema import executions, node_results
from spanloom.stores.sql.base import SqlStoreBase, canonical_id

__all__ = ["SqlPayloads", "fitting", "octet_length", "read_data", "read_inputs", "size_of"]

_KEYS_AT_ONCE = 500

Key = TypeVar("Key", bound=Hashable)


class octet_length(GenericFunction[int]):
    """The number of bytes of a text: on Postgres without reading it."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(octet_length, "sqlite")
def _sqlite_octet_length(element: octet_length, compiler: Any, **options: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"  # octet_length came with 3.43


class SqlPayloads(SqlStoreBase, Payloads):
    """The port's Payloads in SQLAlchemy Core."""

    def get_data_size(self, execution_id: str, node_ids: Sequence[str], *, items: bool = False) -> int:
        """See Payloads.get_data_size."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return 0
        parameters = {"execution_id": spelled, "node_ids": node_ids}
        with self._reading() as connection:
            return int(connection.scalars(_size_query(items=items), parameters).one() or 0)

    def get_data(self, execution_id: str, node_ids: Sequence[str]) -> dict[str, str]:
        """See Payloads.get_data."""
        spelled = canonical_id(execution_id)
        if spelled is None:
            return {}
        results = node_results.c
        query = sa.select(results.node_id, sa.func.coalesce(results.data, "null")).where(
            results.execution_id == spelled, results.node_id.in_(node_ids), results.item == 0
        )
        with self._reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}


@cache
def _size_query(*, items: bool) -> sa.Select[Any]:
    results = node_results.c
    node_ids: sa.BindParameter[Sequence[str]] = sa.bindparam("node_ids", expanding=True)
    return sa.select(sa.func.sum(octet_length(results.data))).where(
        results.execution_id == sa.bindparam("execution_id"),
        results.node_id.in_(node_ids),
        results.item > 0 if items else results.item == 0,
    )


def fitting(sizes: Iterable[tuple[Key, int | None]], limit: int) -> list[Key]:
    """Return the keys of those payloads that take at most `limit` bytes together, the smallest first."""
    found: list[Key] = []
    for key, size in sorted(((key, size) for key, size in sizes if size is not None), key=lambda pair: pair[1]):
        limit -= size
        if limit < 0:
            break
        found.append(key)
    return found


def size_of(text: str) -> int:
    """Return the number of bytes of a text."""
    return len(text) if text.isascii() else len(text.encode())


def read_data(
    connection: sa.Connection, execution_id: str, keys: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], str]:
    """Return the data of ended node runs, as JSON text, by (node id, item)."""
    results = node_results.c
    query = sa.select(results.node_id, results.item, results.data).where(results.execution_id == execution_id)
    found: dict[tuple[str, int], str] = {}
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        some = sa.tuple_(results.node_id, results.item).in_(keys[first : first + _KEYS_AT_ONCE])
        found.update(((node_id, item), data) for node_id, item, data in connection.execute(query.where(some)))
    return found


def read_inputs(connection: sa.Connection, ids: Sequence[str]) -> dict[str, str]:
    """Return the inputs of executions, as JSON text, by id."""
    found: dict[str, str] = {}
    for first in range(0, len(ids), _KEYS_AT_ONCE):
        some = executions.c.id.in_(ids[first : first + _KEYS_AT_ONCE])
        rows = connection.execute(sa.select(executions.c.id, executions.c.input).where(some))
        found.update((row.id, row.input) for row in rows)
    return found
