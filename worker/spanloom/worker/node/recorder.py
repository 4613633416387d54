"""The recorder: outcomes that end together are committed together, and none is lost while the store is away."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import structlog

from spanloom.engine.errors import StoreUnavailable
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import RecordRequest, RecordResult
from spanloom.worker.service import Phase, WorkerState

__all__ = ["Recorder"]

_log = structlog.get_logger("spanloom.worker")
_BATCH = 100
_PAUSES = (0.05, 1.0)  #: short: a store that keeps going away may be back for seconds only


class _Entry:
    __slots__ = ("answer", "record")

    def __init__(self, record: RecordRequest) -> None:
        self.record = record
        self.answer: RecordResult | Exception | None = None


class Recorder:
    """Record for all slots of a worker. Who finds nobody committing commits for everyone who waits (group commit)."""

    def __init__(
        self,
        store: ExecutionStore,
        epoch: Callable[[], int],
        state: WorkerState,
        *,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """`before` is called before each call of the store. It may raise StoreUnavailable."""
        self._store = store
        self._before = before
        self._epoch = epoch
        self._state = state
        self._waiting: deque[_Entry] = deque()
        self._commit = threading.Lock()

    def record(self, record: RecordRequest) -> RecordResult:
        """Record one outcome and return what follows from it.

        While the store is away it tries again, with growing pauses: a record sent twice counts once. Raises
        StoreUnavailable only once the worker aborts, and what the store raises for a bad record.
        """
        entry = _Entry(record)
        self._waiting.append(entry)
        with self._commit:
            while entry.answer is None:  # more may wait than one batch holds
                self._commit_waiting()
        if isinstance(entry.answer, RecordResult):
            return entry.answer
        raise entry.answer

    def _commit_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
        try:
            for entry, answer in zip(batch, self._record([entry.record for entry in batch]), strict=True):
                entry.answer = answer
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer = error
                return
            self._record_singly(batch)  # one bad record fails itself, not its neighbours

    def _record_singly(self, batch: list[_Entry]) -> None:
        for entry in batch:
            try:
                (entry.answer,) = self._record([entry.record])
            except Exception as error:
                entry.answer = error

    def _record(self, records: list[RecordRequest]) -> list[RecordResult]:
        pause, longest = _PAUSES
        while True:
            try:
                self._before()
                return self._store.record(records, epoch=self._epoch())
            except StoreUnavailable as error:
                if self._state.aborting:
                    raise
                _log.warning("record_waits_for_store", records=len(records), error=str(error))
                self._state.wait_for(Phase.ABORTING, pause)
                pause = min(pause * 2, longest)
