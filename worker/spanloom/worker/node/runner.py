"""The runner of claimed nodes: load → call → classify, wave by wave; a wave is completed together."""

from __future__ import annotations

import concurrent.futures
import contextvars
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import structlog

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import LeaseLost, QueueUnavailable, StoreUnavailable
from spanloom.engine.store.requests import Claim, Outcome
from spanloom.engine.workflow.exception_names import unknown_names
from spanloom.worker.briefness import MOST, WAVE_SECONDS, Briefness
from spanloom.worker.error_text import log_failure, members_of
from spanloom.worker.held_claims import HeldClaims
from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.node.caller import Caller, Loaded
from spanloom.worker.node.event_loop import Answer, Awaited, CancelledByOthers, EventLoopThread, Steps
from spanloom.worker.node.identity import WorkerIdentity
from spanloom.worker.node.outcomes import AttemptResult, IsolatedFailure, of_error, of_load_error
from spanloom.worker.node.wave import Ended, Entry, FinishedRun, Gatherer, Wave, WaveMonitor
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.queue.poison_jobs import is_poison_candidate
from spanloom.worker.recording.completion import Completion, ids_of
from spanloom.worker.service import Phase, WorkerState
from spanloom.worker.slots import Slots
from spanloom.worker.telemetry.log_capture import LogCapture

__all__ = ["NodeRunner"]

_log = structlog.get_logger("spanloom.worker")
_RELEASE_SECONDS = 0.5  #: before a run is given back whose definition, child or items can't be read now
_INTERRUPTIONS = (concurrent.futures.CancelledError, LeaseLost)


