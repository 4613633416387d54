"""Control of executions: cancel, pause, resume, retry, acknowledge, and manual results of nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

from spanloom.engine.arguments import Count, Duration, Revision, checked_calls, seconds_of
from spanloom.engine.errors import InvalidArgument, InvalidTransition, UnknownExecution, UserError
from spanloom.engine.operations.bulk import ENDED, BulkResult, control_each, find
from spanloom.engine.operations.manual import manual_result
from spanloom.engine.queue.redis_epoch import Epoch
from spanloom.engine.store.models import Execution, ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import ControlAction, ControlResult, NodeJob, NodeKey
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.engine.telemetry.instruments import count_ended, instruments
from spanloom.engine.telemetry.spans import export_ended
from spanloom.engine.workflow.cache import DefinitionCache

__all__ = ["PURGED", "EngineParts", "ExecutionControl", "Operations", "Push", "Status"]

Status = ExecutionStatus | str  #: a status, or its name
PURGED: tuple[Status, ...] = (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED)  #: unless others are chosen
_PURGE_BATCH = 500
_OPEN = (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED)


class Push(Protocol):
    """The function that pushes the store's jobs to Redis, and publishes ends and changes."""

    def __call__(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = (), changed: Iterable[str] = ()) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineParts:
    """The parts of an engine that control works with."""

    open: Callable[[], None]  # connects, if the engine is not connected yet
    store: ExecutionStore
    epoch: Epoch
    definitions: DefinitionCache
    push: Push
    payload_limit_bytes: int

    def report_ends(self, execution_ids: Sequence[str], ended: Sequence[str], status: ExecutionStatus) -> None:
        """Report ends to the waiters of the executions, to their parents, and to the traces that they belong to."""
        self.push((), ended=ended)
        export_ended(self.store, ended)
        if execution_ids:
            count_ended(self.store, ended, status)
            self.push(self.store.wake_parents(execution_ids, epoch=self.epoch.recent()))


@checked_calls(but=("__init__",))
class ExecutionControl:
    """The control transitions of one execution, by its id. WorkflowEngine's methods document their contracts."""

    __slots__ = ("_engine", "id")

    def __init__(self, execution_id: str, engine: EngineParts) -> None:
        self.id = execution_id
        self._engine = engine

    def cancel(self, *, expected_revision: Revision = None) -> bool:
        """Cancel an execution; False if it was cancelled already."""
        self._engine.open()
        controlled = self._engine.store.cancel_execution(self.id, expected_revision=expected_revision)
        return self._report_end(controlled, ExecutionStatus.CANCELLED)

    def pause(self, *, expected_revision: Revision = None) -> bool:
        """Pause an execution; False if it was paused already."""
        self._engine.open()
        return self._pushed(self._engine.store.pause_execution(self.id, expected_revision=expected_revision))

    def resume(self, *, expected_revision: Revision = None) -> bool:
        """Resume a paused execution; False if it runs already."""
        self._engine.open()
        return self._pushed(
            self._engine.store.resume_execution(
                self.id, expected_revision=expected_revision, epoch=self._engine.epoch.recent()
            )
        )

    def retry(self, *, expected_revision: Revision = None) -> bool:
        """Continue a failed execution from the nodes that failed."""
        self._engine.open()
        return self._pushed(
            self._engine.store.retry_execution(
                self.id, expected_revision=expected_revision, epoch=self._engine.epoch.recent()
            )
        )

    def acknowledge(self, *, expected_revision: Revision = None) -> bool:
        """Acknowledge a failed execution; False if it was acknowledged already."""
        self._engine.open()
        return self._engine.store.acknowledge_execution(self.id, expected_revision=expected_revision).done

    def set_status(
        self,
        status: Status,
        *,
        error: str | None = None,
        expected_revision: Revision = None,
    ) -> bool:
        """Bring an execution to a status; False if it has it already."""
        self._engine.open()
        if status == ExecutionStatus.FAILED:
            text = json.dumps({"type": "EndedByHand", "message": error or "an operator failed it"})
            controlled = self._engine.store.fail_execution(self.id, text, expected_revision=expected_revision)
            return self._report_end(controlled, ExecutionStatus.FAILED)
        current = self._get().status
        steps: dict[str, Callable[..., bool]] = {
            ExecutionStatus.CANCELLED: self.cancel,
            ExecutionStatus.PAUSED: self.pause,
            ExecutionStatus.RUNNING: (self.retry if current is ExecutionStatus.FAILED else self.resume),
        }
        if status not in steps:
            raise InvalidTransition(f"execution {self.id}", current, str(status))
        return steps[status](expected_revision=expected_revision)

    def update_node_result(
        self,
        node_id: str,
        status: NodeStatus | str = NodeStatus.COMPLETED,
        *,
        item: Count = 0,
        data: Any = None,
        error: str | None = None,
        next_nodes: Sequence[str] | None = None,
    ) -> None:
        """End an open node manually."""
        self._engine.open()
        execution = self._get()
        plan = self._engine.definitions.get(execution.workflow_id, execution.version)
        record = manual_result(
            plan,
            NodeKey(execution.id, node_id, item),
            status,
            data=data,
            error=error,
            next_nodes=next_nodes,
            limit=self._engine.payload_limit_bytes,
        )
        recorded = self._engine.store.update_node_result(record, epoch=self._engine.epoch.recent())
        self._engine.push(recorded.jobs, ended=[execution.id] if recorded.ended else [], changed=[execution.id])
        if recorded.ended:
            export_ended(self._engine.store, [execution.id])
            if (measured := instruments()) is not None:
                measured.execution_ended(execution.workflow_id, recorded.ended)
            self._engine.push(self._engine.store.wake_parents([execution.id], epoch=self._engine.epoch.recent()))

    def _get(self) -> Execution:
        execution = self._engine.store.get_execution(self.id, data_limit=0)
        if execution is None:
            raise UnknownExecution(self.id)
        return execution

    def _report_end(self, controlled: ControlResult, status: ExecutionStatus) -> bool:
        self._engine.report_ends([self.id] if controlled.done else [], controlled.executions, status)
        return controlled.done

    def _pushed(self, controlled: ControlResult) -> bool:
        self._engine.push(controlled.jobs, changed=controlled.executions)
        return controlled.done


