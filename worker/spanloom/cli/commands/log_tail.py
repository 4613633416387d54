"""The log lines of an execution that were not read yet, also those that show late."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from spanloom.engine.store.models import LogRecord
from spanloom.engine.store.port import ExecutionStore

__all__ = ["LogTail"]

_PAGE = 1000
_LATE_SECONDS = 5.0


class LogTail:
    """Read an execution's lines once each, in portions.

    Where transactions overlap, a line may be committed after one with a higher id was read. So the latest thousand ids
    are looked at again until they are five seconds old.
    """

    def __init__(self, store: ExecutionStore, execution_id: str, node_id: str | None) -> None:
        self._store = store
        self._execution_id = execution_id
        self._node_id = node_id
        self._settled = 0  # no look goes back beyond this id
        self._recent: deque[tuple[int, float]] = deque()  # ids after it, as they were read, and when
        self._read: set[int] = set()  # the same ids

    def read(self) -> Iterator[LogRecord]:
        """Yield what is new. Raises StoreUnavailable."""
        after = self._settled
        while page := self._store.get_logs(self._execution_id, node_id=self._node_id, after=after, limit=_PAGE):
            for record in page:
                if record.id not in self._read:
                    self._note(record.id)
                    yield record
            after = page[-1].id
        while self._recent and self._recent[0][1] < time.monotonic() - _LATE_SECONDS:
            self._settle()

    def _note(self, line_id: int) -> None:
        self._read.add(line_id)
        self._recent.append((line_id, time.monotonic()))
        if len(self._recent) > _PAGE:
            self._settle()

    def _settle(self) -> None:
        line_id, _ = self._recent.popleft()
        self._read.discard(line_id)
        self._settled = max(self._settled, line_id)
