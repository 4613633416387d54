"""The servers of a worker: whether store and Redis answer, in bounded time even if they hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from spanloom.engine.errors import SpanloomError, StoreUnavailable
from spanloom.engine.store.port import ExecutionStore

__all__ = ["Servers", "check_store"]

_ANSWER_SECONDS = 1.5  #: how long a probe may wait; shorter than the usual timeout of probes
_FRESH_SECONDS = 1.0  #: how long a result is reused, for any number of probes


class Servers:
    """The store and the Redis of a worker, as they are at the moment. Thread-safe."""

    def __init__(self, store: Callable[[], object], queue: Callable[[], object]) -> None:
        """Take a function for each that raises if it does not answer, and that may hang."""
        self._checks = {"store": _Check(store), "queue": _Check(queue)}

    def problems(self) -> dict[str, str]:
        """Return the reasons of those that do not answer, by name. Takes no longer than 1.5 s."""
        problems: dict[str, str] = {}
        until = time.monotonic() + _ANSWER_SECONDS
        answers = {name: check.start() for name, check in self._checks.items()}
        for name, answer in answers.items():
            try:
                problem = answer.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                problem = f"it did not answer within {_ANSWER_SECONDS:g} s"
            if problem is not None:
                problems[name] = problem
        return problems


def check_store(store: ExecutionStore) -> None:
    """Raise StoreUnavailable if a store does not answer, or takes no writes now."""
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