class Operations:
    """The control transitions of an engine: of all executions that match a filter, and by `of` of one."""

    def __init__(self, engine: EngineParts) -> None:
        self._engine = engine

    def of(self, execution_id: str) -> ExecutionControl:
        """Return the control of one execution."""
        return ExecutionControl(execution_id, self._engine)

    # ---- the oldest `limit` that the filter finds, parents first ----

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
        """Retry each that has failed; acknowledged ones only if the filter selects them."""
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
        """Delete executions that ended longer ago than `older_than`, and return their number."""
        self._engine.open()
        wanted = list(statuses)
        for index, status in enumerate(wanted):
            if not isinstance(status, str) or status not in ENDED:
                raise InvalidArgument(f"statuses[{index}]", status, f"one of {', '.join(ENDED)}")
        chosen = list(map(ExecutionStatus, wanted))
        ended_before = datetime.now(UTC) - timedelta(seconds=seconds_of(older_than) or 0.0)
        purged = 0
        while limit is None or purged < limit:
            batch = _PURGE_BATCH if limit is None else min(_PURGE_BATCH, limit - purged)
            answer = self._engine.store.purge_executions(ended_before=ended_before, statuses=chosen, limit=batch)
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
        self._engine.open()
        return control_each(
            self._engine.store, find(self._engine.store, wanted, statuses, limit), partial(self.control, action)
        )

    def control(self, action: ControlAction, execution_ids: Sequence[str]) -> list[bool | UserError]:
        """Apply one transition to many executions; return for each whether it was changed, or its refusal."""
        self._engine.open()
        results = self._engine.store.control_executions(action, execution_ids, epoch=self._engine.epoch.recent())
        done = {
            execution_id: result
            for execution_id, result in zip(execution_ids, results, strict=True)
            if isinstance(result, ControlResult) and result.done
        }
        changed = [execution_id for result in done.values() for execution_id in result.executions]
        if action is ControlAction.CANCEL:
            self._engine.report_ends(list(done), changed, ExecutionStatus.CANCELLED)
        else:
            self._engine.push([job for result in done.values() for job in result.jobs], changed=changed)
        return [result if isinstance(result, UserError) else result.done for result in results]


def _dead(wanted: ExecutionFilter) -> ExecutionFilter:
    return wanted if wanted.acknowledged is not None else wanted.model_copy(update={"acknowledged": False})
