"""The transitions of the port: each method is one transaction over the functions of this package."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from spanloom.engine.errors import (
    ConfigurationError,
    PayloadRejected,
    SpanloomError,
    UserError,
)
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import (
    ClaimAnswer,
    ControlAction,
    ControlResult,
    NodeJob,
    NodeKey,
    PurgeResult,
    RecordRequest,
    RecordResult,
    StartAnswer,
    StartRequest,
    SweepResult,
)
from spanloom.engine.store.states import ExecutionStatus
from spanloom.engine.store.texts import check_exact, check_start
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.transitions.claim import claim
from spanloom.stores.transitions.control import (
    ControlTarget,
    acknowledge,
    cancel,
    end_node,
    fail_execution,
    pause,
    resume,
)
from spanloom.stores.transitions.one_by_one import is_of_all, one_by_one
from spanloom.stores.transitions.purge import purge
from spanloom.stores.transitions.record import prepare, record
from spanloom.stores.transitions.retry_execution import retry
from spanloom.stores.transitions.start import create
from spanloom.stores.transitions.sweep import (
    LostJobCheck,
    find_due,
    forget_pushes,
    sweep,
    sweep_rows,
    unregister_worker,
)
from spanloom.stores.transitions.transaction import Transaction
from spanloom.stores.transitions.waits.children import wake_parents

__all__ = ["Transitions", "exact_starts"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_STEPS: Mapping[ControlAction, Callable[[Transaction, Sequence[ControlTarget]], list[ControlResult | UserError]]] = {
    ControlAction.CANCEL: cancel,
    ControlAction.PAUSE: pause,
    ControlAction.RESUME: resume,
    ControlAction.RETRY: retry,
    ControlAction.ACKNOWLEDGE: acknowledge,
}


class Transitions(ExecutionStore):
    """The parts of the port that move executions and node runs, over a dialect's transaction."""

    @abstractmethod
    def _transact(
        self, step: Callable[[Transaction], Answer], *, epoch: int = 0, now: datetime | None = None
    ) -> Answer:
        """Run a step in this thread's write transaction, or in a new one, which is repeated after a conflict."""

    @abstractmethod
    def _survives_errors(self) -> bool:
        """Return whether this thread's transaction, if it has one, stays usable after an error of one step."""

    def create_executions(
        self,
        requests: Sequence[StartRequest],
        *,
        epoch: int = 0,
        connection: Any = None,
        now: datetime | None = None,
    ) -> list[StartAnswer]:
        """See NodeTransitions.create_executions."""
        if connection is not None:
            raise ConfigurationError(
                f"connection= starts an execution inside a transaction of your own Postgres; the store {self.url} "
                "has no part in it; leave connection= out, or use a postgresql:// store"
            )

        def start(some: Sequence[StartRequest]) -> list[StartAnswer]:
            return self._transact(lambda tx: create(tx, some), epoch=epoch, now=now)

        return exact_starts(requests, lambda exact: self._each(exact, start))

    def claim(
        self, keys: Sequence[NodeKey], *, worker_id: str, token: str | None = None, now: datetime | None = None
    ) -> list[ClaimAnswer]:
        """See NodeTransitions.claim."""

        def step(some: Sequence[NodeKey]) -> list[ClaimAnswer]:
            return self._transact(lambda tx: claim(tx, some, worker_id, token), now=now)

        return self._each(keys, step)

    def record(
        self, records: Sequence[RecordRequest], *, epoch: int = 0, now: datetime | None = None
    ) -> list[RecordResult]:
        """See NodeTransitions.record."""

        def step(some: Sequence[RecordRequest]) -> list[RecordResult]:
            works = prepare(some)  # while another transaction may have the only writer
            return self._transact(lambda tx: record(tx, works), epoch=epoch, now=now)

        return self._record_each(records, step)

    def wake_parents(
        self, execution_ids: Sequence[str], *, epoch: int = 0, now: datetime | None = None
    ) -> list[NodeJob]:
        """See NodeTransitions.wake_parents."""
        known = list(filter(None, map(canonical_id, execution_ids)))
        return list(self._transact(lambda tx: wake_parents(tx, known).jobs, epoch=epoch, now=now)) if known else []

    def cancel_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.cancel_execution."""
        return self._control(ControlAction.CANCEL, execution_id, expected_revision, now=now)

    def pause_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.pause_execution."""
        return self._control(ControlAction.PAUSE, execution_id, expected_revision, now=now)

    def resume_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> ControlResult:
        """See Control.resume_execution."""
        return self._control(ControlAction.RESUME, execution_id, expected_revision, epoch=epoch, now=now)

    def retry_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> ControlResult:
        """See Control.retry_execution."""
        return self._control(ControlAction.RETRY, execution_id, expected_revision, epoch=epoch, now=now)

    def acknowledge_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.acknowledge_execution."""
        return self._control(ControlAction.ACKNOWLEDGE, execution_id, expected_revision, now=now)

    def control_executions(
        self, action: ControlAction, execution_ids: Sequence[str], *, epoch: int = 0, now: datetime | None = None
    ) -> list[ControlResult | UserError]:
        """See Control.control_executions."""
        targets = [ControlTarget(execution_id, None, self.get_execution) for execution_id in execution_ids]

        def step(some: Sequence[ControlTarget]) -> list[ControlResult | UserError]:
            return self._transact(lambda tx: _STEPS[action](tx, some), epoch=epoch, now=now)

        answers = self._each(targets, step)
        return _answers(answers)

    def fail_execution(
        self, execution_id: str, error: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.fail_execution."""
        target = ControlTarget(execution_id, expected_revision, self.get_execution)
        return _done(self._transact(lambda tx: fail_execution(tx, target, error), now=now))

    def update_node_result(self, record: RecordRequest, *, epoch: int = 0, now: datetime | None = None) -> RecordResult:
        """See Control.update_node_result."""
        check_exact("node id", record.node_id)
        return self._transact(lambda tx: end_node(tx, record), epoch=epoch, now=now)

    def purge_executions(
        self,
        *,
        ended_before: datetime,
        statuses: Sequence[ExecutionStatus],
        limit: int = 500,
        now: datetime | None = None,
    ) -> PurgeResult:
        """See Retention.purge_executions."""
        wanted = [status.value for status in statuses]
        return self._transact(lambda tx: purge(tx, ended_before, wanted, limit), now=now)

    def unregister_worker(self, worker_id: str, *, epoch: int = 0, now: datetime | None = None) -> list[NodeJob]:
        """See WorkerLeases.unregister_worker."""
        check_exact("worker id", worker_id)
        return self._transact(lambda tx: unregister_worker(tx, worker_id), epoch=epoch, now=now)

    def forget_pushes(self, jobs: Sequence[NodeJob], *, now: datetime | None = None) -> None:
        """See Recovery.forget_pushes."""
        if jobs:
            self._transact(lambda tx: forget_pushes(tx, jobs), now=now)

    def sweep(
        self,
        *,
        heads: Mapping[str, datetime | None],
        epoch: int,
        limit: int = 500,
        lost_job_after_seconds: float = 2.0,
        now: datetime | None = None,
    ) -> SweepResult:
        """See Recovery.sweep."""
        check = LostJobCheck(heads, timedelta(seconds=lost_job_after_seconds))

        def together() -> SweepResult:
            return self._transact(lambda tx: sweep(tx, check, limit=limit), epoch=epoch, now=now)

        return self._sweep_each(together, check, limit=limit, epoch=epoch, now=now)

    def _sweep_each(
        self, together: Callable[[], SweepResult], check: LostJobCheck, *, limit: int, epoch: int, now: datetime | None
    ) -> SweepResult:
        """Move all rows that are due in one call, and if that raises, those of each execution in one transaction."""
        try:
            return together()
        except Exception as error:
            if is_of_all(error) or not self._survives_errors():
                raise
        due = self._transact(lambda tx: find_due(tx, limit=limit), epoch=epoch, now=now)
        random.shuffle(due)  # those that can't be moved must not always come before the others
        by_execution: dict[str, list[NodeKey]] = {}
        for key in due:
            by_execution.setdefault(key.execution_id, []).append(key)
        steps = {
            execution_id: partial(self._transact, partial(sweep_rows, check=check, keys=keys), epoch=epoch, now=now)
            for execution_id, keys in by_execution.items()
        }
        answers = one_by_one(steps.values(), lambda step: [step()])
        swept = [answer for answer in answers if isinstance(answer, SweepResult)]
        moved: Counter[str] = Counter()
        for one in swept:
            moved.update(one.moved)
        return SweepResult(
            [job for one in swept for job in one.jobs],
            dict(moved),
            more=len(due) >= limit and bool(moved),
            ended=[execution_id for one in swept for execution_id in one.ended],
            errors={
                execution_id: answer
                for execution_id, answer in zip(steps, answers, strict=True)
                if isinstance(answer, SpanloomError)
            },
        )

    def _control(
        self,
        action: ControlAction,
        execution_id: str,
        expected_revision: int | None,
        *,
        epoch: int = 0,
        now: datetime | None = None,
    ) -> ControlResult:
        target = ControlTarget(execution_id, expected_revision, self.get_execution)
        (answer,) = self._transact(lambda tx: _STEPS[action](tx, [target]), epoch=epoch, now=now)
        return _done(answer)

    def _record_each(
        self, records: Sequence[RecordRequest], step: Callable[[Sequence[RecordRequest]], list[RecordResult]]
    ) -> list[RecordResult]:
        """Run a step for records as `_each` does. An error is in the result of its record."""
        if (answers := self._together(records, step)) is not None:
            return answers
        return [_recorded(answer) for answer in one_by_one(records, lambda record: step([record]))]

    def _each(
        self, items: Sequence[Item], step: Callable[[Sequence[Item]], list[Answer]]
    ) -> list[Answer | SpanloomError]:
        """Run a step for all items in one call, and if that raises, in one call per item.

        The answer to an item is its error if its call raises. Raises the first error if that is so of all items, and
        any error at once if this thread's transaction does not survive it.
        """
        answers = self._together(items, step)
        return one_by_one(items, lambda item: step([item])) if answers is None else [*answers]

    def _together(self, items: Sequence[Item], step: Callable[[Sequence[Item]], list[Answer]]) -> list[Answer] | None:
        """Run a step for all items in one call. None if it has to be tried for each of them."""
        if not items:
            return []
        try:
            return step(items)
        except Exception as error:
            if len(items) == 1 or is_of_all(error) or not self._survives_errors():
                raise
        return None


