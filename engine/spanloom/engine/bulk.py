"""Doing to many executions what is done to one: all that a filter finds, each in a transition of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from spanloom.engine.errors import UserError
from spanloom.engine.states import ExecutionStatus
from spanloom.engine.store import ExecutionStore
from spanloom.engine.views import ExecutionFilter

__all__ = ["Bulk", "control_each", "find"]

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Bulk:
    """What came of a transition for each of many executions, by their ids."""

    done: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)  # it was so before, or came with its parent
    refused: dict[str, UserError] = field(default_factory=dict)  # it changed since it was found, for example


def find(
    store: ExecutionStore, wanted: ExecutionFilter, statuses: Collection[ExecutionStatus], limit: int | None
) -> list[str]:
    """Return the ids of the oldest `limit` that a filter finds in one of these statuses, parents before children."""
    found: list[tuple[str, str]] = []
    for status in statuses:
        if wanted.status not in (None, status):
            continue
        cursor: str | None = None
        while True:
            one = wanted.model_copy(update={"status": status})
            page = store.list_executions(one, limit=_PAGE, cursor=cursor)
            found.extend((execution.created_at.isoformat(), execution.id) for execution in page.items)
            cursor = page.next_cursor
            if cursor is None:
                break
    # Whatever reaches a parent reaches its children with it; a child cancelled by itself would fail its parent.
    return [execution_id for _, execution_id in sorted(found)[:limit]]


def control_each(ids: Collection[str], step: Callable[[str], object]) -> Bulk:
    """Do `step`, which answers whether it did something, for each; what is refused is noted, and the rest goes on."""
    bulk = Bulk()
    for execution_id in ids:
        try:
            (bulk.done if step(execution_id) else bulk.unchanged).append(execution_id)
        except UserError as error:
            bulk.refused[execution_id] = error
    return bulk
