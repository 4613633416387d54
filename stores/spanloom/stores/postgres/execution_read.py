"""The read of one execution with its output, in one short statement: callers wait for ends by it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from spanloom.engine.store.models import Execution
from spanloom.stores.schema import executions
from spanloom.stores.sql.reads import as_execution, output_of

__all__ = ["execution_of", "execution_statement"]

_COLUMNS = tuple(column.name for column in executions.columns)

#: The sinks as in reads.py: the sources of edges to `$end`, with their data if together it is small enough.
_STATEMENT = """
select {columns}, s.sources, s.nodes, s.data, s.size
from {schema}.executions x
left join lateral (
    select pg_catalog.array_agg(o.source) as sources, pg_catalog.array_agg(o.node_id) as nodes,
        pg_catalog.array_agg(o.data) as data, pg_catalog.max(o.size) as size
    from (
        select e.source, r.node_id, pg_catalog.sum(pg_catalog.octet_length(r.data)) over () as size,
            case when pg_catalog.sum(pg_catalog.octet_length(r.data)) over () <= %s::bigint then r.data end as data
        from {schema}.workflow_edges e
        left join lateral (  -- one look-up per sink: a merge would read all results of the execution
            select r.node_id, r.data
            from {schema}.node_results r
            where r.execution_id = x.id and r.node_id = e.source and r.item = 0
                and (r.status = 'completed' or r.status = 'failed' and r.arrived and r.data is not null)
            offset 0
        ) r on true
        where e.workflow_id = x.workflow_id and e.version = x.version and e.target = '$end'
        order by e.source
    ) o
) s on x.status = 'completed'
where x.id = %s::uuid
"""


def execution_statement(schema: str) -> str:
    """Return the statement, with the parameters (most bytes of output, execution id)."""
    return _STATEMENT.format(schema=schema, columns=", ".join(f"x.{name}" for name in _COLUMNS))


def execution_of(row: Sequence[Any], most: int) -> Execution:
    """Read the row of the statement."""
    found = SimpleNamespace(**dict(zip(_COLUMNS, map(_value, row), strict=False)))
    sources, nodes, data, size = row[len(_COLUMNS) :]
    if sources is None:
        return as_execution(found, *((None, 0) if found.status == "completed" else (None, None)))
    sinks = list(zip(sources, nodes, data, [size] * len(sources), strict=True))
    return as_execution(found, *output_of(sinks, most))


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return str(value) if isinstance(value, UUID) else value
