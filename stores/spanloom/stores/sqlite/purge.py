"""Purging on SQLite: families of executions that ended long enough ago, each as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from spanloom.engine.store.requests import PurgeResult
from spanloom.stores.sqlite.transaction import Transaction

__all__ = ["purge"]

_SCANNED = 200

# The index of ended roots is in this order. A page goes on after the last row of the one before it.
_ROOTS = """
SELECT ended_at, id, status FROM executions
WHERE parent_id IS NULL AND ended_at IS NOT NULL AND ended_at < ? AND (ended_at, id) > (?, ?)
ORDER BY ended_at, id LIMIT ?
"""

_FAMILY = """
WITH RECURSIVE family (id, level, metadata, ended_at, status) AS (
  SELECT id, 0, metadata, ended_at, status FROM executions WHERE id = ?
  UNION ALL
  SELECT e.id, level + 1, e.metadata, e.ended_at, e.status FROM family JOIN executions e ON e.parent_id = family.id
)
SELECT id, metadata, ended_at < ? AND status IN ('completed', 'failed', 'cancelled') FROM family ORDER BY level DESC
"""

_KEPT = ("node_runs", "node_results", "node_items", "logs", "spans", "span_exports", "events")

_FORGET_PAIR = "DELETE FROM execution_metadata WHERE key = ? AND value = ? AND execution_id = ?"

_FORGET_KEYS = "DELETE FROM idempotency_keys WHERE execution_id = ?"

_FORGET_EXPIRED = """
DELETE FROM idempotency_keys WHERE (workflow_id, key) IN
  (SELECT workflow_id, key FROM idempotency_keys WHERE expires_at IS NOT NULL AND expires_at <= ? LIMIT ?)
"""

_DELETE = "DELETE FROM executions WHERE id = ?"


def purge(tx: Transaction, ended_before: int, statuses: Sequence[str], limit: int) -> PurgeResult:
    """Delete the oldest families, about `limit` executions in all, and keys that have expired."""
    executions = keys = 0
    for root in _roots(tx, ended_before, statuses):
        if executions >= limit:
            break
        family = tx.execute(_FAMILY, (root, ended_before)).fetchall()
        if all(over for _, _, over in family):
            executions += len(family)
            keys += _delete(tx, family)
    expired = tx.execute(_FORGET_EXPIRED, (tx.now, limit)).rowcount
    return PurgeResult(executions, keys + expired, more=executions >= limit or expired >= limit)


def _roots(tx: Transaction, ended_before: int, statuses: Sequence[str]) -> Iterator[str]:
    last: tuple[int, str] = (-(1 << 62), "")
    while page := tx.execute(_ROOTS, (ended_before, *last, _SCANNED)).fetchall():
        yield from (execution_id for _, execution_id, status in page if status in statuses)
        last = page[-1][:2]


def _delete(tx: Transaction, family: Sequence[Any]) -> int:
    """Delete a family, children before their parents, and say how many idempotency keys named one of it."""
    ids = [(execution_id,) for execution_id, _, _ in family]
    for table in _KEPT:
        tx.executemany(f"DELETE FROM {table} WHERE execution_id = ?", ids)  # noqa: S608  names of ours
    pairs = [(key, value, execution_id) for execution_id, text, _ in family for key, value in json.loads(text).items()]
    tx.executemany(_FORGET_PAIR, pairs)
    keys = sum(tx.execute(_FORGET_KEYS, one).rowcount for one in ids)
    tx.executemany(_DELETE, ids)
    return keys
