"""The claim monitor: tracks running attempts and detects revoked claims."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from spanloom.engine.errors import StoreUnavailable
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeKey
from spanloom.engine.workflow.compiled import CompiledWorkflow
from spanloom.engine.workflow.definitions import Node
from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.service import Periodic
from spanloom.worker.telemetry.log_buffer import LogBuffer

__all__ = ["ClaimMonitor", "RunningNode"]

_log = structlog.get_logger("spanloom.worker")


class RunningNode(NamedTuple):
    """A node that runs here: its attempt, the worker id of its claim, and its definition."""

    attempt: RunningAttempt
    worker_id: str
    since: float
    plan: CompiledWorkflow
    node: Node


class ClaimMonitor:
    """The service that revokes running attempts after their execution was cancelled or their run was reset.

    It reads the store once in `check_seconds`, and only while an attempt has run for longer than that; and once in
    `orphan_seconds`.
    """

    check_seconds = 1.0

    orphan_seconds = 5.0  #: between two checks for claims that nobody here answers for

    def __init__(self, store: ExecutionStore, find_orphans: Callable[[], object] = lambda: None) -> None:
        """`find_orphans` is called once in `orphan_seconds`. It may raise StoreUnavailable."""
        self._store = store
        self._find_orphans = find_orphans
        self._orphans_at = time.monotonic() + self.orphan_seconds
        self._checks = Periodic("spanloom-claims", self._turn, first_pause=self.check_seconds)
        self._running: dict[RunningAttempt, RunningNode] = {}

    def begin(self, attempt: RunningAttempt, worker_id: str, plan: CompiledWorkflow, node: Node) -> None:
        """Monitor an attempt from now on."""
        self._running[attempt] = RunningNode(attempt, worker_id, time.monotonic(), plan, node)

    def end(self, attempt: RunningAttempt) -> None:
        """Monitor the attempt no longer."""
        del self._running[attempt]

    def start(self) -> None:
        """Check periodically from now on."""
        self._checks.start()

    def stop(self) -> None:
        """Stop checking."""
        self._checks.stop()

    def running(self) -> list[RunningNode]:
        """Return the nodes that run now."""
        return list(self._running.values())

    @property
    def died(self) -> bool:
        """Whether the thread that checks has ended without stop()."""
        return self._checks.died

    def long_running(self) -> list[tuple[RunningAttempt, str]]:
        """Return the attempts that have run for longer than `check_seconds`, each with the worker id of its claim."""
        long_ago = time.monotonic() - self.check_seconds
        return [(one.attempt, one.worker_id) for one in self.running() if one.since <= long_ago]

    def long_running_logs(self) -> list[LogBuffer]:
        """Return the log buffers of the long-running attempts."""
        return [attempt.log_buffer for attempt, _ in self.long_running()]

    def check(self) -> None:
        """Revoke the long-running attempts that no longer hold their claim in the store. Raises StoreUnavailable."""
        long_running = self.long_running()
        for worker_id in {worker_id for _, worker_id in long_running}:
            held = self._store.list_claims(worker_id)
            for attempt in (attempt for attempt, claimed_by in long_running if claimed_by == worker_id):
                header, node = attempt.claim.header, attempt.claim.node
                key = NodeKey(header.execution_id, node.node_id, node.item)
                if held.get(key) != node.fence and attempt in self._running and attempt.revoke():
                    _log.info("claim_revoked", **attempt.log_buffer.ids(), span_id=attempt.own.span_id)

    def _turn(self) -> float:
        try:
            self.check()
            if time.monotonic() >= self._orphans_at:
                self._orphans_at = time.monotonic() + self.orphan_seconds
                self._find_orphans()
        except StoreUnavailable as error:
            _log.warning("claims_not_seen", error=str(error))
        except Exception:
            _log.exception("claims_not_seen")  # the next check must still come
        return self.check_seconds
