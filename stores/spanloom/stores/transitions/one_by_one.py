"""The second way of a batch that failed: each item by itself, so that one error costs no other item its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from spanloom.engine.errors import SpanloomError, StoreNotMigrated, StoreRefused, StoreUnavailable, Unavailability

__all__ = ["is_of_all", "one_by_one"]

_IN_A_ROW = 3  #: items that can't be served now, after which the rest of a batch is not tried

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def is_of_all(error: Exception) -> bool:
    """Return whether an error is the store's and no item's, or further calls might take as long to fail."""
    if isinstance(error, StoreUnavailable):
        return error.reason in (Unavailability.AWAY, Unavailability.TIME_LIMIT)
    return isinstance(error, StoreNotMigrated)


def one_by_one(items: Iterable[Item], step: Callable[[Item], Sequence[Answer]]) -> list[Answer | SpanloomError]:
    """Run a step for each item. The answer to an item is its error if the step raises one.

    After three items in a row that can't be served now, the rest is not tried and has the last error for an answer.
    Raises the first error if no item is served.
    """
    answers: list[Answer | SpanloomError] = []
    first: Exception | None = None
    served = in_a_row = 0
    for item in items:
        if in_a_row >= _IN_A_ROW:
            answers.append(answers[-1])
            continue
        try:
            answers.extend(step(item))
            served, in_a_row = served + 1, 0
        except Exception as error:  # of this item
            first = first or error
            answers.append(_as_answer(error))
            if isinstance(error, StoreUnavailable):
                in_a_row += _IN_A_ROW if is_of_all(error) else 1
    if first is not None and not served:
        raise first
    return answers


def _as_answer(error: Exception) -> SpanloomError:
    if isinstance(error, SpanloomError):
        return error
    message = f"the store fails over it with {type(error).__name__}: {error}"
    wrapped: SpanloomError = StoreRefused(message)
    if isinstance(error, OSError | MemoryError):  # of this process, which may have more of it later
        wrapped = StoreUnavailable(message, reason=Unavailability.RESOURCES)
    wrapped.__cause__ = error
    return wrapped
