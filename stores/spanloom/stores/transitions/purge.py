"""The purge of families of executions that ended long ago, each as a whole, and of expired keys."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice

from spanloom.engine.store.requests import PurgeResult
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.transitions.rows import Ended, MemberRow, Time
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["purge"]

_PAGE = 100  #: families that are read and locked together: each may be large


def purge(tx: Transaction, before: datetime, statuses: Sequence[str], limit: int) -> PurgeResult:
    """Delete the oldest families, about `limit` executions in all. A family with a locked row is left out."""
    ended_before = tx.as_time(before)
    expired = tx.delete_expired_keys(limit)
    # A cursor for each status: failed executions are kept for long, and no batch has to pass them.
    roots = heapq.merge(*(_roots(tx, status, ended_before) for status in sorted(set(statuses))))
    gone: list[str] = []
    while len(gone) < limit and (page := [root for _, root in islice(roots, min(_PAGE, limit - len(gone)))]):
        for family in _free_families(tx, page, ended_before):
            if len(gone) < limit:
                gone += (member.id for member in family)
    keys = tx.delete_executions(gone) if gone else 0
    return PurgeResult(len(gone), keys + expired, more=len(gone) >= limit or expired >= limit)


def _roots(tx: Transaction, status: str, ended_before: Time) -> Iterator[Ended]:
    last: Ended | None = None
    while page := tx.ended_roots(status, ended_before, last, _PAGE):
        yield from page
        last = page[-1]


def _free_families(tx: Transaction, roots: Sequence[str], ended_before: Time) -> list[list[MemberRow]]:
    """Lock families, and return, in this order, those that are over and of which others hold neither row nor key."""
    locked = tx.lock_families(roots)
    over = [
        locked[root] for root in roots if root in locked and all(_is_over(row, ended_before) for row in locked[root])
    ]
    held = tx.lock_keys([member.id for family in over for member in family])
    return [family for family in over if held.isdisjoint(member.id for member in family)]


def _is_over(row: MemberRow, ended_before: Time) -> bool:
    return ExecutionStatus(row.status).ended and row.ended_at is not None and row.ended_at < ended_before
