"""The queries of lists and counts of executions: each reads an index in its order, whatever the filter.

Most executions are completed, have no parent and are not acknowledged; that has no index of its own. A list passes the
few others on its way. A count subtracts them: they have small indexes, and the sum is counted by an index as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from spanloom.engine.limits import MAX_METADATA_PAIRS
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.states import ExecutionStatus
from spanloom.engine.store.texts import check_filter
from spanloom.stores.schema import (
    EXECUTIONS_ACKNOWLEDGED,
    EXECUTIONS_CHILDREN,
    EXECUTIONS_NOT_COMPLETED,
    EXECUTIONS_TO_ACKNOWLEDGE,
    Id,
    Instant,
    execution_metadata,
    executions,
    from_micros,
)
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.sql.lists.paging import bad_cursor, sort_key

__all__ = ["count_query", "list_query"]

Condition = sa.ColumnElement[bool] | sa.TextClause

#: Pairs whose rows are joined, in the order that the planner prefers. Planning takes the longer the more they are, and
#: SQLite joins 64 tables at most: further pairs are looked up for each execution that has these.
_JOINED = 4


def list_query(query: sa.Select[Any], filter: ExecutionFilter | None, cursor: str | None, limit: int) -> sa.Select[Any]:
    """Add to a query over `executions` a filter's conditions, the order (newest first), a cursor and a limit."""
    check_filter(filter)
    filter = filter or ExecutionFilter()
    columns, first = executions.c, _pair(0).c
    key = (first.created_at, first.execution_id) if _has_pairs(filter) else (columns.created_at, columns.id)
    query = query.where(*_conditions(filter))
    if cursor is not None:
        micros, last_id = sort_key(cursor, int, str)
        if canonical_id(last_id) != last_id:
            raise bad_cursor(cursor)
        # A single row comparison, so that an index on both can seek.
        last = sa.tuple_(sa.literal(from_micros(micros), Instant), sa.literal(last_id, Id))
        query = query.where(sa.tuple_(*key) < last)
    return query.order_by(*(column.desc() for column in key)).limit(limit)


def count_query(filter: ExecutionFilter | None) -> sa.Select[Any]:
    """Return a query of one number: how many executions match a filter."""
    check_filter(filter)
    filter = filter or ExecutionFilter()
    left_out: dict[str, Condition] = {}
    # A parent's children, and those of a status that is not the usual one, are few enough to be looked at.
    if filter.parent_execution_id is None and filter.status in (None, ExecutionStatus.COMPLETED):
        if filter.status is not None:
            left_out["status"] = EXECUTIONS_NOT_COMPLETED
        if filter.root:
            left_out["root"] = EXECUTIONS_CHILDREN
        if filter.acknowledged is False:
            left_out["acknowledged"] = EXECUTIONS_ACKNOWLEDGED
    counted = filter.model_copy(update=dict.fromkeys(left_out))
    total = _number(counted, ())
    for size in range(1, len(left_out) + 1):
        for some in combinations(left_out.values(), size):
            total = total - _number(counted, some) if size % 2 else total + _number(counted, some)
    return sa.select(total)


def _number(filter: ExecutionFilter, also: Sequence[Condition]) -> sa.ColumnElement[int]:
    # If only columns of metadata are named, the executions need not be looked at.
    by_pairs = _has_pairs(filter) and not also and not _of_executions(filter)
    counted = _pair(0) if by_pairs else executions
    conditions = _conditions(filter, whole=not by_pairs, few=bool(also))
    return sa.select(sa.func.count()).select_from(counted).where(*conditions, *also).scalar_subquery()


