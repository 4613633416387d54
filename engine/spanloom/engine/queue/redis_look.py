"""A look at Redis: all that a pass of the sweep reads there, in one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["RedisLook"]


class RedisLook:
    """Answers of Redis, each of which may be an error of redis-py. The getters raise it."""

    def __init__(self, answers: Sequence[Any], keys: Sequence[str]) -> None:
        self._mark, self._server, self._lists, self._heads, self._turn = answers
        self._keys = list(keys)

    def mark(self) -> bytes | None:
        """Return the mark of the epoch."""
        return _answer(self._mark)  # type: ignore[no-any-return]  # as the three below

    def server(self) -> dict[str, Any]:
        """Return the report of the server on itself."""
        return _answer(self._server)  # type: ignore[no-any-return]

    def lists(self) -> set[bytes]:
        """Return RQ's set of lists."""
        return _answer(self._lists)  # type: ignore[no-any-return]

    @property
    def has_turn(self) -> bool:
        """Whether no other worker has begun to sweep in the last moment, also if that is not known."""
        return self._turn is not None

    def heads(self, keys: Sequence[str]) -> list[Any] | None:
        """Return the heads of these lists; None if those of others were read."""
        return _answer(self._heads) if self._keys == list(keys) else None


def _answer(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer
