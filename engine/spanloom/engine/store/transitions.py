"""The part of the store port that moves executions and node runs: the hot path, and the control by operators.

As in the whole port (port.py), each method is one transition and one transaction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from spanloom.engine.arguments import Count, JsonObject
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
    """The hot path. Each method takes a list and returns an answer per item, in order; a bad item fails only itself.

    The answer to an item that can't be served is its error: StoreUnavailable if it may be served later, any other if
    never. The other items are served. If none is, the first error is raised.
    """

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

        - The latest version is resolved in the same statement that creates the execution.
        - Created are the `$end` row (pending, with as many inputs as there are sinks, `due_at` = the deadline), and one
          queued node run per entry node, push 1, `pushed_epoch` = epoch.
        - With `delay_seconds` > 0 the execution is pending, and the only row is a `$start` (waiting, timer, due after
          the delay). The deadline counts from the delayed start.
        - UnknownWorkflow is the answer if the workflow or its version is unknown, or the workflow is deactivated.
        - IdempotencyConflict is the answer if the key was used with another `input_hash`.
        - If the key was used with the same `input_hash`, the answer is that execution, created False, without jobs.
          An expired key is free again.
        - `connection` is a caller's own psycopg or SQLAlchemy connection to the same Postgres. All rows are written in
          its transaction, no jobs are returned, and the sweep finds them due at once. Other stores raise
          ConfigurationError.

        With `replay` there is no delay:

        - The results of `carried` are copied, with their items, under fence 0 and with arrived true.
        - `skipped` nodes get results of their own.
        - `$end` and every other node that follows these counts their arrivals, and becomes queued (push 1) when all of
          its inputs have arrived. Entry nodes among neither are queued.
        - `replay_of` is the id of the source.
        - UnknownExecution is the answer if the source is gone.
        - InvalidTransition is the answer, from the status of the source's node run to completed, if one of `carried`
          has not ended or has not arrived.

        Events: execution.created, with the source as replay_of and the number of carried nodes; execution.started,
        node.queued.
        """

    @abstractmethod
    def claim(
        self, keys: Sequence[NodeKey], *, worker_id: str, token: str | None = None, now: datetime | None = None
    ) -> list[ClaimAnswer]:
        """Claim queued node runs for a worker whose lease is live.

        - A claim is granted only for a `queued` run of a `running` execution. The run becomes running, its fence rises
          by one, and it has no `due_at`.
        - The claim holds the data of all parents whose edge was taken, read after the last arrival was committed. The
          claim of an item of a mapped node holds the item's own data instead.
        - A run that waited, but for a retry, is claimed with the kind of that wait as `woken`, and with its wait_key,
          until its next record, however often it is released, lost or held in between.
        - A queued run whose execution is paused or failed becomes held, and the answer is NOT_READY.
        - A locked row is waited for, never skipped. The same key twice in one call is claimed once.
        - A call that is sent again with the same `token` (unique for each first call), because its answer was lost,
          returns the same claims as long as they are live. Without a token the worker's own runs are TAKEN.

        Event: node.started.
        """

    @abstractmethod
    def record(
        self, records: Sequence[RecordRequest], *, epoch: int = 0, now: datetime | None = None
    ) -> list[RecordResult]:
        """Record outcomes of claims, and all that follows from them, atomically.

        One call:
        - Each record is fenced: unless the run is running under that worker and fence, the answer is recorded=False,
          and nothing is written.
        - A record that is sent again (same worker, fence and outcome, already recorded) writes nothing and returns the
          same continuation.
        - Records count in the order of their keys (execution, node, item): of two failures the first is the
          execution's error.
        - A run that one record makes ready is not claimed (`following`) if another record fails the execution. Beside a
          failure that is refused or handled it may be pushed instead.
        - In the common case it is one round trip.

        COMPLETED, FAILED and SKIPPED end the run:
        - It leaves the open rows. Its result row keeps data, error, attempt, fence, worker and the edges taken.
        - It arrives at every successor, once per edge. Arrivals at one row in one call are summed first.
        - A successor whose inputs have all arrived becomes ready if an edge was taken, else skipped. Skips propagate to
          any depth.
        - Ready means queued (push 1) in a running execution, and held in any other that is not cancelled.
        - A hold is no push: the push number and pushed_at stay. The `because` of node.held is the cause that
          node.queued would carry in a running execution.
        - A held run is not linked to the record that made it ready, so a record that is sent again returns no job of
          it. Resuming or retrying the execution pushes it.
        - The first `most_following` of `successors` that became ready by this record, and whose queue is the recorded
          node's, are claimed for this worker at once (`following`) instead of pushed.
        - Arrivals count in every status of the execution. When `$end` has all arrivals, a running or paused execution
          completes. Nothing changes the status of an ended execution.

        FAILED is handled if an edge to a successor is taken, or if the record has `handled`. A failure that is not:
        - It arrives nowhere, so that its successors are untouched when the execution is retried.
        - It fails a running or paused execution. The execution's error is then this one, with `node_id`, and its
          queued and retry-waiting runs become held.

        RETRY makes the run waiting (kind retry, due after delay_seconds). Its attempt rises if `spends_attempt`, and
        its `woken` is cleared. In a failed execution it is held.

        RELEASED makes it queued again, push + 1, and returns the job to push. In an execution that is not running it is
        held.

        WAITING makes it waiting for `wait_kind`:
        - timer: due after delay_seconds, or at `due_at`.
        - child: the execution of the request `child` is created in the same step, and the jobs of its entry nodes are
          returned. The run is its parent under this fence, and its deadline is no later than its parent's. If it can't
          be started, the answer has `refused`, and nothing is written. In an execution that is not running nothing is
          created, and the run is held, to be claimed and to request the child again.
        - items: the node's items 1..n are stored with their data, and the first `max_concurrency` of them are queued.
          One of them is claimed (`following`) if `successors`
          names the node itself. In an execution that is not running the run is
          held, to be claimed and to request the items again.

        The end of an item arrives at its node's run (item 0) and nowhere else:
        - The next item that was never started becomes ready, unless more than `tolerated_failures` have failed.
        - When no item is open any more, the node's run becomes ready, woken by its items.
        - Either is claimed as `following` if `successors` names the node.

        `span` is stored with the run, whose next claim contains it (`NodeClaim.span`). When the run has ended it is
        stored with the result, and claims of its successors contain it in `parent_spans`. A retry of the execution
        keeps it for the next claim.

        The end of an execution that has a parent inserts a `$parent` row that is due at once, until wake_parents or a
        sweep has passed the end on to the parent's run. A run of a cancelled execution is recorded as cancelled: the
        answer is recorded=True, and nothing follows.

        Events: node.completed, node.failed, node.skipped, node.retrying, node.waiting, node.released, node.queued,
        node.held, node.started, execution.completed, execution.failed; those of a child that is created.
        node.failed and node.retrying carry the whole error.
        """

    @abstractmethod
    def wake_parents(
        self, execution_ids: Sequence[str], *, epoch: int = 0, now: datetime | None = None
    ) -> list[NodeJob]:
        """Wake the parents' runs of these child executions, and return the jobs to push.

        - A run that still waits for the child, under the fence that the child was created with, becomes queued, or held
          in an execution that is not running. It is woken by its child.
        - The `$parent` row is deleted then, and also if the run no longer waits.
        - An execution that is unknown, has not ended, or has no `$parent` row is ignored.

        Event: node.queued, or node.held.
        """


