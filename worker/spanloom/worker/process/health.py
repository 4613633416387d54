"""Liveness and readiness of a worker, returned in bounded time even if store or queue hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from spanloom.engine.errors import SpanloomError, StoreUnavailable
from spanloom.engine.store.port import ExecutionStore
from spanloom.worker.worker import Worker

__all__ = ["Health"]

_STUCK_SECONDS = 60.0  #: far longer than one turn of the loop, even with a store that is slow
_ANSWER_SECONDS = 1.5  #: how long a probe may wait; shorter than the usual timeout of probes
_FRESH_SECONDS = 1.0  #: how long a result is reused, for any number of probes


class Health:
    """Liveness and readiness of one worker. Thread-safe.

    A worker without its store or Redis is not ready, but alive: a restart would not bring them back.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._store = _Check(lambda: _check_store(worker.engine.store))
        self._queue = _Check(worker.engine.queue.ping)

    def liveness(self) -> dict[str, str]:
        """Return the reasons to restart this process, by part; empty if it is alive."""
        still = self._worker.seconds_since_last_loop
        if still < _STUCK_SECONDS or self._services():  # it waits for a server
            return {}
        return {"worker": f"its loop has not gone round for {still:.0f} s, though store and queue answer"}

    def readiness(self) -> dict[str, str]:
        """Return the reasons why this worker can't run nodes, by part; empty if it is ready.

        Takes no longer than 1.5 s: a store or queue that has not answered by then is a reason.
        """
        phase = self._worker.phase
        problems = ({} if phase == "working" else {"worker": f"it is {phase}"}) | self._services()
        if "store" not in problems and (unserved := self._worker.store_problems):
            problems["store"] = "; ".join(unserved)  # it answers, and does not do all that this worker needs
        if (sweeps := self._worker.sweep_problem) is not None:
            problems["sweep"] = sweeps
        return problems

    def _services(self) -> dict[str, str]:
        problems: dict[str, str] = {}
        until = time.monotonic() + _ANSWER_SECONDS
        answers = {"store": self._store.start(), "queue": self._queue.start()}
        for name, answer in answers.items():
            try:
                problem = answer.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                problem = f"it did not answer within {_ANSWER_SECONDS:g} s"
            if problem is not None:
                problems[name] = problem
        return problems


def _check_store(store: ExecutionStore) -> None:
    store.health()
    if (problem := store.write_problem()) is not None:
        raise StoreUnavailable(f"{store.url} takes no writes now: {problem}")


class _Check:
    """A check that may hang, on a thread of its own. It runs once at a time; concurrent calls share its result."""

    def __init__(self, check: Callable[[], object]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._started_at = float("-inf")
        self._answer: Future[str | None] | None = None

    def start(self) -> Future[str | None]:
        """Return the future result: the problem, or None."""
        with self._lock:
            old = self._answer
            if old is None or (old.done() and time.monotonic() - self._started_at > _FRESH_SECONDS):
                answer: Future[str | None] = Future()
                self._answer, self._started_at = answer, time.monotonic()
                threading.Thread(target=self._run, args=(answer,), name="spanloom-health", daemon=True).start()
                return answer
            return old

    def _run(self, answer: Future[str | None]) -> None:
        try:
            self._check()
        except SpanloomError as error:
            answer.set_result(str(error))
        except Exception as error:  # an error of a driver; its text may hold secrets
            answer.set_result(f"it fails with {type(error).__name__}")
        else:
            answer.set_result(None)
