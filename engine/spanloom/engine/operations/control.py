"""Control of executions: cancel, pause, resume, retry, acknowledge, and nodes ended by hand."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from spanloom.engine.errors import InvalidTransition, UnknownExecution
from spanloom.engine.operations.bulk import BulkResult, control_each, find
from spanloom.engine.operations.manual import manual_result
from spanloom.engine.operations.start_options import Duration, as_seconds
from spanloom.engine.queue.epoch import Epoch
from spanloom.engine.settings import Settings
from spanloom.engine.store.models import Execution, ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import ControlResult, NodeJob, NodeKey
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.engine.telemetry.instruments import count_ended, instruments
from spanloom.engine.telemetry.spans import export_ended
from spanloom.engine.workflow.cache import DefinitionCache

__all__ = ["ExecutionControl"]

_PURGE_BATCH = 500
_OPEN = (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED)


class ExecutionControl:
    """The control transitions of WorkflowEngine, for one execution and, in the plural, for all that a filter finds.

    Each reaches all descendants in one step, but for set_execution_status to failed, acknowledge_execution and
    update_node_result, and raises UnknownExecution, InvalidTransition where the table of states forbids it,
    StaleVersion if `expected_revision` is given and not the execution's, and StoreUnavailable.
    """

    store: ExecutionStore
    epoch: Epoch
    definitions: DefinitionCache
    settings: Settings

    @abstractmethod
    def open(self) -> None:
        """Connect, if that has not happened yet."""

    @abstractmethod
    def push(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = (), changed: Iterable[str] = ()) -> None:
        """Put on Redis what the store decided."""

    def cancel_execution(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Cancel it: nothing of it starts any more, and what runs is not recorded as completed.

        True if this call did it, False if it was cancelled already.
        """
        self.open()
        controlled = self.store.cancel_execution(execution_id, expected_revision=expected_revision)
        return self._report_end(execution_id, controlled, ExecutionStatus.CANCELLED)

    def pause_execution(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Pause it: what runs may end, nothing new starts until it is resumed. A deadline goes on counting.

        True if this call did it, False if it was paused already.
        """
        self.open()
        return self._pushed(self.store.pause_execution(execution_id, expected_revision=expected_revision))

    def resume_execution(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Resume a paused execution; a delay that is not over waits on.

        True if this call did it, False if it was running already.
        """
        self.open()
        return self._pushed(
            self.store.resume_execution(execution_id, expected_revision=expected_revision, epoch=self.epoch.recent())
        )

    def retry_execution(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Run a failed execution on from where it failed: failed nodes again, what completed before is kept.

        A child that failed is retried in the same way. What came after a failure that the workflow had handled is
        done anew.
        """
        self.open()
        return self._pushed(
            self.store.retry_execution(execution_id, expected_revision=expected_revision, epoch=self.epoch.recent())
        )

    def acknowledge_execution(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Acknowledge a failed execution: it is listed no more among those that wait for someone, until it is retried.

        True if this call did it, False if it was acknowledged already.
        """
        self.open()
        return self.store.acknowledge_execution(execution_id, expected_revision=expected_revision).done

    def set_execution_status(
        self,
        execution_id: str,
        status: ExecutionStatus | str,
        *,
        error: str | None = None,
        expected_revision: int | None = None,
    ) -> bool:
        """Bring an execution to a status by the transition that leads there; False if it is so already.

        cancelled, paused, and running from paused or failed are what the methods above do; failed ends it with `error`,
        as a deadline would: what is ready is held for a retry, and its children are left alone. It completes by its
        nodes only: update_node_result ends those.
        """
        self.open()
        if status == ExecutionStatus.FAILED:
            text = json.dumps({"type": "EndedByHand", "message": error or "an operator failed it"})
            controlled = self.store.fail_execution(execution_id, text, expected_revision=expected_revision)
            return self._report_end(execution_id, controlled, ExecutionStatus.FAILED)
        current = self._execution(execution_id).status
        steps: dict[str, Callable[..., bool]] = {
            ExecutionStatus.CANCELLED: self.cancel_execution,
            ExecutionStatus.PAUSED: self.pause_execution,
            ExecutionStatus.RUNNING: (
                self.retry_execution if current is ExecutionStatus.FAILED else self.resume_execution
            ),
        }
        if status not in steps:
            raise InvalidTransition(f"execution {execution_id}", current, str(status))
        return steps[status](execution_id, expected_revision=expected_revision)

    def update_node_result(
        self,
        execution_id: str,
        node_id: str,
        status: NodeStatus | str = NodeStatus.COMPLETED,
        *,
        item: int = 0,
        data: Any = None,
        error: str | None = None,
        next_nodes: Sequence[str] | None = None,
    ) -> None:
        """End an open node by hand, in place of a worker: completed with `data`, failed with `error`, or skipped.

        What follows from it follows: successors run, the execution may end. Raises InvalidTransition for a node that a
        live worker runs, that waits for items, that is not ready or has ended; UserError for an unknown one.
        """
        self.open()
        execution = self._execution(execution_id)
        plan = self.definitions.get(execution.workflow_id, execution.version)
        record = manual_result(
            plan,
            NodeKey(execution.id, node_id, item),
            status,
            data=data,
            error=error,
            next_nodes=next_nodes,
            limit=self.settings.payload_limit_bytes,
        )
        recorded = self.store.update_node_result(record, epoch=self.epoch.recent())
        self.push(recorded.jobs, ended=[execution.id] if recorded.ended else [], changed=[execution.id])
        if recorded.ended:
            export_ended(self.store, [execution.id])
            if (measured := instruments()) is not None:
                measured.execution_ended(execution.workflow_id, recorded.ended)
            self.push(self.store.wake_parents([execution.id], epoch=self.epoch.recent()))

    # ---- many at once: the oldest `limit` that the filter finds, parents first ----

    def cancel_executions(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Cancel each that is pending, running or paused."""
        return self._each(wanted, _OPEN, self.cancel_execution, limit)

    def pause_executions(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Pause each that is running."""
        return self._each(wanted, [ExecutionStatus.RUNNING], self.pause_execution, limit)

    def resume_executions(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Resume each that is paused."""
        return self._each(wanted, [ExecutionStatus.PAUSED], self.resume_execution, limit)

    def retry_executions(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Retry each that has failed; acknowledged ones only if the filter asks for them."""
        return self._each(_dead(wanted), [ExecutionStatus.FAILED], self.retry_execution, limit)

    def acknowledge_executions(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Discard each that has failed."""
        return self._each(_dead(wanted), [ExecutionStatus.FAILED], self.acknowledge_execution, limit)

    def purge_executions(
        self,
        older_than: Duration,
        *,
        statuses: Iterable[ExecutionStatus | str] = (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED),
        limit: int | None = None,
    ) -> int:
        """Delete executions that ended longer ago than that (seconds or a timedelta), and say how many.

        Whole families, by the status of their first execution: one that still has something open, or that ended
        later, stays. Goes in batches; `limit` ends it after about so many. Idempotency keys go with their executions,
        and those that have expired go as well.
        """
        self.open()
        seconds = as_seconds("older_than", older_than)
        wanted = [ExecutionStatus(status) for status in statuses]
        ended_before = datetime.now(UTC) - timedelta(seconds=seconds)
        purged = 0
        while limit is None or purged < limit:
            batch = _PURGE_BATCH if limit is None else min(_PURGE_BATCH, limit - purged)
            answer = self.store.purge_executions(ended_before=ended_before, statuses=wanted, limit=batch)
            purged += answer.executions
            if not answer.more:
                break
        return purged

    def _each(
        self,
        wanted: ExecutionFilter,
        statuses: Collection[ExecutionStatus],
        step: Callable[[str], object],
        limit: int | None,
    ) -> BulkResult:
        self.open()
        return control_each(self.store, find(self.store, wanted, statuses, limit), step)

    def _execution(self, execution_id: str) -> Execution:
        execution = self.store.get_execution(execution_id)
        if execution is None:
            raise UnknownExecution(execution_id)
        return execution

    def _report_end(self, execution_id: str, controlled: ControlResult, status: ExecutionStatus) -> bool:
        """Report an end to those who wait for the execution, to its parent, and to the trace that it is part of."""
        self.push((), ended=controlled.executions)
        export_ended(self.store, controlled.executions)
        if controlled.done:
            count_ended(self.store, controlled.executions, status)
            self.push(self.store.wake_parents([execution_id], epoch=self.epoch.recent()))
        return controlled.done

    def _pushed(self, controlled: ControlResult) -> bool:
        self.push(controlled.jobs, changed=controlled.executions)
        return controlled.done


def _dead(wanted: ExecutionFilter) -> ExecutionFilter:
    return wanted if wanted.acknowledged is not None else wanted.model_copy(update={"acknowledged": False})
