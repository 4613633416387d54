"""The purge of families of executions that ended long ago, each as a whole, and of expired keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from spanloom.engine.store.requests import PurgeResult
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.transitions.rows import ExecutionRow, Time
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["purge"]

_PAGE = 200


def purge(tx: Transaction, before: datetime, statuses: Sequence[str], limit: int) -> PurgeResult:
    """Delete the oldest families, about `limit` executions in all. A family with a locked row is left out."""
    ended_before = tx.as_time(before)
    executions = keys = 0
    expired = tx.delete_expired_keys(limit)
    for root in _roots(tx, ended_before, statuses):
        if executions >= limit:
            break
        family = tx.lock_family(root)
        if family is None or not all(_is_over(row, ended_before) for row in family):
            continue
        gone = tx.delete_executions([row.id for row in family])
        if gone is not None:
            executions += len(family)
            keys += gone
    return PurgeResult(executions, keys + expired, more=executions >= limit or expired >= limit)


def _roots(tx: Transaction, ended_before: Time, statuses: Sequence[str]) -> Iterator[str]:
    last: tuple[Time, str] | None = None
    while page := tx.ended_roots(ended_before, last, _PAGE):
        yield from (execution_id for _, execution_id, status in page if status in statuses)
        last = page[-1][:2]


def _is_over(row: ExecutionRow, ended_before: Time) -> bool:
    return ExecutionStatus(row.status).ended and row.ended_at is not None and row.ended_at < ended_before
