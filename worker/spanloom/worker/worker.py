"""The worker: opens its lease, fetches and claims node jobs for its free slots, and drains when it is stopped."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError, QueueUnavailable, StoreUnavailable
from spanloom.engine.queue.node_queue import NodeMessage
from spanloom.engine.store.requests import Claim, Refusal
from spanloom.engine.telemetry.call_metrics import instrument, instrument_calls
from spanloom.engine.telemetry.instruments import instruments
from spanloom.worker.lease import Lease
from spanloom.worker.node.caller import Caller
from spanloom.worker.node.claim_monitor import ClaimMonitor
from spanloom.worker.node.event_loop import EventLoopThread
from spanloom.worker.node.lifespan import Lifespan
from spanloom.worker.node.recorder import Recorder
from spanloom.worker.node.runner import NodeRunner
from spanloom.worker.node.timeouts import TimeLimit
from spanloom.worker.options import WorkerOptions
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.isolation import Isolation
from spanloom.worker.queue.notifier import Notifier
from spanloom.worker.queue.registration import RqRegistration
from spanloom.worker.queue.unknown_types import UnknownTypeFilter
from spanloom.worker.slots import Slots
from spanloom.worker.sweeper import Sweeper
from spanloom.worker.telemetry.log_capture import LogCapture
from spanloom.worker.telemetry.log_flusher import LogFlusher
from spanloom.worker.telemetry.span_exporter import SpanExporter
from spanloom.worker.telemetry.worker_metrics import WorkerGauges

__all__ = ["Worker"]

_log = structlog.get_logger("spanloom.worker")
_BLOCK_SECONDS = 5.0  #: one blocking read of Redis; shorter than its client's time limit
_PAUSES = (0.1, 1.0)
_JOIN_SECONDS = 5.0  #: how long a thread that waits for a service may keep a worker that stops


class Worker:
    """One worker: `concurrency` slots, one lease, one sweeper. run() blocks; stop() may be called from anywhere."""

    def __init__(self, engine: WorkflowEngine, options: WorkerOptions | None = None) -> None:
        self.engine = engine
        self.options = options or WorkerOptions()
        self.name = self.options.name or f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{secrets.token_hex(3)}"
        self.on_ready: Callable[[], object] = lambda: None  #: called once node jobs are fetched
        self._stopping = threading.Event()  # no new claims
        self._hurry = threading.Event()  # asked to stop twice
        self._given_up = threading.Event()  # the grace is over
        self._signed_off = threading.Event()  # the lease is about to be given back
        self._incompatible_store: ConfigurationError | None = None  # why no worker may run on this Redis and store
        self._lease = Lease(engine.store, self.name, self.options.queues, self.options.lease_seconds)
        self._consumer = JobConsumer(
            engine.queue, self.options.queues, self.name, renew_seconds=self._lease.renew_seconds
        )
        self._registration = RqRegistration(
            engine.queue, self._consumer.list_names, self.name, self.options.lease_seconds
        )
        self._slots = Slots(self.options.concurrency, f"spanloom-{self.name}")
        self._unknown_types = UnknownTypeFilter(
            self._consumer, engine.registry, self._stopping, keep=not self.options.burst
        )
        self._isolation = Isolation(self._slots, self.options)
        self._claims = ClaimMonitor(engine.store)
        self._log_capture = LogCapture(self.options.log_level, capture_output=self.options.capture_output)
        self._log_flusher = LogFlusher(engine.store, self._claims.long_running_logs, self._given_up)
        self._event_loop = EventLoopThread(f"spanloom-loop-{self.name}")
        self._time_limit = TimeLimit()
        self._sweeper = Sweeper(engine.store, engine.queue, engine.epoch, self._consumer.list_names, self.options)
        self._sweeper.on_incompatible_store = self._stop_for
        self._span_exporter = SpanExporter(engine.store, engine.queue, lambda: self._lease.worker_id)
        self._sweeper.on_ended = self._span_exporter.ended
        self._gauges = WorkerGauges(self._slots, engine.definitions, self._sweeper.queue_depths)
        self._notifier = Notifier(self._consumer, self.name)
        self._lifespan = Lifespan(engine.lifespan, engine, self._event_loop)
        self._beside = [
            threading.Thread(target=run, name=f"spanloom-{what}-{self.name}", daemon=True)
            for what, run in (
                ("lease", self._renew),
                ("presence", self._keep),
                ("claims", self._watch),
                ("lines", self._log_flusher.watch),
            )
        ]
        self._suspended = False
        self._ready = False
        self._last_loop_at = 0.0  # when the loop last went round

    @property
    def phase(self) -> str:
        """What it does: starting, working, or draining."""
        return "draining" if self._stopping.is_set() else "working" if self._ready else "starting"

    @property
    def seconds_since_last_loop(self) -> float:
        """How long ago its loop went round, which blocks for seconds at most; 0 while it starts or drains."""
        return time.monotonic() - self._last_loop_at if self.phase == "working" else 0.0

    def stop(self) -> None:
        """Begin to stop: nothing new is claimed, running nodes have their grace. A second call ends the grace.

        Not for signal handlers, which may interrupt the very lock that this takes.
        """
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def run(self) -> bool:
        """Work until stop(), or in burst mode until nothing is left. Returns whether every slot ended in its grace.

        Raises StoreUnavailable, StoreNotMigrated, QueueUnavailable or ConfigurationError if it can't start, and
        ConfigurationError if the Redis namespace turns out to belong to another store.
        """
        instrument(self.engine.store, self.engine.queue)
        instrument_calls(self._consumer, {"_pop": "fetch", "flush": "flush", "requeue": "requeue"})
        self.engine.queue.ping()
        self.engine.open()
        self.engine.epoch.check()
        state = self._lifespan.enter()
        self._notifier.start()
        try:
            self._lease.open()
            self._registration.register()
            self._log_capture.open()  # after the lifespan, which may have set up logging, and an SDK
            self._sweeper.started_jobs.clean(self.name)  # what a namesake left that was killed
            runner = NodeRunner(
                self.engine,
                name=self.name,
                options=self.options,
                consumer=self._consumer,
                lease=self._lease,
                recorder=Recorder(self.engine.store, lambda: self.engine.epoch.number, self._given_up),
                caller=Caller(
                    self.engine,
                    self._event_loop,
                    self._time_limit,
                    state=state,
                    max_recovery_attempts=self.options.max_recovery_attempts,
                ),
                claims=self._claims,
                span_exporter=self._span_exporter,
                log_capture=self._log_capture,
                log_flusher=self._log_flusher,
                draining=self._stopping,
                given_up=self._given_up,
                due_in=self._sweeper.due_in,
                changed=self._notifier.changed,
            )
            for thread in self._beside:
                thread.start()
            self._span_exporter.start()
            self._sweeper.start()
            self._gauges.start()
            _log.info(
                "worker_ready", worker=self.name, queues=self.options.queues, concurrency=self.options.concurrency
            )
            self._last_loop_at, self._ready = time.monotonic(), True
            self.on_ready()
            self._work(runner)
            ended = self._drain()
        finally:
            self._stopping.set()
            self._given_up.set()
            self._signed_off.set()
            self._log_capture.close()
            self._gauges.stop()
            self._notifier.stop()
            try:
                self._lifespan.leave()
            finally:
                freed = self._event_loop.close()
                self._time_limit.close()
        if self._incompatible_store is not None:
            raise self._incompatible_store
        return ended and freed

    # ---- the loop ----

    def _work(self, runner: NodeRunner) -> None:
        fetched: list[NodeMessage] = []
        token = ""
        pause, longest = _PAUSES
        while not self._stopping.is_set():
            self._last_loop_at = time.monotonic()
            free = self._slots.wait_free(timeout=0.5)
            if not free or self._suspended:
                self._stopping.wait(0.0 if not free else 0.5)
                continue
            try:
                if not fetched and self._isolation.active:
                    suspect = self._isolation.next(timeout=0.5)
                    fetched, token = [] if suspect is None else [suspect], secrets.token_hex(8)
                elif not fetched:
                    idle = not self._slots.busy  # looked at before: what a slot pushes, it pushes before it is free
                    found, token = self._consumer.fetch(free, self._block_seconds()), secrets.token_hex(8)
                    if self.options.burst and idle and not found and not self._sweeper.sweep():
                        break  # nothing waits on a list, and nothing is due
                    fetched = self._isolation.admit(self._unknown_types.return_unknown(found))
                if self._stopping.is_set():
                    break
                self._dispatch(runner, fetched, token)
                fetched, pause = [], _PAUSES[0]
            except Exception as error:
                if isinstance(error, QueueUnavailable) and error.known:
                    _log.debug("worker_waits", worker=self.name, error=str(error))
                elif isinstance(error, QueueUnavailable | StoreUnavailable):
                    _log.warning("worker_waits", worker=self.name, error=str(error))
                else:  # one odd job must not end a worker; what was fetched with it is pushed again by the sweep
                    _log.exception("jobs_dropped", worker=self.name, jobs=len(fetched))
                    fetched = []
                self._stopping.wait(pause)
                pause = min(pause * 2, longest)
        if fetched := [*fetched, *self._isolation.leave()]:
            self._put_back(fetched)

    def _block_seconds(self) -> float:
        if not self.options.burst:
            return _BLOCK_SECONDS
        return 0.05 if self._slots.busy else 0.0

    def _dispatch(self, runner: NodeRunner, messages: Sequence[NodeMessage], token: str) -> None:
        """Claim what was fetched, in one round trip, and hand it to the slots. May be called again if it raised."""
        if not messages:
            return
        worker_id = self._lease.worker_id
        keys = [message.key for message in messages]
        answers = self.engine.store.claim(keys, worker_id=worker_id, token=token)
        if any(answer is Refusal.RETIRED for answer in answers):
            self._lease.replace(worker_id)
            worker_id = self._lease.worker_id
            answers = self.engine.store.claim(keys, worker_id=worker_id, token=token)
        measured, now = instruments(), time.time()
        self._notifier.changed(message.execution_id for message in messages)
        for message, answer in zip(messages, answers, strict=True):
            if isinstance(answer, Claim):
                if measured is not None:
                    measured.job_waited(message.list_name, now - message.pushed_at)
                try:
                    self._slots.submit(partial(runner.run, message, answer, worker_id))
                except RuntimeError:  # no thread for it: with the lease goes what nobody would run
                    self._lease.replace(worker_id)
                    raise
            else:
                _log.debug("claim_refused", execution_id=message.execution_id, node_id=message.node_id, reason=answer)
                self._consumer.discard(message)

    # ---- beside the loop ----

    def _renew(self) -> None:
        """Renew the lease until it is given back. On its own thread: a Redis that hangs must not cost a claim."""
        while not self._signed_off.is_set():
            renewed = False
            try:
                renewed = self._lease.renew()
            except Exception:
                _log.exception("lease_not_renewed", worker=self.name)  # the next renewal must still come
            # A store that was away for nearly a lease leaves no time for the regular turn.
            self._signed_off.wait(self._lease.renew_seconds if renewed else min(self._lease.renew_seconds, _PAUSES[1]))

    def _watch(self) -> None:
        """Look which of the running nodes' claims are gone, until the worker has drained."""
        self._claims.watch(self._given_up)

    def _keep(self) -> None:
        """Renew RQ's registrations until the worker has drained, and wake the loop when it is to stop."""
        while not self._given_up.is_set():
            stopping = self._stopping.is_set()
            try:
                self._suspend(self._registration.send_heartbeat(busy=self._slots.busy > 0))
                self._consumer.renew()
                self._consumer.flush()
                if stopping:
                    self._consumer.wake()
            except (QueueUnavailable, StoreUnavailable) as error:
                _log.warning("heartbeat_failed", worker=self.name, error=str(error))
            except Exception:
                _log.exception("heartbeat_failed", worker=self.name)  # the next one must still come
            if stopping:
                self._given_up.wait(self._lease.renew_seconds)
            else:
                self._stopping.wait(self._lease.renew_seconds)

    def _suspend(self, suspended: bool) -> None:
        """Do as `rq suspend` and `rq resume` ask. A fetch that waits for work would still take what comes next."""
        if suspended != self._suspended:
            self._suspended = suspended
            if suspended:
                self._consumer.wake()
            _log.info("worker_suspended" if suspended else "worker_resumed", worker=self.name)

    def _drain(self) -> bool:
        """Wait for running nodes within their grace, give back the rest, and unregister."""
        self._stopping.set()
        _log.info("worker_stopping", worker=self.name, running=self._slots.busy)
        self._sweeper.stop()  # told now, waited for later: the grace does not wait for a store that hangs
        until = time.monotonic() + self.options.grace_seconds
        while not (ended := self._slots.wait_idle(0.1)) and time.monotonic() < until and not self._hurry.is_set():
            continue
        self._given_up.set()
        if not ended:
            _log.warning("grace_is_over", worker=self.name, running=self._slots.busy)
            self._event_loop.cancel_all()
            ended = self._slots.wait_idle(1.0)
        lease, *others = self._beside
        for thread in (*others, self._sweeper.thread):  # while the lease is renewed: a loss would be counted
            thread.join(_JOIN_SECONDS)
        self._span_exporter.stop()
        self._signed_off.set()
        lease.join(_JOIN_SECONDS)
        try:
            given_back = self.engine.store.unregister_worker(self._lease.worker_id, epoch=self.engine.epoch.number)
            self.engine.push(given_back, changed={job.execution_id for job in given_back})
        except StoreUnavailable as error:
            _log.warning("worker_not_retired", worker=self.name, error=str(error))  # its lease will lapse
        try:
            self._consumer.flush()
            self._registration.unregister()
        except QueueUnavailable as error:
            _log.warning("worker_not_unregistered", worker=self.name, error=str(error))  # its key will expire
        self._slots.close()
        _log.info("worker_stopped", worker=self.name)
        return ended

    def _stop_for(self, error: ConfigurationError) -> None:
        self._incompatible_store = error
        self._stopping.set()

    def _put_back(self, messages: Sequence[NodeMessage]) -> None:
        try:
            self._consumer.requeue(messages)
        except QueueUnavailable as error:
            _log.warning("jobs_not_put_back", jobs=len(messages), error=str(error))  # the sweep pushes them again
