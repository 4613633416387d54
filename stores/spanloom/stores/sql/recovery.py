"""Operations of a write transaction on idempotency keys, workers, due runs, and families to purge."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import ClassVar

from spanloom.engine.store.requests import NodeKey, StartRequest
from spanloom.stores.sql.rows import SqlRows
from spanloom.stores.sql.statements import IS_LIVE, insert
from spanloom.stores.transitions.rows import Ended, MemberRow, Time, UsedKey

__all__ = ["SqlRecovery"]

RELEASED_KEPT = timedelta(hours=1)  #: the time that a worker's row is kept after its lease
UNEXPORTED_KEPT = timedelta(days=1)  #: the same, while another worker has yet to export its spans

_FAMILY = (
    "WITH RECURSIVE family (root_id, member_id, level) AS ("
    "SELECT id, id, 0 FROM {{s}}executions WHERE id = ANY(:ids::uuid[]) UNION ALL "
    "SELECT root_id, x.id, level + 1 FROM family {children}) "
)
_LOCK_MEMBERS = (
    "SELECT root_id, id, status, ended_at FROM family JOIN {s}executions m ON id = member_id "
    "ORDER BY root_id, level, id FOR UPDATE OF m SKIP LOCKED"
)
_COUNT_MEMBERS = "SELECT root_id, count(*) FROM family GROUP BY root_id"


class SqlRecovery(SqlRows):
    """Operations on idempotency keys, workers, due runs, and retention."""

    #: A join of `family` with the children of its `member_id`, as `x`.
    children_joined: ClassVar[str]

    # ---- idempotency keys ----

    def used_key(self, workflow_id: str, key: str) -> UsedKey | None:
        """See Transaction.used_key."""
        row = self._one(
            "SELECT execution_id, input_hash FROM {s}idempotency_keys "
            "WHERE workflow_id = :workflow_id AND key = :key AND (expires_at IS NULL OR expires_at > :now)",
            {"workflow_id": workflow_id, "key": key, "now": self.now},
        )
        return None if row is None else UsedKey(self._id(row[0]), row[1])

    def take_key(self, request: StartRequest) -> UsedKey:
        """See Transaction.take_key."""
        ttl = request.key_ttl_seconds
        values = {
            "workflow_id": request.workflow_id,
            "key": request.idempotency_key,
            "input_hash": request.input_hash,
            "execution_id": request.execution_id,
            "expires_at": None if ttl is None else self.after(timedelta(seconds=ttl)),
        }
        replaced = ", ".join(
            f"{name} = CASE WHEN idempotency_keys.expires_at <= :now THEN excluded.{name} "
            f"ELSE idempotency_keys.{name} END"
            for name in ("input_hash", "execution_id", "expires_at")
        )
        statement = insert(
            "idempotency_keys",
            tuple(values),
            f"ON CONFLICT (workflow_id, key) DO UPDATE SET {replaced} RETURNING execution_id, input_hash",
        )
        row = self._one(statement, {**values, "now": self.now})
        assert row is not None
        return UsedKey(self._id(row[0]), row[1])

    # ---- workers, and due runs ----

    def is_live(self, worker_id: str) -> bool:
        """See Transaction.is_live."""
        if (known := self._live.get(worker_id)) is None:
            known = self._live[worker_id] = self._holds_lease(worker_id)
        return known

    def _holds_lease(self, worker_id: str) -> bool:
        return self._one(IS_LIVE, {"id": worker_id, "now": self.now}) is not None

    def close_lease(self, worker_id: str) -> None:
        """See Transaction.close_lease."""
        self._live.pop(worker_id, None)
        self._run(
            "UPDATE {s}workers SET released_at = :now WHERE id = :id AND released_at IS NULL",
            [{"id": worker_id, "now": self.now}],
        )

    def release_lapsed_leases(self) -> None:
        """See Transaction.release_lapsed_leases."""
        self._run(
            "UPDATE {s}workers SET released_at = :now WHERE id IN (SELECT id FROM {s}workers "
            "WHERE released_at IS NULL AND lease_until <= :now FOR UPDATE SKIP LOCKED)",
            [{"now": self.now}],
        )
        self._run(
            "DELETE FROM {s}workers WHERE id IN (SELECT w.id FROM {s}workers w WHERE w.released_at < :until "
            "AND (w.spans_confirmed_at IS NULL OR w.released_at < :unexported_until) "
            "AND NOT EXISTS (SELECT 1 FROM {s}node_runs n WHERE n.worker_id = w.id AND n.status = 'running') "
            "FOR UPDATE SKIP LOCKED)",
            [{"until": self.after(-RELEASED_KEPT), "unexported_until": self.after(-UNEXPORTED_KEPT)}],
        )

    def released_workers(self, worker_ids: Collection[str]) -> set[str]:
        """See Transaction.released_workers."""
        rows = self._all(
            "SELECT id FROM {s}workers WHERE id = ANY(:ids::text[]) AND released_at IS NULL",
            {"ids": list(worker_ids)},
        )
        return set(worker_ids).difference(worker_id for (worker_id,) in rows)

    def lost_runs(self, limit: int) -> list[NodeKey]:
        """See Transaction.lost_runs."""
        return self._keys(
            "SELECT r.execution_id, r.node_id, r.item FROM {s}workers w JOIN {s}node_runs r ON r.worker_id = w.id "
            "WHERE w.released_at IS NOT NULL AND r.status = 'running' LIMIT :limit",
            {"limit": limit},
        )

    def due_runs(self, limit: int, nodes: Collection[str] | None = None) -> list[NodeKey]:
        """See Transaction.due_runs."""
        wanted = "node_id NOT IN ('$start', '$end', '$parent')" if nodes is None else "node_id = ANY(:nodes::text[])"
        return self._keys(
            "SELECT execution_id, node_id, item FROM {s}node_runs "
            f"WHERE due_at IS NOT NULL AND due_at <= :now AND {wanted} ORDER BY due_at LIMIT :limit",
            {"now": self.now, "nodes": list(nodes or ()), "limit": limit},
        )

    def outdated_runs(self, limit: int) -> list[NodeKey]:
        """See Transaction.outdated_runs."""
        return self._keys(
            "SELECT execution_id, node_id, item FROM {s}node_runs WHERE status = 'queued' AND pushed_epoch < :epoch "
            "ORDER BY pushed_epoch LIMIT :limit",
            {"epoch": self.epoch, "limit": limit},
        )

    # ---- retention ----

    def ended_roots(self, status: str, until: Time, last: Ended | None, limit: int) -> list[Ended]:
        """See Transaction.ended_roots."""
        later = "AND (ended_at, id) > (:after_at, :after_id::uuid)" if last is not None else ""
        rows = self._all(
            "SELECT ended_at, id FROM {s}executions WHERE status = :status AND parent_id IS NULL "
            f"AND ended_at IS NOT NULL AND ended_at < :until {later} ORDER BY ended_at, id LIMIT :limit",
            {
                "status": status,
                "until": until,
                "limit": limit,
                **({} if last is None else {"after_at": last[0], "after_id": last[1]}),
            },
        )
        return [(self._time(at), self._id(execution_id)) for at, execution_id in rows]

    def lock_families(self, roots: Sequence[str]) -> dict[str, list[MemberRow]]:
        """See Transaction.lock_families. Locks, then counts: a locked execution gets no further child."""
        if not roots:
            return {}
        family, every = _FAMILY.format(children=self.children_joined), {"ids": list(roots)}
        locked: dict[str, list[MemberRow]] = {}
        for root, execution_id, status, ended_at in self._all(family + _LOCK_MEMBERS, every):
            member = MemberRow(self._id(root), self._id(execution_id), status, self._time(ended_at))
            locked.setdefault(member.root, []).append(member)
        counted = {self._id(root): number for root, number in self._all(family + _COUNT_MEMBERS, every)}
        return {root: members for root, members in locked.items() if len(members) == counted[root]}

    def delete_expired_keys(self, limit: int) -> int:
        """See Transaction.delete_expired_keys."""
        gone = self._all(
            "DELETE FROM {s}idempotency_keys WHERE (workflow_id, key) IN (SELECT workflow_id, key "
            "FROM {s}idempotency_keys WHERE expires_at IS NOT NULL AND expires_at <= :now ORDER BY expires_at "
            "LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING key",
            {"now": self.now, "limit": limit},
        )
        return len(gone)
