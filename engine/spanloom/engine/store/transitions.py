"""The part of the store port that moves executions and node runs: the hot path, and what operators do.

As store.py says of the whole port, each method is one transition and one transaction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from spanloom.engine.errors import UserError
from spanloom.engine.store.requests import (
    ClaimAnswer,
    ControlAction,
    ControlResult,
    NodeJob,
    NodeKey,
    RecordRequest,
    RecordResult,
    StartAnswer,
    StartRequest,
)

__all__ = ["Control", "NodeTransitions"]


class NodeTransitions(ABC):
    """The hot path. Each takes a list and answers per item, in order: one bad item fails itself, not the batch."""

    @abstractmethod
    def create_executions(
        self,
        requests: Sequence[StartRequest],
        *,
        epoch: int = 0,
        connection: Any = None,
        now: datetime | None = None,
    ) -> list[StartAnswer]:
        """Create executions, each whole or not at all.

        Resolves the latest version in the same statement that creates; creates the `$end` row (pending, as many
        inputs as there are sinks, `due_at` = the deadline) and one queued node run per entry node, push 1,
        `pushed_epoch` = epoch. With `delay_seconds` > 0 the execution is pending and only a `$start` row (waiting,
        timer, due then) is made; the deadline counts from the delayed start. Answers UnknownWorkflow (also for
        an unknown version, or a deactivated one), or IdempotencyConflict when the key was used with another
        `input_hash`; a key that was used with the same one answers that execution, created False, no jobs.
        An expired key is free again. `connection` is a caller's own psycopg or SQLAlchemy connection to the same
        Postgres: all is written in its transaction and jobs are due at once for the sweep, none are answered;
        other stores raise ConfigurationError.

        With `replay` nothing waits: the results of `carried` are copied, with their items, under fence 0 and with
        arrived true; `skipped` gets results of its own; `$end` and every other node that they lead to count what
        arrived from them, and become queued (push 1) when all inputs have; entry nodes among neither are queued.
        `replay_of` names the source. Answers UnknownExecution if the source is gone, and InvalidTransition, the
        source's node run from its status to completed, if one of `carried` has not ended or has not arrived.
        Events: execution.created, which names the source as replay_of and how many nodes were carried;
        execution.started, node.queued.
        """

    @abstractmethod
    def claim(
        self, keys: Sequence[NodeKey], *, worker_id: str, token: str | None = None, now: datetime | None = None
    ) -> list[ClaimAnswer]:
        """Claim queued node runs for a worker whose lease is live.

        Given only for a `queued` run of a `running` execution: it becomes running, its fence rises by one, it has
        no `due_at`, and the answer holds the data of all parents whose edge was taken, read after the last
        arrival was committed; for an item of a mapped node its own data instead. A run that waited for a timer, a
        child or its items is claimed with that as `woken`, and with its wait_key, until its next record, however
        often it is released, lost or held in between. A queued run whose execution is paused or failed becomes held
        and answers NOT_READY. Waits for a locked row instead of skipping it. The same key twice in one call is claimed
        once. A call sent again with the same `token` (unique for each first call), because its answer was lost,
        answers the same claims as long as they are live; without a token the worker finds its own runs TAKEN.
        Event: node.started.
        """

    @abstractmethod
    def record(
        self, records: Sequence[RecordRequest], *, epoch: int = 0, now: datetime | None = None
    ) -> list[RecordResult]:
        """Record outcomes of claims, and all that follows, atomically.

        Fenced: unless the run is running under that worker and fence, answers recorded=False and writes nothing;
        but a record sent again (same worker, fence and outcome, already recorded) writes nothing and answers with
        the same continuation. Records of one call count in the order of their keys (execution, node, item): of two
        failures the first is the execution's error. What one makes ready is not claimed (`next`) if another fails the
        execution, and beside a failure that is refused or handled it may be pushed instead. In the common case one
        round trip.

        COMPLETED, FAILED, SKIPPED end the run: it leaves the open rows, its result row keeps data, error, attempt,
        fence, worker and which edges were taken. It arrives at every successor, once per edge; arrivals at one
        row in one call are summed first. When all inputs of a successor have arrived: some taken → ready, none →
        skipped, and the skip travels on, to any depth. Ready means queued (push 1) in a running execution, held
        in any other that is not cancelled. A hold is no push: the push number and pushed_at stay as they were. The
        event node.held carries as `because` the cause that node.queued would carry in a running execution. A run that
        was held has no record that made it ready: a record sent again answers no job of it, as whoever resumes or
        retries the execution pushes it. The first of `successors` that became ready by this record and whose
        queue is the recorded node's is claimed for this worker at once (`next`) instead of pushed.
        FAILED is handled if an edge to a successor is taken, or if the record says so. If not it arrives nowhere, so
        that a retry finds what comes after it untouched, and it fails a running or paused execution, whose error is
        then this one with `node_id` and whose queued and retry-waiting runs become held. Arrivals count whatever the
        execution's status. When `$end` has all arrivals, a running or paused execution completes. Nothing changes an
        ended execution's status.

        RETRY makes the run waiting (kind retry, due after delay_seconds), its attempt rises if `spends_attempt`, and
        it forgets what woke it; in a failed execution it is held. RELEASED makes it queued again, push + 1 (held if
        the execution is not running), and answers the job to push.
        WAITING makes it waiting for `wait_kind`:
        - timer: due after delay_seconds, or at `due_at`.
        - child: the execution that `child` asks for is created in the same step, with its entry nodes' jobs to push;
          the run is its parent under this fence, and its deadline is no later than its parent's. If it can't be
          started, answers `refused` and writes nothing. In an execution that is not running nothing is created and
          the run is held, to ask again.
        - items: the node's items 1..n are kept with their data, and the first `max_concurrency` of them are queued;
          one of them is `next` if `successors` names the node itself. In an execution that is not running the run is
          held, to ask again.
        An item's end arrives at its node's run (item 0) and nowhere else: the next item that was never started becomes
        ready, unless more than `tolerated_failures` have failed, and when none is open any more the node's run
        becomes ready, woken by its items. Either is claimed as `next` if `successors` names the node.

        `span` is kept with the run, whose next claim tells it (`NodeClaim.span`), and, when the run has ended, with its
        result: claims of its successors tell it among `parent_spans`. A retry of the execution keeps it for the next
        claim. With `exported_ns` the execution is noted for SpanExports, whether the record counts or not.

        The end of an execution that has a parent leaves a row (`$parent`) that is due at once, until wake_parents or
        a sweep has told the parent's run. A run of a cancelled execution is recorded as cancelled: answered recorded,
        with nothing following.
        Events: node.completed, node.failed, node.skipped, node.retrying, node.waiting, node.released, node.queued,
        node.held, node.started, execution.completed, execution.failed; those of a child that is created.
        node.failed and node.retrying carry the whole error.
        """

    @abstractmethod
    def wake_parents(
        self, execution_ids: Sequence[str], *, epoch: int = 0, now: datetime | None = None
    ) -> list[NodeJob]:
        """Wake the parents' runs whose children these are, and return the jobs to push.

        A run that still waits for that child under the fence that the child was created with becomes queued (held in
        an execution that is not running), woken by its child. Then, or if it waits no more, the `$parent` row goes.
        One that has no such row, has not ended or is unknown is passed over. Event: node.queued, or node.held.
        """


class Control(ABC):
    """What operators do to an execution, and to its descendants, root first, in one step.

    Each raises UnknownExecution, InvalidTransition where the table in states.py forbids it, and StaleVersion, with
    `current` being the Execution, if `expected_revision` is not its revision. Each that does something raises the
    revision of every execution that it changes; one that finds nothing to do answers done=False and writes nothing.
    All but acknowledge_execution and update_node_result reach all descendants.
    """

    @abstractmethod
    def cancel_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """Cancel: its open runs end as cancelled, also running ones (their records will find that).

        Its pending, running and paused descendants are cancelled with it. Not done if it was cancelled before. If it
        has a parent, that is told as by any end. Events: node.cancelled, execution.cancelled.
        """

    @abstractmethod
    def pause_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """Pause a running execution and its running descendants: queued runs become held, running ones may end.

        Runs that wait for a retry, a timer, a child or items go on waiting, with the same due_at; what comes due is
        held. What is held forgets which record made it ready. The deadline goes on counting. Not done if it is paused.
        Events: execution.paused, node.held.
        """

    @abstractmethod
    def resume_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> ControlResult:
        """Set a paused execution and its paused descendants running: held runs become queued, with jobs to push.

        Nothing that still waits for its time is touched. Not done if it is running; any other status is an
        InvalidTransition. Events: execution.resumed,
        node.queued.
        """

    @abstractmethod
    def retry_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> ControlResult:
        """Set a failed execution running again from where it failed; what completed before is kept, its error goes.

        - Held runs become queued; one that was woken by a child that failed waits for it, which is retried in turn.
        - Everything downstream of a failure that had been handled is reset: its results, open runs, items and
          counters go, its open children are cancelled, and what arrives at it is counted anew from the edges. A record
          of a claim on such a run finds its fence stale, whatever becomes of the run.
        - Every other failed run becomes queued, attempt 1, recovery_attempts 0, under a higher fence and the next push.
          A mapped node that failed for its items waits for them again: the failed ones are started anew,
          `max_concurrency` of them, then those that never were, and `tolerated_failures` counts from the start. A run
          whose latest child failed waits for that child, which is retried in turn, under the new fence; one whose
          latest child is still open waits for it; one whose latest child completed goes on, woken by it, as a mapped
          node does whose items have all ended well.
        - `$end` counts anew, and a deadline counts from now.
        Raises InvalidTransition unless it is failed; not done never. A `$parent` row of its own end goes.
        Events: execution.retried, node.reset, node.queued, node.waiting, and those of a cancel.
        """

    def control_executions(
        self, action: ControlAction, execution_ids: Sequence[str], *, epoch: int = 0, now: datetime | None = None
    ) -> list[ControlResult | UserError]:
        """Do one control transition to many executions and return, for each in order, its result or what forbids it.

        Each has the events and the effects of the transition of its own; one that is refused does not keep the others
        from theirs. One that is also a descendant of another comes with that one: its own result is done=False. A
        store may do them in one transaction; here each is a call of its own.
        """
        step: Callable[[str], ControlResult] = {
            ControlAction.CANCEL: partial(self.cancel_execution, now=now),
            ControlAction.PAUSE: partial(self.pause_execution, now=now),
            ControlAction.RESUME: partial(self.resume_execution, epoch=epoch, now=now),
            ControlAction.RETRY: partial(self.retry_execution, epoch=epoch, now=now),
            ControlAction.ACKNOWLEDGE: partial(self.acknowledge_execution, now=now),
        }[action]
        results: list[ControlResult | UserError] = []
        for execution_id in execution_ids:
            try:
                results.append(step(execution_id))
            except UserError as error:
                results.append(error)
        return results

    @abstractmethod
    def fail_execution(
        self, execution_id: str, error: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """Fail a running or paused execution by hand, with `error` (JSON text: {type, message}), as a deadline would.

        Running runs may end and are recorded; what is ready is held for a retry. Its descendants are left alone: they
        end by themselves. If it has a parent, that is told. Not done if it has failed already.
        Events: execution.failed, node.held.
        """

    @abstractmethod
    def acknowledge_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """Mark a failed execution as dealt with (`acknowledged_at`): it is no dead letter any more, unless it is
        retried.

        Raises InvalidTransition unless it is failed; not done if it is acknowledged. Event: execution.acknowledged.
        """

    @abstractmethod
    def update_node_result(self, record: RecordRequest, *, epoch: int = 0, now: datetime | None = None) -> RecordResult:
        """End an open node run by hand: as `record` (COMPLETED, FAILED or SKIPPED) does, with all that follows from it.

        `record.fence`, `worker_id` and `successors` are not looked at; the run ends under a fence of its own, so that
        a record under an older claim is stale, and with no worker. Raises UnknownExecution, and InvalidTransition
        unless it is queued, held, waiting (not for items), or running under a lease that has lapsed; one that has
        ended or was never made ready is told as such. The execution may be running, paused or failed; its revision
        stays.
        """
