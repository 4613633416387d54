"""The flusher: stores what long nodes say while they run, so that their records need bring only the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import structlog

from spanloom.engine.errors import StoreUnavailable
from spanloom.engine.store.port import ExecutionStore
from spanloom.worker.telemetry.log_buffer import Lines

__all__ = ["Flusher"]

_log = structlog.get_logger("spanloom.worker")
_PAUSES = (0.05, 1.0)


class Flusher:
    """Send lines of the attempts that run for long, once in `look_seconds`, together.

    What was sent and not answered is sent again as it was, and the store knows it again: no line is lost or kept twice
    when the store goes away. A handler is never held up; only an attempt that has ended waits for such an answer.
    """

    look_seconds = 1.0

    def __init__(
        self, store: ExecutionStore, lasting: Callable[[], Iterable[Lines]], given_up: threading.Event
    ) -> None:
        self._store = store
        self._lasting = lasting
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
        lasting = list(self._lasting())
        with self._sending:
            while lasting:
                lasting = self._send(lasting)

    def settle(self, lines: Lines) -> None:
        """Return once it is known which lines of an attempt that has ended are stored. Costs nothing for most.

        While the store is away it tries again, as the record would, until the worker gives up.
        """
        with self._choosing:
            if not lines.close():
                return
        pause, longest = _PAUSES
        while True:
            with self._sending:
                if lines.in_doubt:
                    self._send([lines])
            if not lines.in_doubt or self._given_up.wait(pause):
                return
            pause = min(pause * 2, longest)

    def _send(self, lasting: list[Lines]) -> list[Lines]:
        """Send what is waiting, as much as goes into one request, and return those of which more waits."""
        with self._choosing:
            offered = [(lines, asked) for lines in lasting if (asked := lines.offer()) is not None]
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
            lines.kept(None)
            return []
        self._waiting = False
        return [lines for (lines, _), last_id in zip(offered, answers, strict=True) if lines.kept(last_id)]
