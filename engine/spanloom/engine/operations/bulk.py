"""Bulk operations: one transition for each execution that matches a filter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from spanloom.engine.errors import InvalidTransition, UserError
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["ENDED", "BulkResult", "apply_to_each", "control_each", "find"]

ENDED = tuple(status for status in ExecutionStatus if status.ended)
_PAGE = 1000
_BATCH = 100  # executions that one step takes

BatchStep = Callable[[Sequence[str]], Sequence[bool | UserError]]


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The results of a transition of many executions, by their ids."""

    done: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)  # it was in that state before, or was changed with its parent
    refused: dict[str, UserError] = field(default_factory=dict)  # for example, it has changed since it was listed
    started: dict[str, str] = field(default_factory=dict)  # by each done id, its replay's id


def find(
    store: ExecutionStore, wanted: ExecutionFilter, statuses: Collection[ExecutionStatus], limit: int | None
) -> list[str]:
    """Return the ids of the oldest `limit` that match a filter and have one of `statuses`, parents before children."""
    found: list[tuple[str, str]] = []
    for status in statuses:
        if wanted.status not in (None, status):
            continue
        cursor: str | None = None
        while True:
            filtered = wanted.model_copy(update={"status": status})
            page = store.list_executions(filtered, limit=_PAGE, cursor=cursor, data_limit=0)
            found.extend((execution.created_at.isoformat(), execution.id) for execution in page.items)
            cursor = page.next_cursor
            if cursor is None:
                break
    # A transition of a parent includes its children; a child that is cancelled alone would fail its parent.
    return [execution_id for _, execution_id in sorted(found)[:limit]]


def one_by_one(step: Callable[[str], object]) -> BatchStep:
    """Return a batch step that applies `step` to each execution alone; `step` returns whether it changed something."""

    def each(execution_ids: Sequence[str]) -> list[bool | UserError]:
        answers: list[bool | UserError] = []
        for execution_id in execution_ids:
            try:
                answers.append(bool(step(execution_id)))
            except UserError as error:
                answers.append(error)
        return answers

    return each


def apply_to_each(store: ExecutionStore, ids: Sequence[str], step: BatchStep) -> Iterator[tuple[str, bool | UserError]]:
    """Apply a step to executions, in batches, and yield for each whether it was changed, or its refusal.

    A child that is refused because it was changed with its parent, as in a retry, counts as unchanged.
    """
    reached: set[str | None] = set()
    for first in range(0, len(ids), _BATCH):
        batch = ids[first : first + _BATCH]
        for execution_id, result in zip(batch, step(batch), strict=True):
            answer = result
            if isinstance(result, InvalidTransition):
                execution = store.get_execution(execution_id, data_limit=0)
                if execution is not None and execution.parent_execution_id in reached:
                    answer = False
            if not isinstance(answer, UserError):
                reached.add(execution_id)
            yield execution_id, answer


def control_each(store: ExecutionStore, ids: Sequence[str], step: BatchStep) -> BulkResult:
    """Apply a step to each, as apply_to_each does, and collect the results; a refusal does not stop the others."""
    bulk = BulkResult()
    for execution_id, answer in apply_to_each(store, ids, step):
        if isinstance(answer, UserError):
            bulk.refused[execution_id] = answer
        else:
            (bulk.done if answer else bulk.unchanged).append(execution_id)
    return bulk
