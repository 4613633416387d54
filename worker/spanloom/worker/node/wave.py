"""Waves: claimed nodes that a slot runs one after the other, so that one call of the store records all of them."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import structlog

from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.store.requests import Claim
from spanloom.worker.briefness import LONG_SECONDS
from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.node.caller import Loaded
from spanloom.worker.node.outcomes import AttemptResult
from spanloom.worker.service import JOIN_SECONDS

__all__ = ["Ended", "Entry", "FinishedRun", "Gatherer", "Wave", "WaveMonitor"]

_log = structlog.get_logger("spanloom.worker")
_MOST_TOGETHER = 100

Entry = tuple[NodeMessage | None, Claim]  #: a claimed node, and its job; None: work first goes on without one


@dataclass(slots=True, eq=False)
class FinishedRun:
    """A node run whose handler has ended, and that is to be recorded."""

    job: NodeMessage | None
    claim: Claim
    attempt: RunningAttempt
    loaded: Loaded | None  #: None: it could not be loaded
    ending: AttemptResult
    error: BaseException | None
    seconds: float


class Wave:
    """The nodes of a slot: those that wait, the one that runs, and those that are to be recorded.

    One that turns out long is left by the others: the monitor takes them, and the slot goes on with that one alone.
    """

    def __init__(self, entries: Iterable[Entry], worker_id: str) -> None:
        self.worker_id = worker_id
        self._lock = threading.Lock()
        self._waiting = deque(entries)
        self._finished: list[FinishedRun] = []
        self._began = math.inf  # of the one that runs

    def next(self) -> Entry | None:
        """Return the node to run now; None if no other waits."""
        with self._lock:
            self._began = time.monotonic()
            return self._waiting.popleft() if self._waiting else None

    def keep(self, run: FinishedRun) -> None:
        """Keep a run until it is taken."""
        with self._lock:
            self._finished.append(run)

    def take(self) -> tuple[list[FinishedRun], list[Entry]]:
        """Return the runs to record, and the nodes that still wait, and forget them."""
        with self._lock:
            taken = self._finished, list(self._waiting)
            self._finished, self._waiting = [], deque()
            return taken

    def is_held_up(self, now: float) -> bool:
        """Return whether others wait for the one that runs, which takes long."""
        return now - self._began > LONG_SECONDS and bool(self._finished or self._waiting)


@dataclass(slots=True, eq=False)
class Ended:
    """The end of a node that ran on the event loop without a thread of its own, and how far work first may still go."""

    entry: Entry
    worker_id: str
    turns_left: int
    until: float
    run: Future[FinishedRun]


class Gatherer:
    """The service that calls `complete` with nodes that ended on the event loop, once for those that ended together."""

    def __init__(self, name: str, complete: Callable[[list[Ended]], object]) -> None:
        """`complete` raises nothing."""
        self._complete = complete
        self._ended: SimpleQueue[Ended | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"spanloom-ends-{name}", daemon=True)

    def put(self, ended: Ended) -> None:
        """Have a node completed. Never waits."""
        self._ended.put(ended)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, once all that has ended is completed."""
        self._ended.put(None)
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while (first := self._ended.get()) is not None:
            together = [first]
            with suppress(Empty):
                while len(together) < _MOST_TOGETHER:
                    if (one := self._ended.get_nowait()) is None:
                        self._ended.put(None)
                        break
                    together.append(one)
            try:
                self._complete(together)
            except Exception:
                _log.exception("ends_not_completed")  # the next ones must still be


class WaveMonitor:
    """The service that calls `leave` with each wave that is held up by one of its nodes."""

    def __init__(self, name: str, leave: Callable[[Wave], object]) -> None:
        """`leave` raises nothing, and waits for nothing."""
        self._leave = leave
        self._waves: set[Wave] = set()
        self._some = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"spanloom-waves-{name}", daemon=True)

    def begin(self, wave: Wave) -> None:
        """Watch a wave from now on."""
        self._waves.add(wave)
        self._some.set()

    def end(self, wave: Wave) -> None:
        """Watch it no longer."""
        self._waves.discard(wave)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._some.set()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._some.wait()
            self._some.clear()
            while self._waves and not self._stopped.wait(LONG_SECONDS):
                now = time.monotonic()
                for wave in tuple(self._waves):
                    if wave.is_held_up(now):
                        try:
                            self._leave(wave)
                        except Exception:
                            _log.exception("wave_not_left")  # the next one must still be
