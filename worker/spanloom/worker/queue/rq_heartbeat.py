"""The heartbeat: renews the worker and its started jobs in RQ, and wakes the loop of a worker that drains."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from spanloom.engine.errors import QueueUnavailable, StoreUnavailable
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.rq_registration import RqRegistration
from spanloom.worker.service import JOIN_SECONDS, Phase, WorkerState

__all__ = ["Heartbeat"]

_log = structlog.get_logger("spanloom.worker")


class Heartbeat:
    """The service that keeps a worker registered with RQ, and follows `rq suspend` and `rq resume`."""

    def __init__(
        self,
        registration: RqRegistration,
        consumer: JobConsumer,
        busy: Callable[[], int],
        state: WorkerState,
        seconds: float,
    ) -> None:
        self._registration = registration
        self._consumer = consumer
        self._busy = busy
        self._state = state
        self._seconds = seconds
        self._name = registration.name
        self.suspended = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"spanloom-heartbeat-{self._name}", daemon=True)

    @property
    def died(self) -> bool:
        """Whether the thread has ended without stop()."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stopped.is_set()

    def start(self) -> None:
        """Register, and renew the registration from now on; the next heartbeat registers if this can't be done now."""
        try:
            self._registration.register()
        except QueueUnavailable as error:
            _log.warning("heartbeat_failed", worker=self._name, error=str(error))
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeat, bring Redis up to date, and unregister."""
        self._stopped.set()
        self._thread.join(JOIN_SECONDS)
        try:
            self._consumer.flush()
            self._registration.unregister()
        except QueueUnavailable as error:
            _log.warning("worker_not_unregistered", worker=self._name, error=str(error))  # its key will expire

    def _run(self) -> None:
        while not self._stopped.is_set():
            draining = self._state.draining
            try:
                self._suspend(self._registration.send_heartbeat(busy=self._busy() > 0))
                self._consumer.renew()
                self._consumer.flush()
                if draining:
                    self._consumer.wake()
            except (QueueUnavailable, StoreUnavailable) as error:
                _log.warning("heartbeat_failed", worker=self._name, error=str(error))
            except Exception:
                _log.exception("heartbeat_failed", worker=self._name)  # the next one must still come
            if draining:
                self._stopped.wait(self._seconds)
            else:
                self._state.wait_for(Phase.DRAINING, self._seconds)

    def _suspend(self, suspended: bool) -> None:
        """Suspend or resume. A blocked fetch is woken, as it would still take the next job."""
        if suspended != self.suspended:
            self.suspended = suspended
            if suspended:
                self._consumer.wake()
            _log.info("worker_suspended" if suspended else "worker_resumed", worker=self._name)
