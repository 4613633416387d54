"""The log flusher: stores the lines of long-running nodes while they run; their records carry only the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import structlog

from spanloom.engine.errors import StoreUnavailable, Unavailability
from spanloom.engine.store.port import ExecutionStore
from spanloom.worker.service import Periodic, Phase, WorkerState
from spanloom.worker.telemetry.log_buffer import LogBuffer

__all__ = ["LogFlusher"]

_log = structlog.get_logger("spanloom.worker")
_PAUSES = (0.05, 1.0)
_PATIENCE_SECONDS = 60.0


class LogFlusher:
    """The service that stores the lines of all long-running attempts together, once in `flush_seconds`.

    Lines that were sent without a response are sent again unchanged, and the store recognizes them: no line is lost or
    stored twice when the store goes away. No handler is delayed; only an attempt that has ended waits for the response.
    """

    flush_seconds = 1.0

    def __init__(
        self, store: ExecutionStore, long_running: Callable[[], Iterable[LogBuffer]], state: WorkerState
    ) -> None:
        self._store = store
        self._lasting = long_running
        self._state = state
        self._flushes = Periodic("spanloom-lines", self._turn, first_pause=self.flush_seconds)
        self._choosing = threading.Lock()  # held for a moment only, while the lines to send are chosen
        self._sending = threading.Lock()  # held during the call of the store
        self._waiting = False  # the store was away the last time

    def start(self) -> None:
        """Send periodically from now on."""
        self._flushes.start()

    def stop(self) -> None:
        """Stop sending."""
        self._flushes.stop()

    def flush(self) -> None:
        """Send the lines that the long-running attempts have written so far."""
        long_running = list(self._lasting())
        with self._sending:
            while long_running:
                long_running = self._send(long_running)

    def settle(self, lines: LogBuffer) -> None:
        """Return once no line of an ended attempt is uncertain. Most attempts have no such line, and cost nothing.

        While the store is away it retries, as the record would, until the worker aborts, for a minute at most. Then the
        record carries the lines: they may be stored twice.
        """
        with self._choosing:
            if not lines.close():
                return
        pause, longest = _PAUSES
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with self._sending:
                if lines.uncertain:
                    self._send([lines])
                if lines.uncertain and time.monotonic() > until:
                    lines.mark_stored(None)
            if not lines.uncertain or self._state.wait_for(Phase.ABORTING, pause):
                return
            pause = min(pause * 2, longest)

    def _turn(self) -> float:
        try:
            self.flush()
        except Exception:
            _log.exception("lines_not_stored")  # the record carries them; the next turn must still come
        return self.flush_seconds

    def _send(self, long_running: list[LogBuffer]) -> list[LogBuffer]:
        """Send the waiting lines, as many as fit into one request, and return the buffers with more."""
        with self._choosing:
            batches = [(lines, request) for lines in long_running if (request := lines.take_batch()) is not None]
        if not batches:
            return []
        try:
            answers = self._store.add_logs([request for _, request in batches])
        except StoreUnavailable as error:
            if not self._waiting:
                _log.warning("lines_wait_for_store", nodes=len(batches), error=str(error))
            self._waiting = True
            if error.reason in (Unavailability.AWAY, Unavailability.TIME_LIMIT):
                return []
            if len(batches) > 1:  # the lines of one attempt may be all that it can't store now
                return [more for lines, _ in batches for more in self._send([lines])]
            for lines, _ in batches:
                lines.mark_unsent()
            return []
        except Exception:
            if len(batches) > 1:  # one bad line fails the lines of its own attempt only
                return [more for lines, _ in batches for more in self._send([lines])]
            ((lines, request),) = batches
            _log.exception(
                "lines_not_stored", execution_id=request.execution_id, node_id=request.node_id, item=request.item
            )
            lines.mark_stored(None)
            return []
        self._waiting = False
        return [lines for (lines, _), last_id in zip(batches, answers, strict=True) if lines.mark_stored(last_id)]
