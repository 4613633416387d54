"""The runner of node jobs: claim → load → call → classify → record → continue."""

from __future__ import annotations

import concurrent.futures
import contextvars
import os
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NoReturn

import structlog

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import LeaseLost, PermanentError, QueueUnavailable, StoreUnavailable
from spanloom.engine.limits import MAX_NAME, shortened
from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.store.requests import Claim, Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, WaitKind
from spanloom.engine.telemetry.instruments import Instruments, instruments
from spanloom.engine.telemetry.metrics import LOST, OTHER
from spanloom.engine.workflow.exception_names import unknown_names
from spanloom.worker.error_text import log_failure, main_error, members_of
from spanloom.worker.held_claims import HeldClaims
from spanloom.worker.lease import Lease
from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.node.caller import Caller, Loaded
from spanloom.worker.node.keepable import lesser_records
from spanloom.worker.node.outcomes import AttemptResult, IsolatedFailure, left, of_error, of_load_error, of_refusal
from spanloom.worker.node.recorder import Recorder
from spanloom.worker.node.shortages import Shortages
from spanloom.worker.options import WorkerOptions
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.poison_jobs import is_poison_candidate
from spanloom.worker.service import Phase, WorkerEvents, WorkerState
from spanloom.worker.telemetry.log_capture import LogCapture
from spanloom.worker.telemetry.log_flusher import LogFlusher
from spanloom.worker.telemetry.span_exporter import SpanExporter

__all__ = ["NodeRunner", "NodeTelemetry", "WorkerIdentity"]

_log = structlog.get_logger("spanloom.worker")
_RELEASE_SECONDS = 0.5  #: before a run is given back whose definition, child or items can't be read now
_INTERRUPTIONS = (concurrent.futures.CancelledError, LeaseLost)
_LEADING = (Outcome.COMPLETED, Outcome.FAILED, Outcome.SKIPPED)


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """The worker that runs nodes: how it works, and the lease that it claims under."""

    options: WorkerOptions
    lease: Lease
    shortages: Shortages


@dataclass(frozen=True, slots=True)
class NodeTelemetry:
    """What collects, stores and exports the log lines and spans of nodes."""

    log_capture: LogCapture
    log_flusher: LogFlusher
    span_exporter: SpanExporter