class NodeRunner:
    """Run claims in slots. Everything that differs between nodes is in the claim; everything shared is here."""

    def __init__(
        self,
        engine: WorkflowEngine,
        identity: WorkerIdentity,
        consumer: JobConsumer,
        event_loop: EventLoopThread,
        caller: Caller,
        completion: Completion,
        log_capture: LogCapture,
        slots: Slots,
        briefness: Briefness,
        state: WorkerState,
        held: HeldClaims,
    ) -> None:
        self._engine = engine
        self._lease = identity.lease
        self._options = identity.options
        self._shortages = identity.shortages
        self._recycling = identity.recycling
        self._consumer = consumer
        self._event_loop = event_loop
        self._caller = caller
        self._completion = completion
        self._log_capture = log_capture
        self._slots = slots
        self._briefness = briefness
        self._state = state
        self._held = held
        self._pid = os.getpid()
        self._monitor = WaveMonitor(identity.lease.name, self._leave_behind)
        self._gatherer = Gatherer(identity.lease.name, self._complete_ended)

    def start(self) -> None:
        """Start what watches over runs and ends."""
        self._monitor.start()
        self._gatherer.start()

    def stop(self) -> None:
        """End it, once all that has ended is completed."""
        self._monitor.stop()
        self._gatherer.stop()

    def take(self, entries: Sequence[Entry], worker_id: str) -> None:
        """Run claimed nodes in a free slot: a single async one on the event loop, which needs no thread for it."""
        alone = any(
            is_poison_candidate(claim.node.recovery_attempts, self._options.max_recovery_attempts)
            for _, claim in entries
        )
        turns = 1 if alone else self._options.max_inline_nodes
        until = time.monotonic() + self._options.max_inline_seconds
        if len(entries) == 1 and self._runs_on_loop(entries):
            self._slots.occupy(1)
            self._begin(entries[0], worker_id, turns, until)
        else:
            self._slots.submit(partial(self._run, entries, worker_id, turns, until))

    def _run(self, entries: Sequence[Entry], worker_id: str, turns_left: int, until: float) -> None:
        """Run claimed nodes, and then their successors as long as work first allows. Never raises."""
        left = list(entries)
        while left:
            turns_left -= 1
            more = turns_left > 0 and time.monotonic() < until
            left = self._run_wave(left, worker_id, more)
        self._flush()

    def _flush(self) -> None:
        try:
            self._consumer.flush_if_idle()
        except QueueUnavailable as error:
            say = _log.debug if error.known else _log.warning
            say("queue_unavailable", error=str(error))

    # ---- without a thread ----

    def _begin(self, entry: Entry, worker_id: str, turns_left: int, until: float) -> None:
        steps = _within(contextvars.copy_context(), self._execute(entry, worker_id))
        run = self._event_loop.start_steps(steps)
        ended = Ended(entry, worker_id, turns_left - 1, until, run)
        run.add_done_callback(lambda _: self._gatherer.put(ended))

    def _complete_ended(self, together: Sequence[Ended]) -> None:
        """Complete nodes that ended on the event loop, and go on with their successors. Never raises."""
        now = time.monotonic()
        groups: dict[tuple[str, bool], list[Ended]] = {}
        for ended in together:
            groups.setdefault((ended.worker_id, ended.turns_left > 0 and now < ended.until), []).append(ended)
        for (worker_id, more), group in groups.items():
            finished: list[FinishedRun] = []
            for ended in group:
                try:
                    finished.append(ended.run.result())
                except BaseException as error:  # a fault of ours: nothing stays claimed that nobody runs
                    self._completion.fail(ended.entry[1], worker_id, error)
                    self._drop([ended.entry[1]])
            following = self._complete(finished, [], worker_id, more, others_wait=True) if finished else []
            if not following:
                self._flush()  # before the slots are free
            bounds = {ended.entry[1].header.execution_id: (ended.turns_left, ended.until) for ended in group}
            try:
                self._go_on(following, worker_id, bounds, freed=len(group))
            except BaseException:  # such as no thread for a slot: with the lease goes what nobody would run
                self._lease.give_up(worker_id)
                self._drop([claim for _, claim in following])
                log_failure(_log, "successors_given_up")

    def _go_on(
        self, entries: Sequence[Entry], worker_id: str, bounds: Mapping[str, tuple[int, float]], *, freed: int
    ) -> None:
        single: list[Entry] = []
        others: list[list[Entry]] = []
        for wave in self._briefness.waves(entries, lambda entry: entry[1].node):
            if len(wave) == 1 and self._runs_on_loop(wave):
                single += wave
            else:
                others.append(wave)
        self._slots.occupy(len(single) - freed)
        for entry in single:
            self._begin(entry, worker_id, *bounds[entry[1].header.execution_id])
        for wave in others:
            turns, until = min(bounds[claim.header.execution_id] for _, claim in wave)
            self._slots.submit(partial(self._run, wave, worker_id, turns, until))

    # ---- in a thread ----

    def _run_wave(self, entries: list[Entry], worker_id: str, more: bool) -> list[Entry]:
        """Run and complete as many as the bound on time allows; return those that wait still, and their successors."""
        wave = Wave(entries, worker_id)
        several = len(entries) > 1
        if several:
            self._monitor.begin(wave)
        try:
            if several and self._runs_on_loop(entries):
                self._event_loop.run_steps_on_loop(self._steps_of(wave))
            else:
                self._event_loop.run_steps(self._steps_of(wave))
        finally:
            self._monitor.end(wave)
        finished, waiting = wave.take()
        return self._complete(finished, waiting, worker_id, more)

    def _runs_on_loop(self, entries: Sequence[Entry]) -> bool:
        try:
            return self._caller.runs_on_loop([claim for _, claim in entries])
        except Exception:  # a definition that can't be read is for its node to meet
            return False

    def _steps_of(self, wave: Wave) -> Steps[None]:
        until = time.monotonic() + WAVE_SECONDS
        for _ in range(MOST):
            if (entry := wave.next()) is None:
                return
            try:
                # In a context of its own: what a handler leaves in it does not reach the next node.
                wave.keep((yield from _within(contextvars.copy_context(), self._execute(entry, wave.worker_id))))
            except BaseException as error:  # a fault of ours: nothing stays claimed that nobody runs
                self._completion.fail(entry[1], wave.worker_id, error)
                self._drop([entry[1]])
            if time.monotonic() > until:
                return

    def _complete(
        self,
        finished: list[FinishedRun],
        waiting: list[Entry],
        worker_id: str,
        more: bool,
        *,
        others_wait: bool = False,
    ) -> list[Entry]:
        """Complete runs, and return the nodes to run now. Never raises."""
        others_wait = others_wait or bool(waiting)
        now = [run for run in finished if not _pauses(run)]
        late = [run for run in finished if _pauses(run)] if len(now) < len(finished) else []
        try:
            if now:
                following, unserved = self._completion.complete(now, worker_id, more=more, others_wait=others_wait)
                self._held.claims.update({id(claim): claim for claim in following})
                waiting += [(None, claim) for claim in following]
                if unserved:
                    late += unserved
                    now = [run for run in now if run not in unserved]
        except StoreUnavailable as error:  # they made no way, or the worker stops and gives back all its claims
            _log.warning("node_not_recorded", **ids_of(now[0].claim), nodes=len(now), error=str(error))
            if not self._state.aborting:
                self._lease.give_up(worker_id)
            self._drop([claim for _, claim in waiting])
            waiting = []
        except BaseException as error:
            for run in now:
                self._completion.fail(run.claim, worker_id, error)
        self._drop([run.claim for run in now])
        for run in late:
            self._slots.submit_beside(partial(self._complete_late, run, worker_id))
        self._recycling.count(len(finished))
        return waiting

    def _complete_late(self, run: FinishedRun, worker_id: str) -> None:
        """Complete a run that its neighbours must not wait for."""
        if _pauses(run):
            self._state.wait_for(Phase.ABORTING, _RELEASE_SECONDS)
        try:
            self._completion.complete([run], worker_id, more=False)
        except StoreUnavailable as error:
            _log.warning("node_not_recorded", **ids_of(run.claim), error=str(error))
            if not self._state.aborting:
                self._lease.give_up(worker_id)
        except BaseException as error:
            self._completion.fail(run.claim, worker_id, error)
        finally:
            self._drop([run.claim])

    def _leave_behind(self, wave: Wave) -> None:
        """Take the other nodes of a wave from one that takes long: record those that ended, give back the rest."""
        finished, waiting = wave.take()

        def end() -> None:
            if finished:
                self._complete(finished, [], wave.worker_id, more=False)
            try:
                if waiting:
                    self._completion.give_back(waiting, wave.worker_id)
            except StoreUnavailable as error:
                _log.warning("claims_not_given_back", error=str(error), nodes=len(waiting))
                self._lease.give_up(wave.worker_id)
            finally:
                self._drop([claim for _, claim in waiting])

        if finished or waiting:
            self._slots.submit_beside(end)

    def _execute(self, entry: Entry, worker_id: str) -> Steps[FinishedRun]:
        """Run one node up to the result that is to be recorded."""
        job, claim = entry
        began = time.monotonic()
        attempt = RunningAttempt(
            claim,
            self._lease.name,
            self._engine.queue.list_name(claim.node.queue, claim.header.priority),
            None if job is None else job.job_id,
            partial(self._lease.is_lost, worker_id),
            lambda: self._state.aborting,
            self._log_capture,
        )
        attempt.log_buffer.bind()
        self._log_capture.ensure()
        error: BaseException | None = None
        loaded: Loaded | None = None
        try:
            loaded = self._caller.load(claim)
            ending = yield from self._caller.call(loaded, claim, attempt, worker_id)
        except BaseException as raised:  # whatever a handler raises, SystemExit too, is its node's failure and no more
            # By type(): isinstance() also reads __class__, which an exception may have made its own.
            error = raised.error if type(raised) is IsolatedFailure else raised
            if attempt.cancelled and any(issubclass(type(one), _INTERRUPTIONS) for one in members_of(error)):
                ending = AttemptResult(Outcome.RELEASED)  # the worker stops and the grace is over, or the claim is gone
            elif type(raised) is IsolatedFailure:
                ending = raised.ending
            elif self._shortages.gives_back(raised, claim, entered=attempt.entered) or (
                type(raised) is CancelledByOthers and self._shortages.puts_off(claim)
            ):
                ending = AttemptResult(Outcome.RELEASED)
            else:
                ending = of_error(raised, loaded.node, claim.node.attempt) if loaded else of_load_error(raised)
                _warn_of_names(loaded, claim, ending)
        if os.getpid() != self._pid:
            _leave_process(error)
        seconds = time.monotonic() - began
        self._briefness.note(claim.node.node_type, seconds - attempt.waited)
        run = FinishedRun(job, claim, attempt, loaded, ending, error, seconds)
        self._completion.end(run, ending, error)
        return run

    def _drop(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self._held.claims.pop(id(claim), None)


def _within(context: contextvars.Context, steps: Steps[Answer]) -> Steps[Answer]:
    """Run each step in this context."""
    advance: Callable[[Any], Awaited] = steps.send
    value: Any = None
    while True:
        try:
            awaited = context.run(advance, value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # as Steps says
        try:
            advance, value = steps.send, (yield awaited)
        except BaseException as error:
            advance, value = steps.throw, error


def _pauses(run: FinishedRun) -> bool:
    """Return whether a run is to be given back after a moment: the store did not serve what it reads."""
    return run.ending.outcome is Outcome.RELEASED and not run.attempt.cancelled


def _warn_of_names(loaded: Loaded | None, claim: Claim, ending: AttemptResult) -> None:
    """Log the names of a policy that mean nothing in this worker, when it does not retry an error."""
    if loaded is None or ending.outcome is not Outcome.FAILED:
        return
    policy = loaded.node.retry
    if claim.node.attempt < policy.max_attempts and (names := unknown_names((*policy.retry_on, *policy.no_retry_on))):
        _log.warning("retry_names_unknown", names=names, **ids_of(claim))


def _leave_process(error: BaseException | None) -> NoReturn:
    """End a process that a handler forked and did not end: it shares the worker's connections, and must not record."""
    code = error.code if isinstance(error, SystemExit) else 1
    os._exit(code if isinstance(code, int) else 1)