def _conditions(filter: ExecutionFilter, *, whole: bool = True, few: bool = False) -> list[Condition]:
    """Return a filter's conditions: on metadata, and, if it is `whole`, on executions, the `few` of a partial index."""
    if len(filter.metadata) > MAX_METADATA_PAIRS:
        return [sa.false()]  # no execution has so many
    if not filter.metadata:
        return _of_start(filter, _OF_FEW if few else executions.c) + _of_executions(filter)
    first = _pair(0).c
    conditions = _of_start(filter, first)
    for number, (key, value) in enumerate(filter.metadata.items()):
        pair = _pair(number).c
        same: tuple[Condition, ...] = (pair.execution_id == first.execution_id,) if number else ()
        of_pair = (*same, pair.key == key, pair.value == value)
        # With an offset Postgres does not turn the look-up into another join.
        look_up = sa.select(sa.literal(1)).where(*of_pair).offset(0).correlate(_pair(0))
        conditions += of_pair if number < _JOINED else (look_up.exists(),)
    return [*conditions, executions.c.id == first.execution_id, *_of_executions(filter)] if whole else conditions


def _of_start(filter: ExecutionFilter, columns: Any) -> list[Condition]:
    """Return the conditions on columns of a start, which stand with each pair of metadata, too."""
    conditions: list[Condition] = []
    if filter.workflow_id is not None:
        conditions.append(columns.workflow_id == filter.workflow_id)
    if filter.created_after is not None:
        conditions.append(columns.created_at >= filter.created_after)
    if filter.created_before is not None:
        conditions.append(columns.created_at < filter.created_before)
    return conditions


def _of_executions(filter: ExecutionFilter) -> list[Condition]:
    """Return the conditions on columns that only executions have."""
    columns = executions.c
    conditions: list[Condition] = []
    if filter.status is not None:
        conditions.append(columns.status == filter.status.value)
        if filter.status is not ExecutionStatus.COMPLETED:
            conditions.append(_hint(EXECUTIONS_NOT_COMPLETED))
    if filter.status is ExecutionStatus.FAILED and filter.acknowledged is False:
        conditions.append(_hint(EXECUTIONS_TO_ACKNOWLEDGE))
    if filter.parent_execution_id is not None:
        parent = canonical_id(filter.parent_execution_id)
        conditions.append(sa.false() if parent is None else columns.parent_id == parent)
    if filter.root is not None:
        conditions.append(columns.parent_id.is_(None) if filter.root else EXECUTIONS_CHILDREN)
    if filter.acknowledged is not None:
        conditions.append(EXECUTIONS_ACKNOWLEDGED if filter.acknowledged else columns.acknowledged_at.is_(None))
    return conditions


def _has_pairs(filter: ExecutionFilter) -> bool:
    return 0 < len(filter.metadata) <= MAX_METADATA_PAIRS


class _hint(FunctionElement[Any]):
    """The condition of a partial index, which follows from others: SQLite uses the index if it is repeated.

    Postgres sees that it follows, and would take it for a further condition, which few of the rows fulfil.
    """

    type = sa.types.NULLTYPE  # of a Boolean SQLite would compare it with 1
    inherit_cache = True


@compiles(_hint)
def _nothing(element: _hint, compiler: Any, **options: Any) -> str:
    return "true"


@compiles(_hint, "sqlite")
def _repeated(element: _hint, compiler: Any, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)})"


class _looked_at(FunctionElement[Any]):
    """A column that SQLite looks at in the rows of a partial index, instead of reading its own index, with all rows."""

    inherit_cache = True

    def __init__(self, column: sa.Column[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(_looked_at)
def _column(element: _looked_at, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(_looked_at, "sqlite")
def _without_index(element: _looked_at, compiler: Any, **options: Any) -> str:
    return f"+{compiler.process(element.clauses, **options)}"


_OF_FEW = SimpleNamespace(
    workflow_id=_looked_at(executions.c.workflow_id), created_at=_looked_at(executions.c.created_at)
)


@cache
def _pair(number: int) -> sa.FromClause:
    """Return the table of metadata, as that of one pair of a filter."""
    return execution_metadata.alias(f"pair_{number}")