class NodeRunner:
    """Run claims in slots. Everything that differs between nodes is in the claim; everything shared is here."""

    def __init__(
        self,
        engine: WorkflowEngine,
        identity: WorkerIdentity,
        consumer: JobConsumer,
        caller: Caller,
        recorder: Recorder,
        telemetry: NodeTelemetry,
        state: WorkerState,
        events: WorkerEvents,
        held: HeldClaims,
    ) -> None:
        self._engine = engine
        self._lease = identity.lease
        self._options = identity.options
        self._shortages = identity.shortages
        self._consumer = consumer
        self._caller = caller
        self._recorder = recorder
        self._telemetry = telemetry
        self._state = state
        self._events = events
        self._held = held
        self._pid = os.getpid()

    def run(self, message: NodeMessage, claim: Claim, worker_id: str) -> None:
        """Run a claimed node, and then what follows from it as long as work first allows. Never raises."""
        alone = is_poison_candidate(claim.node.recovery_attempts, self._options.max_recovery_attempts)
        nodes_left, until = (
            1 if alone else self._options.max_inline_nodes,
            time.monotonic() + self._options.max_inline_seconds,
        )
        following: Claim | None = claim
        held = self._held.claims
        job: NodeMessage | None = message  # None: work first goes on without one
        try:
            while following is not None:
                nodes_left -= 1
                more = nodes_left > 0 and time.monotonic() < until
                # In a context of its own: what a handler leaves in it does not reach the next node.
                ended, following = (
                    following,
                    contextvars.copy_context().run(self._run_one, job, following, worker_id, more),
                )
                if following is not None:
                    held[id(following)] = following
                held.pop(id(ended), None)
                job = None
        except StoreUnavailable as error:  # its record made no way, or the worker stops and gives back all its claims
            _log.warning("node_not_recorded", **_ids(following or claim), error=str(error))
            if not self._state.aborting:
                self._lease.give_up(worker_id)
        except BaseException as error:  # whatever it is, the slot goes on, and nothing stays claimed that nobody runs
            if following is not None:
                self._fail(following, worker_id, error)
            log_failure(_log, "node_not_recorded", **_ids(following or claim))
        finally:
            held.pop(id(following or claim), None)
        try:
            self._consumer.flush_if_idle()
        except QueueUnavailable as error:
            say = _log.debug if error.known else _log.warning
            say("queue_unavailable", error=str(error))

    def _run_one(self, job: NodeMessage | None, claim: Claim, worker_id: str, more: bool) -> Claim | None:
        began = time.monotonic()
        is_lost = partial(self._lease.is_lost, worker_id)
        destination = self._engine.queue.list_name(claim.node.queue, claim.header.priority)
        message_id = None if job is None else job.job_id
        attempt = RunningAttempt(
            claim,
            self._lease.name,
            destination,
            message_id,
            is_lost,
            lambda: self._state.aborting,
            self._telemetry.log_capture,
        )
        attempt.log_buffer.bind()
        self._telemetry.log_capture.ensure()
        error: BaseException | None = None
        loaded: Loaded | None = None
        try:
            loaded = self._caller.load(claim)
            ending = self._caller.call(loaded, claim, attempt, worker_id)
        except BaseException as raised:  # whatever a handler raises, SystemExit too, is its node's failure and no more
            # By type(): isinstance() also reads __class__, which an exception may have made its own.
            error = raised.error if type(raised) is IsolatedFailure else raised
            if attempt.cancelled and any(issubclass(type(one), _INTERRUPTIONS) for one in members_of(error)):
                ending = AttemptResult(Outcome.RELEASED)  # the worker stops and the grace is over, or the claim is gone
            elif type(raised) is IsolatedFailure:
                ending = raised.ending
            elif self._shortages.gives_back(raised, claim, entered=attempt.entered):
                ending = AttemptResult(Outcome.RELEASED)
            else:
                ending = of_error(raised, loaded.node, claim.node.attempt) if loaded else of_load_error(raised)
                _warn_of_names(loaded, claim, ending)
        if os.getpid() != self._pid:
            _leave_process(error)
        ending = self._leave(loaded, claim, ending, attempt)
        seconds = time.monotonic() - began
        if ending.outcome is Outcome.RELEASED and not attempt.cancelled:  # the store did not serve what it reads
            self._state.wait_for(Phase.ABORTING, _RELEASE_SECONDS)
        self._close(attempt, claim, ending, error)
        with self._telemetry.span_exporter.recording(attempt.own, worker_id):
            try:
                successors = self._successors(loaded, claim, ending) if more else ()
                answer = self._record(claim, worker_id, ending, attempt, successors)
                if answer.refused is not None:  # its child can't be started
                    ending = self._leave(loaded, claim, of_refusal(answer.refused), attempt)
                    self._close(attempt, claim, ending, answer.refused)
                    answer = self._record(claim, worker_id, ending, attempt, self._successors(loaded, claim, ending))
            except StoreUnavailable:
                raise
            except Exception as refused:
                _log.exception("result_not_recorded", **_ids(claim))
                ending, answer = self._record_less(loaded, claim, worker_id, ending, attempt, refused)
            if (measured := instruments()) is not None:
                _count_run(measured, claim, ending, answer, error, seconds)
            return self._continue(job, claim, ending, answer)

    def _leave(
        self, loaded: Loaded | None, claim: Claim, ending: AttemptResult, attempt: RunningAttempt
    ) -> AttemptResult:
        if loaded is None:
            return ending
        try:
            return left(ending, loaded.plan, loaded.node, claim.node.item, attempt.heartbeat)
        except LeaseLost:
            return AttemptResult(Outcome.RELEASED)

    def _close(self, attempt: RunningAttempt, claim: Claim, ending: AttemptResult, error: BaseException | None) -> None:
        failed = error or (
            PermanentError("the handler returned a failure") if ending.outcome is Outcome.FAILED else None
        )
        attempt.close(ending.outcome, failed)
        if failed is not None:
            name = shortened(type(main_error(failed)).__name__, MAX_NAME)
            _log.warning("attempt_failed", **_ids(claim), outcome=ending.outcome.value, error=name)
        self._telemetry.log_flusher.settle(attempt.log_buffer)

    def _fail(self, claim: Claim, worker_id: str, error: BaseException) -> None:
        """End a claim that our own code could not: nothing may stay running that nobody runs."""
        gives_back = self._shortages.gives_back(error, claim)
        ending = AttemptResult(Outcome.RELEASED) if gives_back else of_refusal(error)
        try:
            answer = self._recorder.record(ending.request(claim, worker_id))
            execution_id = claim.header.execution_id
            self._engine.push(answer.jobs, ended=[execution_id] if answer.ended else [], changed=[execution_id])
        except Exception:
            self._lease.give_up(worker_id)  # with its lease go all claims of this worker: others run them
            log_failure(_log, "claim_given_up", **_ids(claim))

    def _successors(self, loaded: Loaded | None, claim: Claim, ending: AttemptResult) -> tuple[str, ...]:
        """Work first: name what this worker may run next, if nothing more urgent waits and it is not told to stop."""
        leads_on = ending.outcome in _LEADING or ending.fan_out is not None
        if loaded is None or not leads_on or self._state.draining:
            return ()
        node, nodes = loaded.node, loaded.plan.nodes
        if claim.node.item or ending.fan_out is not None:
            found: tuple[str, ...] = (node.id,)  # another item, or the node itself once all have ended
        else:
            found = tuple(
                successor
                for successor in loaded.plan.successors(node.id)
                if nodes[successor].queue == node.queue and nodes[successor].type in self._engine.registry
            )
        if not found:
            return ()
        try:
            return () if self._consumer.urgent_waits(node.queue, claim.header.priority) else found
        except QueueUnavailable:
            return found  # nothing can be handed over through Redis: the more reason to go on here

    def _record(
        self,
        claim: Claim,
        worker_id: str,
        ending: AttemptResult,
        attempt: RunningAttempt,
        successors: tuple[str, ...],
    ) -> RecordResult:
        return self._recorder.record(_request(claim, worker_id, ending, attempt, successors))

    def _record_less(
        self,
        loaded: Loaded | None,
        claim: Claim,
        worker_id: str,
        ending: AttemptResult,
        attempt: RunningAttempt,
        refused: Exception,
    ) -> tuple[AttemptResult, RecordResult]:
        """Record the outcome without the parts that the store will never keep, or else its words as a failure."""
        for record in lesser_records(_request(claim, worker_id, ending, attempt, ()), refused):
            try:
                return ending, self._recorder.record(record)
            except StoreUnavailable:
                raise
            except Exception as error:
                _log.debug("less_not_recorded", **_ids(claim), error=str(error))
        ending = self._leave(loaded, claim, of_refusal(refused), attempt)
        # Without its lines: whatever the store can't keep, it can keep that this failed.
        return ending, self._recorder.record(ending.request(claim, worker_id))

    def _continue(
        self, job: NodeMessage | None, claim: Claim, ending: AttemptResult, answer: RecordResult
    ) -> Claim | None:
        if not answer.jobs and answer.ended is None:  # else it is published with them, or as the end
            self._events.executions_changed((claim.header.execution_id,))
        if not answer.recorded:
            _log.warning("claim_lost", **_ids(claim))
        if ending.outcome is Outcome.FAILED and answer.recorded:
            self._consumer.failed(job or _inline(claim, self._engine), ending.error or "")
        else:
            self._consumer.done(job)
        if answer.ended is not None and answer.ended_at is not None:
            self._ended(claim, ending, answer.ended, answer.ended_at)
        if ending.child is not None and answer.recorded:
            self._telemetry.span_exporter.child_started(ending.child, answer)
        if ending.outcome is Outcome.RETRY or ending.wait_kind is WaitKind.TIMER:
            self._events.delayed(ending.delay_seconds)
        if answer.jobs:
            self._engine.push(answer.jobs, changed=[claim.header.execution_id])
        return Claim(claim.header, answer.next) if answer.next is not None else None

    def _ended(self, claim: Claim, ending: AttemptResult, status: ExecutionStatus, ended_at: datetime) -> None:
        """Notify those who wait for the end of the execution: callers, and the node that it is a child of."""
        execution_id = claim.header.execution_id
        self._telemetry.span_exporter.execution_ended(claim, ending.error, status, ended_at)
        self._consumer.announce(execution_id)
        if claim.header.parent_execution_id is None:
            return
        try:
            woken = self._engine.store.wake_parents([execution_id], epoch=self._engine.epoch.number)
            self._engine.push(woken, changed=[claim.header.parent_execution_id])
        except StoreUnavailable as error:
            _log.warning("parent_not_woken", execution_id=execution_id, error=str(error))  # the sweep will


