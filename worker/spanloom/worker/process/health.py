"""Liveness and readiness of a worker, returned in bounded time even if store or queue hang."""

from __future__ import annotations

from spanloom.worker.worker import Worker

__all__ = ["Health"]

_STUCK_SECONDS = 60.0  #: far longer than one turn of the loop, even with a store that is slow


class Health:
    """Liveness and readiness of one worker. Thread-safe.

    A worker without its store or Redis is not ready, but alive: a restart would not bring them back.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def liveness(self) -> dict[str, str]:
        """Return the reasons to restart this process, by part; empty if it is alive."""
        if self._worker.stalled is not None:
            return {"worker": f"it gives up: {self._worker.stalled}"}
        still = self._worker.seconds_since_last_loop
        if still < _STUCK_SECONDS or self._worker.servers.problems():  # it waits for a server
            return {}
        return {"worker": f"its loop has not gone round for {still:.0f} s, though store and queue answer"}

    def readiness(self) -> dict[str, str]:
        """Return the reasons why this worker can't run nodes, by part; empty if it is ready.

        Takes no longer than 1.5 s: a store or queue that has not answered by then is a reason.
        """
        phase = self._worker.phase
        problems = ({} if phase == "working" else {"worker": f"it is {phase}"}) | self._worker.servers.problems()
        if unserved := self._worker.store_problems:  # even if it answers, it does not do all that this worker needs
            problems["store"] = "; ".join([*filter(None, [problems.get("store")]), *unserved])
        if (sweeps := self._worker.sweep_problem) is not None:
            problems["sweep"] = sweeps
        return problems
