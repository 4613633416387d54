"""The flusher: stores what long nodes say while they run, so that their records need bring only the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import structlog

from spanloom.engine.errors import StoreUnavailable
from spanloom.engine.store.port import ExecutionStore
from spanloom.worker.telemetry.log_buffer import LogBuffer

__all__ = ["LogFlusher"]

_log = structlog.get_logger("spanloom.worker")
_PAUSES = (0.05, 1.0)


class LogFlusher:
    """Send lines of the attempts that run for long, once in `look_seconds`, together.

    What was sent and not answered is sent again as it was, and the store knows it again: no line is lost or kept twice
    when the store goes away. A handler is never held up; only an attempt that has ended waits for such an answer.
    """

    look_seconds = 1.0

    def __init__(
        self, store: ExecutionStore, long_running: Callable[[], Iterable[LogBuffer]], given_up: threading.Event
    ) -> None:
        self._store = store
        self._lasting = long_running
        self._given_up = given_up
        self._choosing = threading.Lock()  # which lines are sent; held for a moment only
        self._sending = threading.Lock()  # held while the store is asked
        self._waiting = False  # the store was away the last time

    def watch(self) -> None:
        """Send again and again until the worker has given up."""
        while not self._given_up.wait(self.look_seconds):
            try:
                self.flush()
            except Exception:
                _log.exception("lines_not_stored")  # they come with the record; the next turn must still come

    def flush(self) -> None:
        """Send what the lasting attempts have said so far."""
        long_running = list(self._lasting())
        with self._sending:
            while long_running:
                long_running = self._send(long_running)

    def settle(self, lines: LogBuffer) -> None:
        """Return once it is known which lines of an attempt that has ended are stored. Costs nothing for most.

        While the store is away it tries again, as the record would, until the worker gives up.
        """
        with self._choosing:
            if not lines.close():
                return
        pause, longest = _PAUSES
        while True:
            with self._sending:
                if lines.uncertain:
                    self._send([lines])
            if not lines.uncertain or self._given_up.wait(pause):
                return
            pause = min(pause * 2, longest)

    def _send(self, long_running: list[LogBuffer]) -> list[LogBuffer]:
        """Send what is waiting, as much as goes into one request, and return those of which more waits."""
        with self._choosing:
            offered = [(lines, asked) for lines in long_running if (asked := lines.take_batch()) is not None]
        if not offered:
            return []
        try:
            answers = self._store.add_logs([asked for _, asked in offered])
        except StoreUnavailable as error:
            if not self._waiting:
                _log.warning("lines_wait_for_store", nodes=len(offered), error=str(error))
            self._waiting = True
            return []
        except Exception:
            if len(offered) > 1:  # one bad line fails its own attempt's, not its neighbours'
                return [more for lines, _ in offered for more in self._send([lines])]
            ((lines, asked),) = offered
            _log.exception("lines_not_stored", execution_id=asked.execution_id, node_id=asked.node_id, item=asked.item)
            lines.mark_stored(None)
            return []
        self._waiting = False
        return [lines for (lines, _), last_id in zip(offered, answers, strict=True) if lines.mark_stored(last_id)]
