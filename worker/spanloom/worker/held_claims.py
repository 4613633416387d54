"""The claims that a worker's slots run or record, and the return of those that the store counts as its own besides."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import structlog

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.store.requests import Claim, NodeKey, Outcome, RecordRequest

__all__ = ["HeldClaims"]

_log = structlog.get_logger("spanloom.worker")
_QUIET_SECONDS = 60.0  #: after the last claim there is none in the store without an answer: no call takes so long


class HeldClaims:
    """The claims of one worker that are in its slots.

    A claim of which the answer was lost, or could not be read, is in the store and not here. It would never run.
    """

    def __init__(self, engine: WorkflowEngine) -> None:
        self._engine = engine
        #: By id(): those on their way to a slot, or in it. Each change is one step of the dict.
        self.claims: dict[int, Claim] = {}
        self._suspects: set[tuple[NodeKey, int]] = set()
        self.claimed_at = time.monotonic()  #: when claims were asked for last

    def check(self, worker_id: str) -> None:
        """Give back the worker's claims in the store that were in no slot at this check and at the last one.

        One that is on its way to a slot is found by one check at most. A worker that has run nothing for a minute reads
        nothing. Raises StoreUnavailable.
        """
        now = time.monotonic()
        if self.claims or self._suspects:
            self.claimed_at = now
        elif now - self.claimed_at > _QUIET_SECONDS:
            return
        stored = self._engine.store.list_claims(worker_id)
        held = {
            (claim.header.execution_id, claim.node.node_id, claim.node.item, claim.node.fence)
            for claim in list(self.claims.values())
        }
        strange = {(key, fence) for key, fence in stored.items() if (*key, fence) not in held}
        again, self._suspects = strange & self._suspects, strange
        if again:
            self.give_back(worker_id, again)

    def held_without_answer(self, worker_id: str, keys: Iterable[NodeKey]) -> dict[NodeKey, int]:
        """Return the fences of those of the runs that the store holds for this worker. Raises StoreUnavailable."""
        stored: Mapping[NodeKey, int] = self._engine.store.list_claims(worker_id)
        return {key: stored[key] for key in keys if key in stored}

    def give_back(self, worker_id: str, claims: Iterable[tuple[NodeKey, int]]) -> None:
        """Release claims that are in no slot, and push their jobs. Raises StoreUnavailable."""
        wanted = [RecordRequest(*key, fence, worker_id, Outcome.RELEASED) for key, fence in claims]
        answers = self._engine.store.record(wanted, epoch=self._engine.epoch.number)
        for record, answer in zip(wanted, answers, strict=True):
            if answer.recorded:
                _log.warning(
                    "claim_given_back", execution_id=record.execution_id, node_id=record.node_id, item=record.item
                )
        self._engine.push(
            [job for answer in answers for job in answer.jobs], changed={one.execution_id for one in wanted}
        )
