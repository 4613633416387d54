"""The lease: one row per worker, renewed by a thread of its own; every claim of the worker depends on it."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

import structlog

from spanloom.engine.errors import StoreUnavailable
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.telemetry.instruments import instruments
from spanloom.worker.service import Periodic
from spanloom.worker.store_troubles import StoreTroubles

__all__ = ["Lease"]

_log = structlog.get_logger("spanloom.worker")
_AGAIN_SECONDS = 1.0


class Lease:
    """The service that holds a worker's lease. A lease that lapsed is never renewed: a new one takes its place."""

    def __init__(
        self,
        store: ExecutionStore,
        name: str,
        queues: tuple[str, ...],
        seconds: float,
        *,
        give_back: Callable[[str], object] = lambda worker_id: None,
        troubles: StoreTroubles | None = None,
    ) -> None:
        """Call `give_back` at the end with the worker id, once it is no longer renewed. False: it failed."""
        self._store = store
        self._troubles = troubles or StoreTroubles()
        self.name = name
        self._queues = queues
        self._seconds = seconds
        self._lock = threading.Lock()
        self._lost: set[str] = set()
        self._give_back = give_back
        # On its own thread: a Redis that hangs must not cost a claim.
        self._renewal = Periodic(f"spanloom-lease-{name}", self._turn, first_pause=0.0)
        self._owed: set[str] = set()  # given up, and not given back yet
        self.worker_id = ""
        self.turns = 0  #: rises while it is renewed, or waits for the store
        self.renewed_at = 0.0  #: when the store last renewed it, by the monotonic clock

    @property
    def died(self) -> bool:
        """Whether the thread that renews it has ended without stop()."""
        return self._renewal.died

    @property
    def renew_seconds(self) -> float:
        """Seconds between renewals: a third of the lease."""
        return self._seconds / 3

    def open(self) -> None:
        """Register with a new worker id. Raises StoreUnavailable."""
        with self._lock:
            self._register()

    def start(self) -> None:
        """Register, and renew the lease from now on. Raises StoreUnavailable."""
        self.open()
        self._renewal.start()

    def stop(self) -> None:
        """Stop renewing the lease, and give it back with all its claims."""
        self._renewal.stop()
        self._give_back(self.worker_id)

    def renew(self) -> bool:
        """Renew once; open a new lease after a lapse. Logs and returns False if the store does not answer."""
        worker_id = self.worker_id
        try:
            self._settle()
            # A lease that was given up is never renewed, even if its successor is not registered yet: it must lapse.
            if self.is_lost(worker_id) or not self._store.renew_lease(worker_id, lease_seconds=self._seconds):
                self.replace(worker_id)
        except StoreUnavailable as error:
            self._troubles.met("lease", error, "lease_not_renewed", worker=self.name)
            return False
        self.renewed_at = time.monotonic()
        self._troubles.over("lease")
        return True

    def give_up(self, worker_id: str) -> None:
        """Replace a lease under which claims can't be run or recorded here, and give these back.

        They go to other workers at once, and do not count as lost. If the store can't do it now, a later renewal gives
        them back.
        """
        self._owed.add(worker_id)
        try:
            self.replace(worker_id)
        except StoreUnavailable as error:
            self._troubles.met("lease", error, "lease_not_renewed", worker=self.name)
        self._settle()

    def _settle(self) -> None:
        for worker_id in tuple(self._owed):
            if self._give_back(worker_id) is not False:
                self._owed.discard(worker_id)

    def replace(self, lapsed: str) -> None:
        """Give up a lapsed worker id with its claims, and register under a new id, once. Raises StoreUnavailable."""
        with self._lock:  # held while registering: a second caller finds the new id, and claims under no other
            if self.worker_id != lapsed:
                return
            self._lost.add(lapsed)
            _log.warning("lease_lost", worker=self.name, worker_id=lapsed)
            if (measured := instruments()) is not None:
                measured.lease_lost()
            self._register()

    def is_lost(self, worker_id: str) -> bool:
        """Whether this worker id was given up: its claims may belong to other workers now."""
        return worker_id in self._lost

    def lost_check(self, worker_id: str) -> Callable[[], bool]:
        """Return is_lost bound to one id."""
        return lambda: self.is_lost(worker_id)

    def _turn(self) -> float:
        renewed = False
        try:
            renewed = self.renew()
            self.turns += 1
        except Exception:
            _log.exception("lease_not_renewed", worker=self.name)  # the next renewal must still come
        # After an outage of nearly a lease there is no time for the regular pause.
        return self.renew_seconds if renewed else min(self.renew_seconds, _AGAIN_SECONDS)

    def _register(self) -> None:
        worker_id = f"{self.name}:{secrets.token_hex(4)}"
        self._store.register_worker(
            worker_id,
            name=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self._queues,
            lease_seconds=self._seconds,
        )
        self.worker_id = worker_id