def _request(
    claim: Claim, worker_id: str, ending: AttemptResult, attempt: RunningAttempt, successors: tuple[str, ...]
) -> RecordRequest:
    return ending.request(
        claim,
        worker_id,
        span=attempt.reference,
        logs=attempt.log_buffer.unstored,
        spans=attempt.spans,
        successors=successors,
    )


def _ids(claim: Claim) -> dict[str, object]:
    """Name what a line is about, for logs that know no context: an application may have configured structlog itself."""
    node = claim.node
    ids: dict[str, object] = {"execution_id": claim.header.execution_id, "node_id": node.node_id}
    if node.item:
        ids["item"] = node.item
    return {**ids, "attempt": node.attempt}


def _warn_of_names(loaded: Loaded | None, claim: Claim, ending: AttemptResult) -> None:
    """Log the names of a policy that mean nothing in this worker, when it does not retry an error."""
    if loaded is None or ending.outcome is not Outcome.FAILED:
        return
    policy = loaded.node.retry
    if claim.node.attempt < policy.max_attempts and (names := unknown_names((*policy.retry_on, *policy.no_retry_on))):
        _log.warning("retry_names_unknown", names=names, **_ids(claim))


def _leave_process(error: BaseException | None) -> NoReturn:
    """End a process that a handler forked and did not end: it shares the worker's connections, and must not record."""
    code = error.code if isinstance(error, SystemExit) else 1
    os._exit(code if isinstance(code, int) else 1)


