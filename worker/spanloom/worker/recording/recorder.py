"""The recorder: outcomes that end together are committed together, and none is lost while the store is away."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from spanloom.engine.errors import StoreUnavailable, Unavailability
from spanloom.engine.limits import MAX_BATCH_BYTES
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import RecordRequest, RecordResult
from spanloom.worker.service import Phase, WorkerState
from spanloom.worker.store_troubles import StoreTroubles, as_passing

__all__ = ["Recorder"]

_log = structlog.get_logger("spanloom.worker")
_BATCH = 100
_PAUSES = (0.05, 1.0)  #: short: a store that keeps going away may be back for seconds only
_IN_A_ROW = 3  #: records of a batch that are not served now, after which the rest is not tried one by one


class _Entry:
    __slots__ = ("alone", "answer", "record")

    def __init__(self, record: RecordRequest) -> None:
        self.record = record
        self.answer: RecordResult | Exception | None = None
        self.alone = False  # it failed by itself: it is kept apart from those that may be served

    @property
    def answered(self) -> RecordResult | Exception:
        assert self.answer is not None
        return self.answer

    @property
    def subject(self) -> str:
        return f" of node {self.record.node_id} of execution {self.record.execution_id}"


class Recorder:
    """Record for all slots of a worker: the first one that waits commits for all that do (group commit).

    A record that the store can't serve now waits by itself; those beside it go on. It is given up if it makes no way
    for `patience_seconds` although the store serves others: then the worker gives up its claims.
    """

    def __init__(
        self,
        store: ExecutionStore,
        epoch: Callable[[], int],
        state: WorkerState,
        *,
        before: Callable[[], object] = lambda: None,
        troubles: StoreTroubles | None = None,
        served_at: Callable[[], float] = lambda: 0.0,
        patience_seconds: float = 60.0,
    ) -> None:
        """`before` is called before each call of the store. It may raise StoreUnavailable.

        `served_at` returns when the store has last served anything else, by the monotonic clock.
        """
        self._store = store
        self._before = before
        self._epoch = epoch
        self._state = state
        self._troubles = troubles or StoreTroubles()
        self._served_at = served_at
        self._patience_seconds = patience_seconds
        self._waiting: deque[_Entry] = deque()
        self._commit = threading.Lock()
        self._alone = threading.Lock()
        self.turns = 0  #: rises with each call of the store that comes to an end

    @property
    def calls(self) -> bool:
        """Whether a record waits for the store to end a call."""
        return self._commit.locked() or self._alone.locked()

    def record(self, record: RecordRequest) -> RecordResult:
        """Record one outcome and return its consequences.

        While the store can't serve it, tries again, with growing pauses: a record sent twice counts once. Raises
        the store's error for a record that it will never keep, and StoreUnavailable once the worker aborts, or if the
        record makes no way while the store serves others.
        """
        (answer,) = self.record_all([record])
        if isinstance(answer, RecordResult):
            return answer
        raise answer

    def record_all(self, records: Sequence[RecordRequest], *, patient: bool = True) -> list[RecordResult | Exception]:
        """Record outcomes that ended together, and return for each its consequences, or the store's error.

        While the store can serve none of them, tries again as `record` does, and raises StoreUnavailable in the same
        cases; without `patient` only while it is away. The answer StoreUnavailable is that of one that is not served
        now, though another one was, or would be.
        """
        entries = [_Entry(record) for record in records]
        self._try(entries)
        first = entries[0].answer
        if isinstance(first, StoreUnavailable) and (patient or first.reason is Unavailability.AWAY):
            self._try_again(entries)
        return [entry.answered for entry in entries]

    def _try_again(self, entries: Sequence[_Entry]) -> None:
        """Try again until one is served, or has an error of its own. Raises StoreUnavailable once it makes no sense."""
        began, (pause, longest) = time.monotonic(), _PAUSES
        while all(isinstance(entry.answer, StoreUnavailable) for entry in entries):
            if self._state.aborting or self._is_hopeless(began):
                for entry in entries:
                    self._troubles.over("record", subject=entry.subject)
                raise entries[-1].answered  # type: ignore[misc]  # it is StoreUnavailable
            for entry in entries:
                if entry.alone and isinstance(entry.answer, StoreUnavailable):
                    self._troubles.met(
                        "record", entry.answer, "record_waits_for_store", subject=entry.subject, records=1
                    )
            self._state.wait_for(Phase.ABORTING, pause)
            pause = min(pause * 2, longest)
            self._try(entries)
        for entry in entries:
            self._troubles.over("record", subject=entry.subject)

    def _is_hopeless(self, began: float) -> bool:
        """Return whether a record has had its time while the store served others."""
        return (
            time.monotonic() - began > self._patience_seconds and self._served_at() > began + self._patience_seconds / 2
        )

    def _try(self, entries: Sequence[_Entry]) -> None:
        """Get each an answer, of all that wait in few calls."""
        together = [entry for entry in entries if not entry.alone]
        for entry in entries:
            entry.answer = None
        self._waiting.extend(together)
        if together:
            with self._commit:
                while together[-1].answer is None:  # more may wait than one batch holds; they are taken in order
                    self._commit_waiting()
        for entry in entries:
            if entry.answer is None:
                with self._alone:
                    self._record_single(entry)

    def _commit_waiting(self) -> None:
        batch = [self._waiting.popleft()]
        size = _size(batch[0].record) if self._waiting else 0
        while self._waiting and len(batch) < _BATCH:
            size += _size(self._waiting[0].record)
            if size > MAX_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        try:
            answers = self._send([entry.record for entry in batch])
        except Exception as error:
            self.turns += 1
            away = isinstance(error, StoreUnavailable)
            if isinstance(error, StoreUnavailable):
                self._troubles.met("record", error, "record_waits_for_store", records=len(batch))
                away = error.reason is Unavailability.AWAY
            if len(batch) == 1 or away:
                for entry in batch:
                    entry.answer = error
            else:
                self._record_singly(batch)  # one bad record fails itself, not its neighbours
            return
        self.turns += 1
        self._troubles.over("record")
        for entry, answer in zip(batch, answers, strict=True):
            if answer.error is None:
                entry.answer = answer
            else:
                entry.answer = _answer(answer)
                entry.alone = isinstance(entry.answer, StoreUnavailable)

    def _record_singly(self, batch: list[_Entry]) -> None:
        in_a_row, last = 0, None
        for entry in batch:
            if last is not None and in_a_row >= _IN_A_ROW:
                entry.answer = last  # it was not tried, and is part of the next batch
                continue
            self._record_single(entry)
            if isinstance(entry.answer, StoreUnavailable):
                entry.alone, last = True, entry.answer
                slow = last.reason in (Unavailability.AWAY, Unavailability.TIME_LIMIT)
                in_a_row += _IN_A_ROW if slow else 1
            else:
                in_a_row = 0

    def _record_single(self, entry: _Entry) -> None:
        try:
            (answer,) = self._send([entry.record])
            entry.answer = _answer(answer)
        except Exception as error:
            entry.answer = error
        self.turns += 1

    def _send(self, records: list[RecordRequest]) -> list[RecordResult]:
        try:
            self._before()
            return self._store.record(records, epoch=self._epoch())
        except Exception as error:
            if (passing := as_passing(error)) is None or passing is error:
                raise
            raise passing from error


def _answer(result: RecordResult) -> RecordResult | Exception:
    return result if result.error is None else as_passing(result.error) or result.error


def _size(record: RecordRequest) -> int:
    """Return about how many bytes a record takes when it is sent, without its own span and the like."""
    size = len(record.data or "")
    if not record.logs and len(record.spans) <= 1 and record.fan_out is None:
        return size
    for line in record.logs:
        size += len(line.message) + len(line.fields)
    for span in record.spans:
        size += len(span.attributes) + len(span.links)
    if record.fan_out is not None:
        size += sum(map(len, record.fan_out.items))
    return size
