"""The attempts of one node run, derived from its execution's events, shared by every SQL store."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from spanloom.engine.store.models import Attempt
from spanloom.engine.store.texts import check_exact
from spanloom.stores.schema import events
from spanloom.stores.sql.base import SqlStoreBase, canonical_id

__all__ = ["SqlAttempts"]

_BEGINS = "node.started"
_ENDS = {
    f"node.{word}": word
    for word in ("completed", "failed", "skipped", "retrying", "waiting", "released", "reset", "cancelled")
}
_MOVED = ("node.queued", "node.held")  # an end as well, if its worker was lost


class SqlAttempts(SqlStoreBase):
    """The read of a node run's attempts."""

    @abstractmethod
    def _event_query(self, execution_id: str, after: str | None) -> sa.Select[Any]:
        """Select the columns of `events` and a text column `cursor`, in commit order, from after `after`.

        Raises ConfigurationError for an `after` that is no cursor.
        """

    def get_attempts(self, execution_id: str, node_id: str, item: int = 0) -> list[Attempt]:
        """See ExecutionReads.get_attempts."""
        check_exact("node id", node_id)
        spelled = canonical_id(execution_id)
        if spelled is None:
            return []
        query = self._event_query(spelled, None).where(
            events.c.node_id == node_id, events.c.item == item, events.c.kind.in_((_BEGINS, *_ENDS, *_MOVED))
        )
        with self._reading() as connection:
            return _drawn_from(connection.execute(query).all())


def _drawn_from(rows: Iterable[sa.Row[Any]]) -> list[Attempt]:
    """Pair each start with the event that ended it. Of several events of one end the first counts."""
    found: list[Attempt] = []
    is_open = False
    for row in rows:
        if row.kind == _BEGINS:
            found.append(Attempt(attempt=row.attempt, worker_id=row.worker_id, started_at=row.at))
            is_open = True
            continue
        data = json.loads(row.data) if row.data else {}
        ended_as = _ENDS.get(row.kind) or ("lost" if data.get("because") == "lost_worker" else None)
        if is_open and ended_as is not None:
            ended = {"ended_at": row.at, "ended_as": ended_as, "error": data.get("error")}
            found[-1] = found[-1].model_copy(update=ended)
            is_open = False
    return found
