"""The dispatcher: claims fetched jobs together and gives each claim to a slot; each job gets an end of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import (
    InvalidTransition,
    QueueUnavailable,
    SpanloomError,
    StoreUnavailable,
    Unavailability,
    UserError,
)
from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.store.requests import Claim, ClaimAnswer, NodeKey, RecordRequest, Refusal
from spanloom.engine.telemetry.instruments import instruments
from spanloom.worker.briefness import Briefness
from spanloom.worker.held_claims import HeldClaims
from spanloom.worker.lease import Lease
from spanloom.worker.node.outcomes import AttemptResult, left, of_refusal
from spanloom.worker.node.wave import Entry
from spanloom.worker.queue.consumer import JobConsumer
from spanloom.worker.service import WorkerEvents
from spanloom.worker.store_troubles import StoreTroubles, as_passing

__all__ = ["Dispatcher"]

_log = structlog.get_logger("spanloom.worker")
_MOST_TRIES = 3  #: calls that are not served, though the store answers, until the jobs make room for others

Run = Callable[[Sequence[Entry], str], None]  #: runs claims in a slot, each with its job, under this worker id


class Dispatcher:
    """The claims of one worker's loop.

    Of a batch in which one job can't be claimed the others run. A job that can't be claimed now is left to the sweep,
    which pushes it again after growing pauses. A node run that can never be claimed, as its data can't be read, fails.
    """

    def __init__(
        self,
        engine: WorkflowEngine,
        consumer: JobConsumer,
        briefness: Briefness,
        lease: Lease,
        held: HeldClaims,
        troubles: StoreTroubles,
        events: WorkerEvents,
    ) -> None:
        self._engine = engine
        self._consumer = consumer
        self._briefness = briefness
        self._lease = lease
        self._held = held
        self._troubles = troubles
        self._events = events
        self._tries = 0
        self._kept: list[NodeMessage] = []

    def portion(self, fetched: Sequence[NodeMessage], free: int) -> list[NodeMessage]:
        """Return the jobs that `free` slots can run. The others go back to the front of their lists.

        While Redis refuses that they are kept for take_kept().
        """
        taken, left = self._briefness.portion(fetched, free)
        if left:
            try:
                self._consumer.requeue(left)
            except QueueUnavailable as error:
                _log.debug("jobs_kept", jobs=len(left), error=str(error))
                self._kept = left
        return taken

    def take_kept(self) -> list[NodeMessage]:
        """Return the jobs that were fetched and could not be given back, and drop them."""
        kept, self._kept = self._kept, []
        return kept

    def dispatch(self, run: Run, messages: Sequence[NodeMessage], token: str) -> None:
        """Claim fetched jobs, in one round trip, and hand them to the slots.

        Raises StoreUnavailable if none of them can be claimed now. It may be called again with the same token then.
        """
        if not messages:
            return
        self._held.claimed_at = time.monotonic()
        worker_id = self._lease.worker_id
        keys = [message.key for message in messages]
        answers = self._claim(keys, worker_id, token)
        if any(answer is Refusal.RETIRED for answer in answers):
            self._lease.replace(worker_id)
            worker_id = self._lease.worker_id
            answers = self._claim(keys, worker_id, token)
        self._tries = 0
        self._troubles.over("claim")
        try:
            self._hand_over(run, messages, answers, worker_id)
        except BaseException:  # such as no thread for a slot: with the lease goes what nobody would run
            self._lease.give_up(worker_id)
            raise

    def put_off(self, error: StoreUnavailable, messages: Sequence[NodeMessage]) -> bool:
        """Return whether fetched jobs went to the ends of their lists, as they can't be claimed though others may be.

        While the store does not answer at all they are kept. Raises StoreUnavailable and QueueUnavailable.
        """
        if error.reason is Unavailability.AWAY or not messages:
            return False
        self._tries += 1
        if self._tries < _MOST_TRIES:
            return False
        self._tries = 0
        worker_id = self._lease.worker_id
        # The answer may have been lost to a call that was carried out.
        held = self._held.held_without_answer(worker_id, [message.key for message in messages])
        if held:
            self._held.give_back(worker_id, held.items())
        for message in messages:
            if message.key in held:
                self._consumer.discard(message)
        self._consumer.requeue_last([message for message in messages if message.key not in held])
        return True

    def _claim(self, keys: Sequence[NodeKey], worker_id: str, token: str) -> list[ClaimAnswer]:
        """Claim runs; an error that comes of one of them is its answer. Raises StoreUnavailable if none is served."""
        try:
            return self._engine.store.claim(keys, worker_id=worker_id, token=token)
        except StoreUnavailable as error:
            answers: list[ClaimAnswer]
            if error.reason is not Unavailability.TIME_LIMIT or len(keys) == 1:
                raise
            late = error
        except Exception:
            answers = [self._claim_single(key, worker_id, token) for key in keys]
            unserved = [answer for answer in answers if isinstance(answer, StoreUnavailable)]
            if len(unserved) == len(keys):
                raise unserved[0] from None
            return answers
        # One of them may have waited for a lock that a process which stands still does not give up.
        answers = []
        for key in keys:
            twice = len(answers) > 1 and all(map(_is_late, answers[-2:]))
            answers.append(late if twice else self._claim_single(key, worker_id, token))
        if all(map(_is_late, answers)):
            raise late
        return answers

    def _claim_single(self, key: NodeKey, worker_id: str, token: str) -> ClaimAnswer:
        try:
            (answer,) = self._engine.store.claim([key], worker_id=worker_id, token=token)
        except Exception as error:
            if (passing := as_passing(error)) is not None:
                return passing
            if isinstance(error, SpanloomError):
                return error
            _log.exception("claim_failed", execution_id=key.execution_id, node_id=key.node_id)
            return StoreUnavailable(f"a claim fails with {type(error).__name__}", reason=Unavailability.OTHER)
        return answer

    def _hand_over(
        self, run: Run, messages: Sequence[NodeMessage], answers: Sequence[ClaimAnswer], worker_id: str
    ) -> None:
        measured, now = instruments(), time.time()
        self._events.executions_changed(message.execution_id for message in messages)
        failed: list[tuple[NodeMessage, SpanloomError]] = []
        claimed: list[Entry] = []
        for message, answer in zip(messages, answers, strict=True):
            if isinstance(answer, Claim):
                if measured is not None:
                    measured.job_waited(message.list_name, now - message.pushed_at)
                self._held.claims[id(answer)] = answer
                claimed.append((message, answer))
                continue
            if isinstance(answer, SpanloomError):
                failed.append((message, answer))
            else:
                _log.debug("claim_refused", execution_id=message.execution_id, node_id=message.node_id, reason=answer)
            self._consumer.discard(message)
        for wave in self._briefness.waves(claimed, lambda entry: entry[1].node):
            run(wave, worker_id)
        for message, error in failed:  # after those that can run
            self._end(message, error, worker_id)

    def _end(self, message: NodeMessage, error: SpanloomError, worker_id: str) -> None:
        """Fail a node run that can never be claimed; leave one that can't be claimed now to the sweep."""
        ids = {"execution_id": message.execution_id, "node_id": message.node_id, "item": message.item}
        if as_passing(error) is not None:
            self._troubles.met("claim", error, "claim_put_off", subject=f" of {message.job_id}", **ids)
            return
        _log.warning("claim_fails_its_node", **ids, error=str(error))
        try:
            self._fail(message, error, worker_id)
        except (StoreUnavailable, UserError) as refused:  # the sweep pushes it again, if it is queued still
            _log.warning("node_not_failed", **ids, error=str(refused))
        except Exception:
            _log.exception("node_not_failed", **ids)

    def _fail(self, message: NodeMessage, error: SpanloomError, worker_id: str) -> None:
        engine, key = self._engine, message.key
        execution = engine.store.get_execution(key.execution_id)
        if execution is None:
            return
        plan = engine.definitions.get(execution.workflow_id, execution.version)
        ending = left(of_refusal(error), plan, plan.nodes[key.node_id], key.item)
        try:
            answer = engine.store.update_node_result(_record(key, ending, 0, ""), epoch=engine.epoch.number)
        except InvalidTransition:  # it is claimed, and only the answer could not be read
            fence = self._held.held_without_answer(worker_id, [key]).get(key)
            if fence is None:
                return
            (answer,) = engine.store.record([_record(key, ending, fence, worker_id)], epoch=engine.epoch.number)
        engine.push(answer.jobs, ended=[key.execution_id] if answer.ended else [], changed=[key.execution_id])
        if answer.ended is not None:
            self._events.executions_ended([key.execution_id])
        self._consumer.failed(message, ending.error or "")


def _is_late(answer: ClaimAnswer) -> bool:
    return isinstance(answer, StoreUnavailable) and answer.reason is Unavailability.TIME_LIMIT


def _record(key: NodeKey, ending: AttemptResult, fence: int, worker_id: str) -> RecordRequest:
    return RecordRequest(
        *key,
        fence=fence,
        worker_id=worker_id,
        outcome=ending.outcome,
        data=ending.data,
        error=ending.error,
        taken=ending.taken,
        handled=ending.handled,
    )
