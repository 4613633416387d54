"""The registration of a worker with RQ: state and heartbeat for RQ's own tools. No work depends on it."""

from __future__ import annotations

import os
import socket
from typing import Any

from rq.serializers import JSONSerializer
from rq.suspension import WORKERS_SUSPENDED
from rq.worker import WorkerStatus
from rq.worker.base import BaseWorker
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_refusals import WrongKeyType

__all__ = ["RqRegistration"]


class RqRegistration(BaseWorker):
    """The entry of a Spanloom worker in RQ's registry, so that RQ's tools list it. Its calls raise QueueUnavailable."""

    def __init__(self, queue: NodeQueue, list_names: list[str], name: str, ttl_seconds: float) -> None:
        super().__init__(
            [queue.rq_queue(list_name) for list_name in list_names],
            name=name,
            connection=queue.redis,
            serializer=JSONSerializer,
            worker_ttl=int(ttl_seconds) + 60,
            prepare_for_work=False,  # it would list all clients of Redis, only to find our address
        )
        self._queue = queue
        self._breaker = queue.breaker
        self.hostname, self.pid = socket.gethostname(), os.getpid()

    @property
    def connection_timeout(self) -> int:
        """0, which keeps the client's time limits; RQ would raise them to minutes."""
        return 0

    def execute_job(self, job: Any, queue: Any) -> None:
        """Raise RuntimeError. Never called: the consumer fetches, and only node jobs run."""
        raise RuntimeError("Spanloom's worker runs node jobs from its own loop")

    def register(self) -> None:
        """Register the worker, in place of a namesake that was killed."""
        try:
            self._register()
        except WrongKeyType:
            self._displace()
            self._register()

    def _displace(self) -> None:
        sets = [self.redis_workers_keys, *(WORKERS_BY_QUEUE_KEY % name for name in self.queue_names())]
        self._queue.displace({**dict.fromkeys(sets, "set"), self.key: "hash"})

    def _register(self) -> None:
        with self._breaker.guard():
            self.connection.delete(self.key)  # a namesake that was killed would keep us out; leases have their own ids
            self.register_birth()  # type: ignore[no-untyped-call]
            self.set_state(WorkerStatus.IDLE)

    def send_heartbeat(self, *, busy: bool) -> bool:
        """Renew the registration, also after Redis was flushed; return whether `rq suspend` is in force."""
        try:
            return self._heartbeat(busy)
        except WrongKeyType:
            self._displace()
            return self._heartbeat(busy)

    def _heartbeat(self, busy: bool) -> bool:
        with self._breaker.guard():
            born, suspended = self._send(busy)
            if not born:
                # RQ would take what was written after a flush for a namesake.
                self.connection.hset(self.key, "death", "")
                self.register_birth()  # type: ignore[no-untyped-call]  # RQ leaves it untyped
                _, suspended = self._send(busy)
            return suspended

    def _send(self, busy: bool) -> tuple[bool, bool]:
        """Send one heartbeat; return whether the worker was registered before, and whether workers are suspended."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.hexists(self.key, "birth")
            self.heartbeat(self.worker_ttl, pipeline=pipeline)
            self.set_state(WorkerStatus.BUSY if busy else WorkerStatus.IDLE, pipeline=pipeline)
            pipeline.exists(WORKERS_SUSPENDED)
            answers = pipeline.execute()
            return bool(answers[0]), bool(answers[-1])

    def unregister(self) -> None:
        """Remove the registration."""
        with self._breaker.guard():
            self.register_death()  # type: ignore[no-untyped-call]
