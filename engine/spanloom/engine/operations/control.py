"""Control of executions: cancel, pause, resume, retry, acknowledge, and nodes ended by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

from spanloom.engine.errors import InvalidTransition, UnknownExecution, UserError
from spanloom.engine.operations.bulk import BulkResult, control_each, find
from spanloom.engine.operations.manual import manual_result
from spanloom.engine.operations.start_options import Duration, as_seconds
from spanloom.engine.queue.epoch import Epoch
from spanloom.engine.store.models import Execution, ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import ControlAction, ControlResult, NodeJob, NodeKey
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.engine.telemetry.instruments import count_ended, instruments
from spanloom.engine.telemetry.spans import export_ended
from spanloom.engine.workflow.cache import DefinitionCache

__all__ = ["PURGED", "Operations", "Push", "Status"]

Status = ExecutionStatus | str  #: a status, or its name
PURGED: tuple[Status, ...] = (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED)  #: unless others are chosen
_PURGE_BATCH = 500
_OPEN = (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED)


class Push(Protocol):
    """The function that puts on Redis what the store decided."""

    def __call__(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = (), changed: Iterable[str] = ()) -> None: ...


class Operations:
    """The control transitions of an engine, for one execution and for all that a filter finds.

    Their contracts stand at the methods of WorkflowEngine that lead here.
    """

    def __init__(
        self,
        opened: Callable[[], None],
        store: ExecutionStore,
        epoch: Epoch,
        definitions: DefinitionCache,
        push: Push,
        payload_limit_bytes: int,
    ) -> None:
        """`opened` connects, if that has not happened yet; `push` puts on Redis what the store decided."""
        self._opened = opened
        self._store = store
        self._epoch = epoch
        self._definitions = definitions
        self._push = push
        self._payload_limit_bytes = payload_limit_bytes

    def cancel(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Cancel an execution; False if it was so already."""
        self._opened()
        controlled = self._store.cancel_execution(execution_id, expected_revision=expected_revision)
        return self._report_end(execution_id, controlled, ExecutionStatus.CANCELLED)

    def pause(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Pause an execution; False if it was so already."""
        self._opened()
        return self._pushed(self._store.pause_execution(execution_id, expected_revision=expected_revision))

    def resume(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Resume a paused execution; False if it runs already."""
        self._opened()
        return self._pushed(
            self._store.resume_execution(execution_id, expected_revision=expected_revision, epoch=self._epoch.recent())
        )

    def retry(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Run a failed execution on from where it failed."""
        self._opened()
        return self._pushed(
            self._store.retry_execution(execution_id, expected_revision=expected_revision, epoch=self._epoch.recent())
        )

    def acknowledge(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Acknowledge a failed execution; False if it was so already."""
        self._opened()
        return self._store.acknowledge_execution(execution_id, expected_revision=expected_revision).done

    def set_status(
        self,
        execution_id: str,
        status: Status,
        *,
        error: str | None = None,
        expected_revision: int | None = None,
    ) -> bool:
        """Bring an execution to a status; False if it is so already."""
        self._opened()
        if status == ExecutionStatus.FAILED:
            text = json.dumps({"type": "EndedByHand", "message": error or "an operator failed it"})
            controlled = self._store.fail_execution(execution_id, text, expected_revision=expected_revision)
            return self._report_end(execution_id, controlled, ExecutionStatus.FAILED)
        current = self.get(execution_id).status
        steps: dict[str, Callable[..., bool]] = {
            ExecutionStatus.CANCELLED: self.cancel,
            ExecutionStatus.PAUSED: self.pause,
            ExecutionStatus.RUNNING: (self.retry if current is ExecutionStatus.FAILED else self.resume),
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
        """End an open node by hand."""
        self._opened()
        execution = self.get(execution_id)
        plan = self._definitions.get(execution.workflow_id, execution.version)
        record = manual_result(
            plan,
            NodeKey(execution.id, node_id, item),
            status,
            data=data,
            error=error,
            next_nodes=next_nodes,
            limit=self._payload_limit_bytes,
        )
        recorded = self._store.update_node_result(record, epoch=self._epoch.recent())
        self._push(recorded.jobs, ended=[execution.id] if recorded.ended else [], changed=[execution.id])
        if recorded.ended:
            export_ended(self._store, [execution.id])
            if (measured := instruments()) is not None:
                measured.execution_ended(execution.workflow_id, recorded.ended)
            self._push(self._store.wake_parents([execution.id], epoch=self._epoch.recent()))

    # ---- many at once: the oldest `limit` that the filter finds, parents first ----

    def cancel_each(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Cancel each that is pending, running or paused."""
        return self._each(wanted, _OPEN, ControlAction.CANCEL, limit)

    def pause_each(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Pause each that is running."""
        return self._each(wanted, [ExecutionStatus.RUNNING], ControlAction.PAUSE, limit)

    def resume_each(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Resume each that is paused."""
        return self._each(wanted, [ExecutionStatus.PAUSED], ControlAction.RESUME, limit)

    def retry_each(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Retry each that has failed; acknowledged ones only if the filter asks for them."""
        return self._each(_dead(wanted), [ExecutionStatus.FAILED], ControlAction.RETRY, limit)

    def acknowledge_each(self, wanted: ExecutionFilter, *, limit: int | None = None) -> BulkResult:
        """Acknowledge each that has failed."""
        return self._each(_dead(wanted), [ExecutionStatus.FAILED], ControlAction.ACKNOWLEDGE, limit)

    def purge(
        self,
        older_than: Duration,
        *,
        statuses: Iterable[Status] = PURGED,
        limit: int | None = None,
    ) -> int:
        """Delete executions that ended longer ago than that, and return how many."""
        self._opened()
        seconds = as_seconds("older_than", older_than)
        wanted = [ExecutionStatus(status) for status in statuses]
        ended_before = datetime.now(UTC) - timedelta(seconds=seconds)
        purged = 0
        while limit is None or purged < limit:
            batch = _PURGE_BATCH if limit is None else min(_PURGE_BATCH, limit - purged)
            answer = self._store.purge_executions(ended_before=ended_before, statuses=wanted, limit=batch)
            purged += answer.executions
            if not answer.more:
                break
        return purged

    def _each(
        self,
        wanted: ExecutionFilter,
        statuses: Collection[ExecutionStatus],
        action: ControlAction,
        limit: int | None,
    ) -> BulkResult:
        self._opened()
        return control_each(self._store, find(self._store, wanted, statuses, limit), partial(self.control, action))

    def control(self, action: ControlAction, execution_ids: Sequence[str]) -> list[bool | UserError]:
        """Do one transition to many executions; return for each whether it did something, or its refusal."""
        self._opened()
        results = self._store.control_executions(action, execution_ids, epoch=self._epoch.recent())
        done = {
            execution_id: result
            for execution_id, result in zip(execution_ids, results, strict=True)
            if isinstance(result, ControlResult) and result.done
        }
        changed = [execution_id for result in done.values() for execution_id in result.executions]
        if action is ControlAction.CANCEL:
            self._report_ends(list(done), changed, ExecutionStatus.CANCELLED)
        else:
            self._push([job for result in done.values() for job in result.jobs], changed=changed)
        return [result if isinstance(result, UserError) else result.done for result in results]

    def get(self, execution_id: str) -> Execution:
        """Return an execution. Raises UnknownExecution, StoreUnavailable."""
        execution = self._store.get_execution(execution_id)
        if execution is None:
            raise UnknownExecution(execution_id)
        return execution

    def _report_end(self, execution_id: str, controlled: ControlResult, status: ExecutionStatus) -> bool:
        self._report_ends([execution_id] if controlled.done else [], controlled.executions, status)
        return controlled.done

    def _report_ends(self, execution_ids: Sequence[str], ended: Sequence[str], status: ExecutionStatus) -> None:
        """Report ends to those who wait for the executions, to their parents, and to the traces they are part of."""
        self._push((), ended=ended)
        export_ended(self._store, ended)
        if execution_ids:
            count_ended(self._store, ended, status)
            self._push(self._store.wake_parents(execution_ids, epoch=self._epoch.recent()))

    def _pushed(self, controlled: ControlResult) -> bool:
        self._push(controlled.jobs, changed=controlled.executions)
        return controlled.done


def _dead(wanted: ExecutionFilter) -> ExecutionFilter:
    return wanted if wanted.acknowledged is not None else wanted.model_copy(update={"acknowledged": False})
