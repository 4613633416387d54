"""The completion of runs: their outcomes are recorded together, and passed on to those who wait for them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import structlog

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import LeaseLost, PermanentError, QueueUnavailable, StoreUnavailable
from spanloom.engine.limits import MAX_NAME, shortened
from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.store.requests import Claim, NodeJob, Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import WaitKind
from spanloom.engine.telemetry.instruments import Instruments, instruments
from spanloom.engine.telemetry.metrics import LOST, OTHER
from spanloom.worker.briefness import Briefness
from spanloom.worker.error_text import log_failure, main_error
from spanloom.worker.node.identity import WorkerIdentity
from spanloom.worker.node.outcomes import AttemptResult, left, of_refusal
from spanloom.worker.node.wave import Entry, FinishedRun
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.recording.keepable import lesser_records
from spanloom.worker.recording.recorder import Recorder
from spanloom.worker.service import WorkerEvents, WorkerState
from spanloom.worker.telemetry.log_flusher import LogFlusher
from spanloom.worker.telemetry.span_exporter import SpanExporter

__all__ = ["Completion", "ids_of"]

_log = structlog.get_logger("spanloom.worker")
_LEADING = (Outcome.COMPLETED, Outcome.FAILED, Outcome.SKIPPED)


class Completion:
    """Records the outcomes of runs, those that ended together in one call, and passes on the consequences.

    These are the jobs of other nodes, the ends of executions, and the claims that work first goes on with.
    """

    def __init__(
        self,
        engine: WorkflowEngine,
        identity: WorkerIdentity,
        recorder: Recorder,
        consumer: JobConsumer,
        log_flusher: LogFlusher,
        span_exporter: SpanExporter,
        briefness: Briefness,
        state: WorkerState,
        events: WorkerEvents,
    ) -> None:
        self._engine = engine
        self._lease = identity.lease
        self._shortages = identity.shortages
        self._recorder = recorder
        self._consumer = consumer
        self._log_flusher = log_flusher
        self._span_exporter = span_exporter
        self._briefness = briefness
        self._state = state
        self._events = events

    def end(self, run: FinishedRun, ending: AttemptResult, error: BaseException | None) -> None:
        """End the attempt of a run with this result, whose edges are still to be found."""
        ending = run.ending = _with_edges(run, ending)
        failed = error or (
            PermanentError("the handler returned a failure") if ending.outcome is Outcome.FAILED else None
        )
        run.attempt.close(ending.outcome, failed)
        if failed is not None:
            name = shortened(type(main_error(failed)).__name__, MAX_NAME)
            _log.warning("attempt_failed", **ids_of(run.claim), outcome=ending.outcome.value, error=name)

    def complete(
        self, runs: Sequence[FinishedRun], worker_id: str, *, more: bool, others_wait: bool = False
    ) -> tuple[list[Claim], list[FinishedRun]]:
        """Record runs that have ended. Return the claims to go on with, if `more` may run, and the unserved runs.

        A run is unserved if the store can't record it now, though it recorded others, or would: those that wait to run
        after these must not wait for it. Raises StoreUnavailable if it can't record any, and the worker should wait no
        longer.
        """
        for run in runs:
            self._log_flusher.settle(run.attempt.log_buffer)
        with self._span_exporter.recording((run.attempt.own for run in runs), worker_id):
            together = len(runs) > 1
            requests = self._requests(runs, worker_id, more=more)
            recorded: list[tuple[FinishedRun, RecordResult]] = []
            unserved: list[FinishedRun] = []
            for run, answer in zip(runs, self._recorder.record_all(requests, patient=not others_wait), strict=True):
                try:
                    recorded.append((run, self._settled(run, answer, worker_id, more=more)))
                except StoreUnavailable:
                    if not (together or others_wait):
                        raise
                    unserved.append(run)
                except BaseException as error:
                    self.fail(run.claim, worker_id, error)
            return self._pass_on(recorded), unserved

    def give_back(self, entries: Sequence[Entry], worker_id: str) -> None:
        """Release claims that were not begun. Raises StoreUnavailable."""
        released = AttemptResult(Outcome.RELEASED)
        answers = self._recorder.record_all([released.request(claim, worker_id) for _, claim in entries])
        for job, _ in entries:
            if job is not None:
                self._consumer.discard(job)
        jobs = [job for answer in answers if isinstance(answer, RecordResult) for job in answer.jobs]
        self._engine.push(jobs, changed={claim.header.execution_id for _, claim in entries})

    def fail(self, claim: Claim, worker_id: str, error: BaseException) -> None:
        """End a claim that our own code could not: nothing may stay running that nobody runs. Never raises."""
        log_failure(_log, "node_not_recorded", **ids_of(claim))
        gives_back = self._shortages.gives_back(error, claim)
        ending = AttemptResult(Outcome.RELEASED) if gives_back else of_refusal(error)
        try:
            answer = self._recorder.record(ending.request(claim, worker_id))
            execution_id = claim.header.execution_id
            self._engine.push(answer.jobs, ended=[execution_id] if answer.ended else [], changed=[execution_id])
        except Exception:
            self._lease.give_up(worker_id)  # with its lease go all claims of this worker: others run them
            log_failure(_log, "claim_given_up", **ids_of(claim))

    # ---- before it is recorded ----

    def _requests(self, runs: Sequence[FinishedRun], worker_id: str, *, more: bool) -> list[RecordRequest]:
        if not more:
            return [_request(run, worker_id) for run in runs]
        wishes = [self._successors(run, together=len(runs) > 1) for run in runs]
        forks = sum(len(brief) > 1 for _, brief in wishes)
        return [
            _request(run, worker_id, successors, self._briefness.kept(brief, forks))
            for run, (successors, brief) in zip(runs, wishes, strict=True)
        ]

    def _successors(self, run: FinishedRun, *, together: bool) -> tuple[tuple[str, ...], list[str]]:
        """Work first: name what this worker may run next, if nothing more urgent waits and it is not told to stop.

        Returns the types of the brief ones with them. These share a slot; so with several of them, or after runs that
        ended `together`, there are no others, unless no other worker can be given a job.
        """
        loaded, claim, ending = run.loaded, run.claim, run.ending
        leads_on = ending.outcome in _LEADING or ending.fan_out is not None
        if loaded is None or not leads_on or self._state.draining:
            return (), []
        node, nodes = loaded.node, loaded.plan.nodes
        if claim.node.item or ending.fan_out is not None:
            found: tuple[str, ...] = (node.id,)  # another item, or the node itself once all have ended
        else:
            found = tuple(
                [
                    successor
                    for successor in loaded.plan.successors(node.id)
                    if nodes[successor].queue == node.queue and nodes[successor].type in self._engine.registry
                ]
            )
        brief = tuple([one for one in found if self._briefness.is_brief(nodes[one].type)])
        if len(brief) > 1 or (together and not self._engine.queue.breaker.is_open):
            found = brief
        if not found:
            return (), []
        try:
            if self._consumer.urgent_waits(node.queue, claim.header.priority):
                return (), []
        except QueueUnavailable as error:  # nothing can be handed over through Redis: the more reason to go on here
            _log.debug("urgent_jobs_unknown", error=str(error))
        return found, [nodes[one].type for one in brief]

    def _settled(
        self, run: FinishedRun, answer: RecordResult | Exception, worker_id: str, *, more: bool
    ) -> RecordResult:
        """Return the result of a record, after another one if the store refused this one for good."""
        if isinstance(answer, StoreUnavailable):
            raise answer
        if isinstance(answer, Exception):
            _log.error("result_not_recorded", **ids_of(run.claim), exc_info=answer)
            return self._record_less(run, worker_id, answer)
        if answer.refused is None:
            return answer
        self.end(run, of_refusal(answer.refused), answer.refused)  # its child can't be started
        (again,) = self._requests([run], worker_id, more=more)
        try:
            return self._recorder.record(again)
        except StoreUnavailable:
            raise
        except Exception as refused:
            _log.exception("result_not_recorded", **ids_of(run.claim))
            return self._record_less(run, worker_id, refused)

    def _record_less(self, run: FinishedRun, worker_id: str, refused: Exception) -> RecordResult:
        """Record the outcome without the parts that the store will never keep, or else its words as a failure."""
        for record in lesser_records(_request(run, worker_id), run.claim.node.attempt, refused):
            try:
                return self._recorder.record(record)
            except StoreUnavailable:
                raise
            except Exception as error:
                _log.debug("less_not_recorded", **ids_of(run.claim), error=str(error))
        run.ending = _with_edges(run, of_refusal(refused))
        # Without its lines: whatever the store can't keep, it can keep that this failed.
        return self._recorder.record(run.ending.request(run.claim, worker_id))

    # ---- after it ----

    def _pass_on(self, recorded: Sequence[tuple[FinishedRun, RecordResult]]) -> list[Claim]:
        jobs: list[NodeJob] = []
        changed: set[str] = set()
        unpublished: list[str] = []
        ended_children: dict[str, str] = {}
        following: list[Claim] = []
        measured = instruments()
        for run, answer in recorded:
            claim = run.claim
            execution_id = claim.header.execution_id
            if measured is not None:
                _count_run(measured, run, answer)
            if answer.jobs:
                jobs += answer.jobs
                changed.add(execution_id)
            elif answer.ended is None:  # else it is published as the end
                unpublished.append(execution_id)
            try:
                self._account(run, answer)
            except Exception:  # the others must be passed on
                log_failure(_log, "run_not_accounted", **ids_of(claim))
            if answer.ended is not None and claim.header.parent_execution_id is not None:
                ended_children[execution_id] = claim.header.parent_execution_id
            following += [Claim(claim.header, node) for node in answer.following]
        if unpublished:
            self._events.executions_changed(unpublished)
        if ended_children:
            self._wake_parents(ended_children)
        if jobs:
            self._engine.push(jobs, changed=changed)
        return following

    def _account(self, run: FinishedRun, answer: RecordResult) -> None:
        """Keep RQ's books, and announce the end of the execution and the beginning of a child."""
        claim, ending = run.claim, run.ending
        if not answer.recorded:
            _log.warning("claim_lost", **ids_of(claim))
        if ending.outcome is Outcome.FAILED and answer.recorded:
            self._consumer.failed(run.job or _inline(claim, self._engine), ending.error or "")
        else:
            self._consumer.done(run.job)
        if answer.ended is not None and answer.ended_at is not None:
            self._span_exporter.execution_ended(claim, ending.error, answer.ended, answer.ended_at)
            self._consumer.announce(claim.header.execution_id)
        if ending.child is not None and answer.recorded:
            self._span_exporter.child_started(ending.child, answer)
        if ending.outcome is Outcome.RETRY or ending.wait_kind is WaitKind.TIMER:
            self._events.delayed(ending.delay_seconds)

    def _wake_parents(self, ended_children: Mapping[str, str]) -> None:
        """Let the nodes go on that these ended executions are children of."""
        try:
            woken = self._engine.store.wake_parents(list(ended_children), epoch=self._engine.epoch.number)
            self._engine.push(woken, changed=set(ended_children.values()))
        except StoreUnavailable as error:
            for execution_id in ended_children:
                _log.warning("parent_not_woken", execution_id=execution_id, error=str(error))  # the sweep will