def _inline(claim: Claim, engine: WorkflowEngine) -> NodeMessage:
    """Name a failed run that work first went on with: it is shown among RQ's failed jobs, though none stood for it."""
    node = claim.node
    return NodeMessage(
        job_id=f"{claim.header.execution_id}-{node.node_id}-{node.item}-0",
        execution_id=claim.header.execution_id,
        node_id=node.node_id,
        item=node.item,
        node_type=node.node_type,
        push=0,
        pushed_at=time.time(),
        list_name=engine.queue.list_name(node.queue, claim.header.priority),
    )


def _count_run(
    measured: Instruments,
    claim: Claim,
    ending: AttemptResult,
    answer: RecordResult,
    error: BaseException | None,
    seconds: float,
) -> None:
    """Count a run that was recorded, or whose claim was lost, and what began or ended with it."""
    outcome = ending.outcome if answer.recorded else LOST
    failed = outcome in (Outcome.FAILED, Outcome.RETRY)
    kind = OTHER if error is None else shortened(type(main_error(error)).__qualname__, MAX_NAME)
    measured.node_ran(claim.node.node_type, outcome, seconds, kind if failed else None)
    if ending.child is not None and answer.recorded:
        measured.execution_started(ending.child.workflow_id)
    if answer.ended is not None:
        measured.execution_ended(claim.header.workflow_id, answer.ended)