class Control(ABC):
    """The control of an execution by operators, and of its descendants, root first, in one step.

    - Every method raises UnknownExecution; InvalidTransition where the table in states.py forbids the transition; and
      StaleVersion, with the Execution as `current`, if `expected_revision` is not its revision.
    - A transition raises the revision of every execution that it changes.
    - A transition without effect returns done=False and writes nothing.
    - All but acknowledge_execution and update_node_result reach all descendants.
    """

    @abstractmethod
    def cancel_execution(
        self, execution_id: str, *, expected_revision: Count | None = None, now: datetime | None = None
    ) -> ControlResult:
        """Cancel an execution: its open runs end as cancelled, also running ones, whose records will find that.

        Its pending, running and paused descendants are cancelled with it. Its parent, if any, is woken as by any end.
        `done` is False if it was cancelled before. Events: node.cancelled, execution.cancelled.
        """

    @abstractmethod
    def pause_execution(
        self, execution_id: str, *, expected_revision: Count | None = None, now: datetime | None = None
    ) -> ControlResult:
        """Pause a running execution and its running descendants: queued runs become held, running ones may end.

        - Runs that wait go on waiting, with the same due_at. A run that is woken is held.
        - A held run is no longer linked to the record that made it ready.
        - The deadline goes on counting.
        - `done` is False if it is paused already.

        Events: execution.paused, node.held.
        """

    @abstractmethod
    def resume_execution(
        self,
        execution_id: str,
        *,
        expected_revision: Count | None = None,
        epoch: Count = 0,
        now: datetime | None = None,
    ) -> ControlResult:
        """Set a paused execution and its paused descendants running: held runs become queued, with jobs to push.

        A run that still waits for its time is unchanged. `done` is False if the execution is running. Any other status
        is an InvalidTransition. Events: execution.resumed, node.queued.
        """

    @abstractmethod
    def retry_execution(
        self,
        execution_id: str,
        *,
        expected_revision: Count | None = None,
        epoch: Count = 0,
        now: datetime | None = None,
    ) -> ControlResult:
        """Set a failed execution running again from where it failed. Completed runs are kept; its error is cleared.

        - Held runs become queued. One that was woken by a child that failed waits for the child, which is retried too.
        - All runs downstream of a failure that had been handled are reset: their results, open runs, items and
          counters are deleted, their open children are cancelled, and their arrivals are counted anew from the edges.
          The fence of a claim on such a run is stale for its record, whatever happens to the run afterwards.
        - Every other failed run becomes queued, attempt 1, recovery_attempts 0, under a higher fence and the next push,
          with these exceptions:
          - A mapped node that failed because of its items waits for them again. The failed items are started anew,
            `max_concurrency` of them, then those that were never started. `tolerated_failures` counts from zero.
          - A mapped node whose items have all ended well goes on, woken by them.
          - A run whose latest child failed waits for that child, which is retried too, under the new fence.
          - A run whose latest child is still open waits for it.
          - A run whose latest child completed goes on, woken by it.
        - `$end` counts anew, and a deadline counts from now.
        - The `$parent` row of its own end is deleted.

        Raises InvalidTransition unless the execution has failed, so `done` is always True.
        Events: execution.retried, node.reset, node.queued, node.waiting, and those of a cancel.
        """

    def control_executions(
        self, action: ControlAction, execution_ids: Sequence[str], *, epoch: Count = 0, now: datetime | None = None
    ) -> list[ControlResult | UserError]:
        """Apply one control transition to many executions, and return the result or the error of each, in order.

        - Each has the effects and the events of a transition of its own.
        - A refused transition does not affect the others.
        - An execution that is also a descendant of another changes together with that one: its own result is
          done=False.
        - A store may apply them in one transaction. Here each is a call of its own.
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
        self,
        execution_id: str,
        error: JsonObject,
        *,
        expected_revision: Count | None = None,
        now: datetime | None = None,
    ) -> ControlResult:
        """Fail a running or paused execution by hand, with `error` (JSON text: {type, message}), as a deadline would.

        - Running runs may end and are recorded. Ready runs are held for a retry.
        - Its descendants are unchanged: they end by themselves.
        - Its parent, if any, is woken as by any end.
        - `done` is False if it has failed already.

        Events: execution.failed, node.held.
        """

    @abstractmethod
    def acknowledge_execution(
        self, execution_id: str, *, expected_revision: Count | None = None, now: datetime | None = None
    ) -> ControlResult:
        """Mark a failed execution as dealt with (`acknowledged_at`): it is no dead letter unless it is retried.

        `done` is False if it is acknowledged already. Raises InvalidTransition unless it has failed.
        Event: execution.acknowledged.
        """

    @abstractmethod
    def update_node_result(
        self, record: RecordRequest, *, epoch: Count = 0, now: datetime | None = None
    ) -> RecordResult:
        """End an open node run by hand, with the outcome of `record` and all that follows from it.

        - The outcome is COMPLETED, FAILED or SKIPPED.
        - `record.fence`, `worker_id` and `successors` are ignored.
        - The run ends without a worker and under a fence of its own, so that a record under an older claim is stale.
        - The execution may be running, paused or failed. Its revision stays.

        Raises UnknownExecution. Raises InvalidTransition unless the run is queued, held, waiting (not for items), or
        running under a lease that has lapsed; its message distinguishes a run that has ended from one that was never
        made ready.
        """
