"""The worker: opens its lease, fetches and claims node jobs for its free slots, and drains when it is stopped."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

import structlog

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError, QueueUnavailable, StoreUnavailable, WorkerStalled
from spanloom.engine.handlers.builtin import BUILT_IN
from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.queue.redis_refusals import WrongKeyType
from spanloom.engine.telemetry.call_metrics import instrument, instrument_calls
from spanloom.worker.briefness import Briefness
from spanloom.worker.dispatcher import Dispatcher
from spanloom.worker.held_claims import HeldClaims
from spanloom.worker.isolated.pool import HandlerProcesses
from spanloom.worker.lease import Lease
from spanloom.worker.node.caller import Caller
from spanloom.worker.node.claim_monitor import ClaimMonitor
from spanloom.worker.node.event_loop import EventLoopThread
from spanloom.worker.node.handler_waits import HandlerWaits
from spanloom.worker.node.identity import WorkerIdentity
from spanloom.worker.node.lifespan import Lifespan
from spanloom.worker.node.runner import NodeRunner
from spanloom.worker.node.shortages import Shortages
from spanloom.worker.node.timeouts import TimeLimit
from spanloom.worker.options import WorkerOptions
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.notifier import Notifier
from spanloom.worker.queue.poison_jobs import Isolation
from spanloom.worker.queue.rq_heartbeat import Heartbeat
from spanloom.worker.queue.rq_registration import RqRegistration
from spanloom.worker.queue.unknown_types import SideListFollower, UnknownTypeFilter
from spanloom.worker.recording.completion import Completion
from spanloom.worker.recording.recorder import Recorder
from spanloom.worker.service import Phase, Service, WorkerEvents, WorkerState, running
from spanloom.worker.slots import Slots
from spanloom.worker.store_troubles import StoreTroubles, as_passing
from spanloom.worker.sweeper import Sweeper
from spanloom.worker.telemetry.log_capture import LogCapture
from spanloom.worker.telemetry.log_flusher import LogFlusher
from spanloom.worker.telemetry.span_exporter import SpanExporter
from spanloom.worker.telemetry.worker_metrics import WorkerGauges
from spanloom.worker.watch.pulse import Pulse, Turning
from spanloom.worker.watch.recycling import Recycling
from spanloom.worker.watch.servers import Servers, check_store
from spanloom.worker.watch.surrender import Surrender
from spanloom.worker.watch.threads import check_threads

__all__ = ["Worker"]

_log = structlog.get_logger("spanloom.worker")
_BLOCK_SECONDS = 5.0  #: one blocking read of Redis; shorter than its client's time limit
_PAUSES = (0.1, 1.0)
_PATIENCE_SECONDS = 60.0  #: for a record that makes no way while the lease is renewed


class Worker:
    """One worker: `concurrency` slots, one lease, one sweeper. run() blocks; stop() may be called from anywhere."""

    def __init__(
        self,
        engine: WorkflowEngine,
        options: WorkerOptions | None = None,
        *,
        ready: Callable[[], object] = lambda: None,
        beat: Callable[[], object] = lambda: None,
        given_up: Callable[[], object] = lambda: None,
        failure: Callable[[], str | None] = lambda: None,
        recycle: Callable[[], object] | None = None,
        app: str | None = None,
    ) -> None:
        """`ready` is called once node jobs are fetched, then `beat` several times a second while all parts move.

        `given_up` is called when one of them stands still, once its claims have an end; it may end the process.
        `failure` returns why this process can't be trusted any more; None if it can. `recycle` is called once this
        process is to be replaced; without it the worker stops. `app`, as `module:name`, is for handler processes.
        """
        self.engine = engine
        self.options = options = options or WorkerOptions()
        self.name = name = options.name or f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{secrets.token_hex(3)}"
        self.state = state = WorkerState()
        self._incompatible: ConfigurationError | None = None  # why no worker may run on this Redis and store
        self._last_loop_at = 0.0  # when the loop last went round
        self._turns = 0  # of the loop, without those that failed by a bug
        self.servers = Servers(lambda: check_store(engine.store), engine.queue.ping)

        self._troubles = troubles = StoreTroubles()
        self._lease = Lease(
            engine.store, name, options.queues, options.lease_seconds, give_back=self._give_back, troubles=troubles
        )
        self._consumer = JobConsumer(engine.queue, options.queues, name, renew_seconds=self._lease.renew_seconds)
        lists = self._consumer.list_names
        self._slots = slots = Slots(options.concurrency, f"spanloom-{name}")
        self._briefness = Briefness()
        self._unknown_types = UnknownTypeFilter(self._consumer, engine.registry)
        side_lists = SideListFollower(self._consumer, lambda: {*engine.registry.types, *BUILT_IN})
        self._isolation = Isolation(self._slots, options)
        self._shortages = Shortages(2 * options.stalled_after or 120.0)
        self._event_loop = EventLoopThread(f"spanloom-loop-{name}")
        self._time_limit = TimeLimit()
        self._processes = HandlerProcesses(engine, options, app)
        self._lifespan = Lifespan(engine.lifespan, engine, self._event_loop)

        span_exporter = SpanExporter(engine.store, engine.queue, lambda: self._lease.worker_id)
        notifier = Notifier(self._consumer, name)
        self._events = WorkerEvents(
            ready=ready,
            incompatible=self._stop_for,
            executions_changed=notifier.changed,
            executions_ended=span_exporter.ended,
            delayed=lambda seconds: self._sweeper.due_in(seconds),
            lists_seen=side_lists.follow,
        )
        self._sweeper = Sweeper(engine.store, engine.queue, engine.epoch, lists, options, self._events, troubles, slots)
        self._held = HeldClaims(engine)
        self._dispatcher = Dispatcher(
            engine, self._consumer, self._briefness, self._lease, self._held, troubles, self._events
        )
        self._claims = ClaimMonitor(engine.store, lambda: self._held.check(self._lease.worker_id))
        self._log_capture = LogCapture(options.log_level, capture_output=options.capture_output)
        log_flusher = LogFlusher(engine.store, self._claims.long_running_logs, state)
        registration = RqRegistration(engine.queue, lists, name, options.lease_seconds)
        self._heartbeat = Heartbeat(
            registration, self._consumer, lambda: self._slots.busy, state, self._lease.renew_seconds
        )
        self._recorder = Recorder(
            engine.store,
            lambda: engine.epoch.number,
            state,
            before=span_exporter.begin,
            troubles=troubles,
            served_at=lambda: self._lease.renewed_at,
            patience_seconds=max(_PATIENCE_SECONDS, 2 * options.lease_seconds),
        )
        recycling = self._recycling = Recycling(options, name, recycle or (lambda: state.advance(Phase.DRAINING)))
        self._identity = identity = WorkerIdentity(options, self._lease, self._shortages, recycling)
        self._completion = Completion(
            engine,
            identity,
            self._recorder,
            self._consumer,
            log_flusher,
            span_exporter,
            self._briefness,
            state,
            self._events,
        )
        self._surrender = Surrender(engine, self._lease, self._claims, state, given_up)
        pulse = Pulse(
            {
                "lease": self._lease,
                "sweeper": self._sweeper,
                "heartbeat": self._heartbeat,
                "claim monitor": self._claims,
                "event loop": self._event_loop,
            },
            (
                Turning("loop", lambda: self._turns if state.phase is Phase.WORKING else None, 2 * _BLOCK_SECONDS),
                Turning("lease", lambda: self._lease.turns, self._lease.renew_seconds),
                Turning(
                    "sweeper", lambda: None if state.draining else self._sweeper.turns, self._sweeper.longest_pause
                ),
                Turning("recorder", lambda: self._recorder.turns if self._recorder.calls else None),
            ),
            self._claims,
            self._event_loop,
            self.servers,
            seconds=options.stalled_after,
            grace_seconds=options.grace_seconds,
            own_failure=lambda: self._slots.failure or failure(),
            shortage=self._shortages.problem,
            beat=beat,
            state=state,
            surrender=self._surrender,
        )
        # In the order in which they start; they stop in reverse. The lease is renewed until whatever claims, or waits
        # for a server, has ended. Redis is brought up to date once the lease was given back.
        self._services: tuple[Service, ...] = (
            self._log_capture,  # after the lifespan, which may have set up logging, and an SDK
            WorkerGauges(self._slots, engine.definitions, self._sweeper.queue_depths),
            self._heartbeat,
            self._lease,
            span_exporter,
            self._sweeper,
            notifier,
            log_flusher,
            self._claims,
            pulse,
        )

    @property
    def stalled(self) -> str | None:
        """Why it gives up; None if it does not."""
        return self._surrender.reason

    @property
    def phase(self) -> str:
        """What it does: starting, working, draining, aborting, or stopped."""
        return self.state.phase.name.lower()

    @property
    def store_problems(self) -> list[str]:
        """A sentence for each thing that the store does not do for this worker now."""
        return self._troubles.problems()

    @property
    def seconds_since_last_loop(self) -> float:
        """How long ago its loop went round, which blocks for seconds at most; 0 while it starts or drains."""
        return time.monotonic() - self._last_loop_at if self.state.phase is Phase.WORKING else 0.0

    @property
    def sweep_problem(self) -> str | None:
        """Why its sweeps have failed for some seconds; None if they do not."""
        return self._sweeper.problem

    def stop(self) -> None:
        """Begin to stop: nothing new is claimed, running nodes have their grace. A second call ends the grace.

        Not for signal handlers, which may interrupt the very lock that this takes.
        """
        if not self.state.advance(Phase.DRAINING):
            self.state.advance(Phase.ABORTING)

    def run(self) -> bool:
        """Work until stop(), or in burst mode until nothing is left. Returns whether every slot ended in its grace.

        Raises StoreUnavailable, StoreNotMigrated, QueueUnavailable or ConfigurationError if it can't start,
        ConfigurationError if the Redis namespace turns out to belong to another store, and WorkerStalled if it gave up.
        """
        check_threads()
        try:
            instrument(self.engine.store, self.engine.queue)
            instrument_calls(self._consumer, {"_pop": "fetch", "flush": "flush", "requeue": "requeue"})
            self.engine.queue.check_for_worker()
            self.engine.open()
            self.engine.epoch.recent()
            processes = closing(self._processes)
            with closing(self._time_limit), closing(self._event_loop), self._lifespan as app_state, processes:
                runner = self._runner(app_state)
                with running(runner):
                    ended = self._serve(runner)
        finally:
            self.state.advance(Phase.STOPPED)
        if self.stalled is not None:
            raise WorkerStalled(self.name, self.stalled)
        if self._incompatible is not None:
            raise self._incompatible
        return ended and self._event_loop.closed

    def _serve(self, runner: NodeRunner) -> bool:
        """Run the services, the loop and the drain; return whether every slot ended."""
        with ExitStack() as stack:
            stack.callback(self._slots.close)
            try:
                for service in self._services:
                    stack.enter_context(running(service))
                with suppress(QueueUnavailable):  # the sweeper cleans, too
                    self._sweeper.started_jobs.clean(self.name)  # what a namesake left that was killed
                self._recycling.check_start()
                options = self.options
                _log.info("worker_ready", worker=self.name, queues=options.queues, concurrency=options.concurrency)
                self._last_loop_at = time.monotonic()
                self.state.advance(Phase.WORKING)
                self._events.ready()
                self._loop(runner)
                ended = self._drain()
            finally:
                self.state.advance(Phase.ABORTING)
        _log.info("worker_stopped", worker=self.name)
        return ended

    def _runner(self, app_state: Any) -> NodeRunner:
        return NodeRunner(
            self.engine,
            self._identity,
            self._consumer,
            self._event_loop,
            Caller(
                self.engine,
                self._time_limit,
                self._claims,
                app_state,
                self.options,
                HandlerWaits(self.engine.store, self._slots, self.name),
                self._processes,
            ),
            self._completion,
            self._log_capture,
            self._slots,
            self._briefness,
            self.state,
            self._held,
        )

    # ---- the loop ----

    def _loop(self, runner: NodeRunner) -> None:
        fetched: list[NodeMessage] = []
        token = ""
        pause, longest = _PAUSES
        while not self.state.draining:
            self._last_loop_at = time.monotonic()
            free = self._slots.wait_free(timeout=0.5)
            if not free or self._heartbeat.suspended or self._shortages.pause:
                self._turns += 1
                self.state.wait_for(Phase.DRAINING, 0.5 if free else 0.0)
                continue
            try:
                if not fetched and self._isolation.active:
                    suspect = self._isolation.next(timeout=0.5)
                    fetched, token = [] if suspect is None else [suspect], secrets.token_hex(8)
                elif not fetched:
                    idle = not self._slots.busy  # looked at before: what a slot pushes, it pushes before it is free
                    token = secrets.token_hex(8)
                    found = self._dispatcher.take_kept() or self._fetch(free)
                    if self.options.burst and idle and not found and not self._sweeper.sweep():
                        break  # nothing waits on a list, and nothing is due
                    fetched = self._isolation.admit(self._unknown_types.put_aside(found))
                    fetched = self._dispatcher.portion(fetched, free)
                if self.state.draining:
                    break
                self._dispatcher.dispatch(runner.take, fetched, token)
                fetched, pause = [], _PAUSES[0]
                self._turns += 1
            except Exception as error:
                if isinstance(error, StoreUnavailable):
                    self._troubles.met("claim", error, "worker_waits", worker=self.name)
                    if self._put_off(error, fetched):
                        fetched = []
                elif isinstance(error, QueueUnavailable):
                    say = _log.debug if error.known or isinstance(error, WrongKeyType) else _log.warning
                    say("worker_waits", worker=self.name, error=str(error))
                else:  # one odd job must not end a worker; what was fetched with it is pushed again by the sweep
                    _log.exception("jobs_dropped", worker=self.name, jobs=len(fetched))
                    fetched = []
                self._turns += isinstance(error, QueueUnavailable | StoreUnavailable)
                self.state.wait_for(Phase.DRAINING, pause)
                pause = min(pause * 2, longest)
        left = [*fetched, *self._dispatcher.take_kept(), *self._isolation.leave(), *self._unknown_types.leave()]
        if left:
            self._put_back(left)

    def _fetch(self, free: int) -> list[NodeMessage]:
        seconds = _BLOCK_SECONDS if not self.options.burst else 0.05 if self._slots.busy else 0.0
        return self._consumer.fetch(self._briefness.wanted(free), seconds)

    # ---- the end ----

    def _drain(self) -> bool:
        """Let running nodes end within their grace, and return whether all did. The rest goes back with the lease."""
        self.state.advance(Phase.DRAINING)
        _log.info("worker_stopping", worker=self.name, running=self._slots.busy)
        self._sweeper.finish()  # not waited for yet: the grace does not wait for a store that hangs
        until = time.monotonic() + self.options.grace_seconds
        while not (ended := self._slots.wait_idle(0.1)) and time.monotonic() < until and not self.state.aborting:
            continue
        self.state.advance(Phase.ABORTING)
        if not ended:
            _log.warning("grace_is_over", worker=self.name, running=self._slots.busy)
            self._event_loop.cancel_all()
            ended = self._slots.wait_idle(1.0)
        return ended

    def _give_back(self, worker_id: str) -> bool:
        if self.stalled is not None:
            return True  # the surrender gives back what is to be given back
        try:
            given_back = self.engine.store.unregister_worker(worker_id, epoch=self.engine.epoch.number)
        except Exception as error:  # its lease will lapse
            if (passing := as_passing(error)) is None:
                raise
            self._troubles.met("lease", passing, "worker_not_retired", worker=self.name)
            return False
        self.engine.push(given_back, changed={job.execution_id for job in given_back})
        return True

    def _stop_for(self, error: ConfigurationError) -> None:
        self._incompatible = error
        self.state.advance(Phase.DRAINING)

    def _put_off(self, error: StoreUnavailable, messages: Sequence[NodeMessage]) -> bool:
        try:
            return self._dispatcher.put_off(error, messages)
        except (StoreUnavailable, QueueUnavailable):
            return False

    def _put_back(self, messages: Sequence[NodeMessage]) -> None:
        try:
            self._consumer.requeue(messages)
        except QueueUnavailable as error:
            _log.warning("jobs_not_put_back", jobs=len(messages), error=str(error))  # the sweep pushes them again
