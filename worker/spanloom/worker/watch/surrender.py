"""The surrender of a worker that gives up: the ends of its claims."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import NodeTimeout
from spanloom.engine.store.requests import Outcome, RecordRequest
from spanloom.worker.lease import Lease
from spanloom.worker.node.claim_monitor import ClaimMonitor, RunningNode
from spanloom.worker.node.outcomes import AttemptResult, left, of_error
from spanloom.worker.service import Phase, WorkerState
from spanloom.worker.watch.stall import Stall

__all__ = ["Surrender"]

_log = structlog.get_logger("spanloom.worker")
_STORE_SECONDS = 5.0  #: how long a store that hangs may keep a worker that gives up


class Surrender:
    """The end of the claims of a worker that gives up.

    A node that ran past its timeout gets NodeTimeout, which its retry policy may retry. A node that may be the cause
    keeps its claim: it is lost with the lease, and that counts. All others are given back, at no cost.
    """

    def __init__(
        self,
        engine: WorkflowEngine,
        lease: Lease,
        claims: ClaimMonitor,
        state: WorkerState,
        given_up: Callable[[], object],
    ) -> None:
        """`given_up` is called at the end; it may end the process."""
        self._engine = engine
        self._lease = lease
        self._claims = claims
        self._state = state
        self._given_up = given_up
        self.reason: str | None = None  #: why the worker gives up

    def begin(self, stall: Stall) -> None:
        """Claim nothing more."""
        self.reason = stall.reason
        _log.error("worker_gives_up", worker=self._lease.name, reason=stall.reason)
        self._state.advance(Phase.DRAINING)

    def finish(self, stall: Stall) -> None:
        """Record the ends, in bounded time, and leave. Those that the store does not take are lost with the lease."""
        settling = threading.Thread(target=self._settle, args=(stall,), name="spanloom-surrender", daemon=True)
        try:
            settling.start()
        except RuntimeError:  # no thread is to be had
            self._settle(stall)
        else:
            settling.join(_STORE_SECONDS)
        self._given_up()
        self._state.advance(Phase.ABORTING)

    def _settle(self, stall: Stall) -> None:
        store, epoch = self._engine.store, self._engine.epoch.number
        try:
            requests = self._requests(stall)
            answers = store.record(requests, epoch=epoch) if requests else []
            jobs = [job for answer in answers for job in answer.jobs]
            ended = [
                request.execution_id
                for request, answer in zip(requests, answers, strict=True)
                if answer.ended is not None
            ]
            if not (stall.blamed or stall.lapses):
                jobs += store.unregister_worker(self._lease.worker_id, epoch=epoch)
            self._engine.push(jobs, ended=ended, changed={request.execution_id for request in requests})
        except Exception as error:
            _log.warning("claims_not_given_back", error=f"{type(error).__name__}: {error}")  # the lease will lapse

    def _requests(self, stall: Stall) -> Sequence[RecordRequest]:
        kept = {one.attempt for one in stall.blamed}
        overdue = {one.attempt for one in stall.overdue}
        requests: list[RecordRequest] = []
        for one in self._claims.running():
            if one.attempt in kept:
                continue
            if one.attempt not in overdue:
                requests.append(AttemptResult(Outcome.RELEASED).request(one.attempt.claim, one.worker_id))
                continue
            requests.append(_timed_out(one))
        return requests


def _timed_out(one: RunningNode) -> RecordRequest:
    claim, node = one.attempt.claim, one.node
    error = NodeTimeout(node.id, node.timeout or 0.0)
    ending = left(of_error(error, node, claim.node.attempt), one.plan, node, claim.node.item)
    one.attempt.close(ending.outcome, error)
    return ending.request(
        claim,
        one.worker_id,
        span=one.attempt.reference,
        logs=one.attempt.log_buffer.unstored,
        spans=one.attempt.spans,
    )
