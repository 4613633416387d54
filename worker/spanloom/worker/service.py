"""The protocol by which a worker's background parts start and stop, and the phase that all of them share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from spanloom.engine.errors import ConfigurationError

__all__ = ["JOIN_SECONDS", "Periodic", "Phase", "Service", "WorkerEvents", "WorkerState", "running"]

JOIN_SECONDS = 5.0  #: how long a thread that waits for a server may keep a worker that stops


class Service(Protocol):
    """A background part of a worker. `start` returns once it works, `stop` once it has ended."""

    def start(self) -> None:
        """Start the service. If this raises, nothing of it is left to stop."""

    def stop(self) -> None:
        """End the service. Waits up to `JOIN_SECONDS` for a thread that waits for a server."""


@contextmanager
def running(service: Service) -> Generator[None]:
    """Run a service while the block lasts."""
    service.start()
    try:
        yield
    finally:
        service.stop()


class Periodic:
    """A service that calls one function periodically, on a thread of its own."""

    def __init__(self, name: str, turn: Callable[[], float], *, first_pause: float) -> None:
        """Call `turn`, which raises nothing and returns the seconds until its next call."""
        self._turn = turn
        self._first_pause = first_pause
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def died(self) -> bool:
        """Whether the thread has ended without stop()."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stopped.is_set()

    def start(self) -> None:
        """Start the thread, which pauses first."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the turn that runs now."""
        self._stopped.set()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        pause = self._first_pause
        while not self._stopped.wait(pause):
            pause = self._turn()


class Phase(IntEnum):
    """The phases of a worker, in their order."""

    STARTING = 0
    WORKING = 1
    DRAINING = 2  # nothing new is claimed; running nodes have their grace
    ABORTING = 3  # the grace is over, or nothing runs: all claims are given back
    STOPPED = 4


class WorkerState:
    """The phase of a worker, which moves forward only. Thread-safe; not for signal handlers, as it takes a lock."""

    def __init__(self) -> None:
        self._phase = Phase.STARTING
        self._changed = threading.Condition()

    @property
    def phase(self) -> Phase:
        """The phase that was reached last."""
        return self._phase

    @property
    def draining(self) -> bool:
        """Whether nothing new may be claimed."""
        return self._phase >= Phase.DRAINING

    @property
    def aborting(self) -> bool:
        """Whether the grace is over."""
        return self._phase >= Phase.ABORTING

    def advance(self, phase: Phase) -> bool:
        """Move on to `phase`; False if it was reached before."""
        with self._changed:
            if phase <= self._phase:
                return False
            self._phase = phase
            self._changed.notify_all()
            return True

    def wait_for(self, phase: Phase, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds until `phase` is reached, and return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._phase >= phase, timeout)


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class WorkerEvents:
    """The callbacks to which a worker's parts report. Each is called on the reporting thread, and raises nothing."""

    ready: Callable[[], object] = _nothing  #: node jobs are fetched from now on
    incompatible: Callable[[ConfigurationError], object] = _nothing  #: this store and Redis do not belong together
    executions_changed: Callable[[Iterable[str]], object] = _nothing  #: a change of these was committed
    executions_ended: Callable[[Sequence[str]], object] = _nothing  #: these ended without a record
    delayed: Callable[[float], object] = _nothing  #: a node run becomes due in so many seconds
    lists_seen: Callable[[Sequence[str]], object] = _nothing  #: these lists exist in Redis; may raise QueueUnavailable