def ids_of(claim: Claim) -> dict[str, object]:
    """Name what a line is about, for logs that know no context: an application may have configured structlog itself."""
    node = claim.node
    ids: dict[str, object] = {"execution_id": claim.header.execution_id, "node_id": node.node_id}
    if node.item:
        ids["item"] = node.item
    return {**ids, "attempt": node.attempt}


def _with_edges(run: FinishedRun, ending: AttemptResult) -> AttemptResult:
    """Return the ending with the edges that are taken after it."""
    if run.loaded is None:
        return ending
    try:
        return left(ending, run.loaded.plan, run.loaded.node, run.claim.node.item, run.attempt.heartbeat)
    except LeaseLost:
        return AttemptResult(Outcome.RELEASED)


def _request(
    run: FinishedRun, worker_id: str, successors: tuple[str, ...] = (), most_following: int = 1
) -> RecordRequest:
    return run.ending.request(
        run.claim,
        worker_id,
        span=run.attempt.reference,
        logs=run.attempt.log_buffer.unstored,
        spans=run.attempt.spans,
        own_span=run.attempt.own_span,
        workflow=(run.claim.header.workflow_id, run.claim.header.version),
        successors=successors,
        most_following=most_following,
    )


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


def _count_run(measured: Instruments, run: FinishedRun, answer: RecordResult) -> None:
    """Count a run that was recorded, or whose claim was lost, and what began or ended with it."""
    ending = run.ending
    outcome = ending.outcome if answer.recorded else LOST
    failed = outcome in (Outcome.FAILED, Outcome.RETRY)
    kind = OTHER if run.error is None else shortened(type(main_error(run.error)).__qualname__, MAX_NAME)
    measured.node_ran(run.claim.node.node_type, outcome, run.seconds, kind if failed else None)
    if ending.child is not None and answer.recorded:
        measured.execution_started(ending.child.workflow_id)
    if answer.ended is not None:
        measured.execution_ended(run.claim.header.workflow_id, answer.ended)