def _answers(answers: list[ControlResult | UserError | SpanloomError]) -> list[ControlResult | UserError]:
    """Return the answers, or raise the first error that is no refusal of its execution."""
    found: list[ControlResult | UserError] = []
    for answer in answers:
        if isinstance(answer, SpanloomError) and not isinstance(answer, UserError):
            raise answer
        found.append(answer)
    return found


def _recorded(answer: RecordResult | SpanloomError) -> RecordResult:
    return RecordResult(recorded=False, error=answer) if isinstance(answer, SpanloomError) else answer


def exact_starts(
    requests: Sequence[StartRequest], create: Callable[[Sequence[StartRequest]], list[StartAnswer]]
) -> list[StartAnswer]:
    """Create the executions with identities that can be kept exactly; the answer of any other is its refusal."""
    refused: dict[int, StartAnswer] = {}
    for place, request in enumerate(requests):
        try:
            check_start(request)
        except PayloadRejected as refusal:
            refused[place] = refusal
    if not refused:
        return create(requests)
    others = iter(create([request for place, request in enumerate(requests) if place not in refused]))
    return [refused[place] if place in refused else next(others) for place in range(len(requests))]


def _done(answer: ControlResult | UserError) -> ControlResult:
    """Return the result, or raise the error."""
    if isinstance(answer, UserError):
        raise answer
    return answer
