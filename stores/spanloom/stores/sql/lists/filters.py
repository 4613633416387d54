"""The queries of lists and counts of executions: each reads an index in its order, whatever the filter.

Most executions are completed, have no parent and are not acknowledged; that has no index of its own. A list passes the
few others on its way. A count subtracts them: they have small indexes, and the sum is counted by an index as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Any

import sqlalchemy as sa

from spanloom.engine.limits import MAX_METADATA_PAIRS
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.states import ExecutionStatus
from spanloom.engine.store.texts import check_filter
from spanloom.stores.schema import (
    EXECUTIONS_ACKNOWLEDGED,
    EXECUTIONS_CHILDREN,
    EXECUTIONS_ENDED,
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

_JOINED = 8  #: pairs whose rows are joined, in the order that the planner prefers; SQLite joins 64 tables at most


def list_query(query: sa.Select[Any], filter: ExecutionFilter | None, cursor: str | None, limit: int) -> sa.Select[Any]:
    """Add to a query over `executions` a filter's conditions, the order (newest first), a cursor and a limit."""
    check_filter(filter)
    filter = filter or ExecutionFilter()
    keys: list[tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]]] = [(executions.c.created_at, executions.c.id)]
    if _has_pairs(filter):
        keys.append((_pair(0).c.created_at, _pair(0).c.execution_id))
    query = query.where(*_conditions(filter))
    if cursor is not None:
        micros, last_id = sort_key(cursor, int, str)
        if canonical_id(last_id) != last_id:
            raise bad_cursor(cursor)
        last = sa.tuple_(sa.literal(from_micros(micros), Instant), sa.literal(last_id, Id))
        # A row comparison, with which an index can seek; of both tables, as either may be read in its order.
        query = query.where(*(sa.tuple_(*key) < last for key in keys))
    return query.order_by(*(column.desc() for column in keys[-1])).limit(limit)


def count_query(filter: ExecutionFilter | None) -> sa.Select[Any]:
    """Return a query of one number: how many executions match a filter."""
    check_filter(filter)
    filter = filter or ExecutionFilter()
    left_out: dict[str, Condition] = {}
    # A parent's children, and those of a status that is not the usual one, are few enough to be looked at.
    if filter.parent_execution_id is None and filter.status in (None, ExecutionStatus.COMPLETED):
        ended = filter.status is not None and _by_end(filter)
        if filter.status is not None and not ended:
            left_out["status"] = EXECUTIONS_NOT_COMPLETED
        if filter.root and not ended:
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
    counted: sa.FromClause = executions
    if _has_pairs(filter) and not also and not _of_executions(filter):
        counted = _pair(0)  # each row is an execution's, which need not be looked at
    conditions = _conditions(filter, whole=counted is executions)
    if filter.status is ExecutionStatus.COMPLETED:
        conditions.append(EXECUTIONS_ENDED)  # a list is in another order than the index with this condition
    return sa.select(sa.func.count()).select_from(counted).where(*conditions, *also).scalar_subquery()


def _conditions(filter: ExecutionFilter, *, whole: bool = True) -> list[Condition]:
    """Return a filter's conditions on metadata, and, if it is `whole`, on executions."""
    if len(filter.metadata) > MAX_METADATA_PAIRS:
        return [sa.false()]  # no execution has so many
    conditions: list[Condition] = []
    for number, (key, value) in enumerate(filter.metadata.items()):
        pair, first = _pair(number).c, _pair(0).c
        of_it: tuple[Condition, ...] = (pair.key == key, pair.value == value)
        if number:
            of_it += (pair.created_at == first.created_at, pair.execution_id == first.execution_id)
        else:
            of_it += (*_times(filter, pair.created_at),)
        conditions += of_it if number < _JOINED else [sa.exists().where(*of_it).correlate(_pair(0))]
    if not whole:
        return conditions
    if _has_pairs(filter):
        pair = _pair(0).c
        conditions += (executions.c.created_at == pair.created_at, executions.c.id == pair.execution_id)
    return conditions + _times(filter, executions.c.created_at) + _of_executions(filter)


def _times(filter: ExecutionFilter, column: sa.ColumnElement[Any]) -> list[Condition]:
    conditions: list[Condition] = []
    if filter.created_after is not None:
        conditions.append(column >= filter.created_after)
    if filter.created_before is not None:
        conditions.append(column < filter.created_before)
    return conditions


def _of_executions(filter: ExecutionFilter) -> list[Condition]:
    """Return the conditions on columns that only executions have, each in the words of an index's own condition."""
    columns = executions.c
    conditions: list[Condition] = []
    if filter.workflow_id is not None:
        conditions.append(columns.workflow_id == filter.workflow_id)
    if filter.status is not None:
        conditions.append(columns.status == filter.status.value)
        if filter.status is not ExecutionStatus.COMPLETED:
            conditions.append(EXECUTIONS_NOT_COMPLETED)
    if filter.status is ExecutionStatus.FAILED and filter.acknowledged is False:
        conditions.append(EXECUTIONS_TO_ACKNOWLEDGE)
    if filter.parent_execution_id is not None:
        parent = canonical_id(filter.parent_execution_id)
        conditions.append(sa.false() if parent is None else columns.parent_id == parent)
    if filter.root is not None:
        conditions.append(columns.parent_id.is_(None) if filter.root else EXECUTIONS_CHILDREN)
    if filter.acknowledged is not None:
        conditions.append(EXECUTIONS_ACKNOWLEDGED if filter.acknowledged else columns.acknowledged_at.is_(None))
    return conditions


def _by_end(filter: ExecutionFilter) -> bool:
    """Return whether the index of ended executions has all columns that a filter is on."""
    others = (filter.workflow_id, filter.created_after, filter.created_before, filter.acknowledged)
    return not filter.metadata and all(other is None for other in others)


def _has_pairs(filter: ExecutionFilter) -> bool:
    return 0 < len(filter.metadata) <= MAX_METADATA_PAIRS


@cache
def _pair(number: int) -> sa.FromClause:
    """Return the table of metadata, as that of one pair of a filter."""
    return execution_metadata.alias(f"pair_{number}")
