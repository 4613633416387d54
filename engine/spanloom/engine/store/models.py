"""The read models of the store port: frozen, with payloads decoded and times in UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from spanloom.engine.arguments import check_value
from spanloom.engine.errors import ConfigurationError
from spanloom.engine.store.requests import Priority
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.engine.wording import problem_sentences
from spanloom.engine.workflow.definitions import Workflow


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # built at first use


class Execution(_Read):
    """One run of one version of a workflow."""

    id: str
    workflow_id: str
    version: int
    status: ExecutionStatus
    revision: int  # raised by control transitions only
    priority: Priority
    input: Any
    input_size: int | None = None  # bytes as JSON
    output: Any = None  # the only sink's data, or {node_id: data} of several; None until completed
    output_size: int | None = None  # bytes as JSON of the sinks' data; None where it was not read
    error: dict[str, Any] | None = None  # {node_id, type, message, …} of the node that failed it
    metadata: dict[str, str] = {}
    parent_execution_id: str | None = None
    parent_node_id: str | None = None
    parent_item: int | None = None
    depth: int = 0
    deadline_seconds: float | None = None  # from its start, or its latest retry
    replay_of: str | None = None  # the execution that it replays
    trace_parent: str | None = None  # W3C; its span id is the execution's own span's
    trace_state: str | None = None
    caller_span_id: str | None = None  # the parent of its own span
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    acknowledged_at: datetime | None = None  # of a failed one: when an operator dealt with it

    @property
    def output_left_out(self) -> bool:
        """Whether it has an output that was not read, as it is over the reader's limit."""
        return self.output is None and self.output_size is not None and self.output_size > len("null")


class NodeRun(_Read):
    """One node of one execution, open or ended."""

    execution_id: str
    node_id: str
    item: int = 0
    node_type: str
    status: NodeStatus
    attempt: int = 1
    recovery_attempts: int = 0
    data: Any = None
    data_size: int | None = None  # bytes as JSON; None: it has no data
    error: dict[str, Any] | None = None
    taken: tuple[str, ...] | None = None
    worker_id: str | None = None
    span: str | None = None  # of its latest recorded attempt: the span's id, and ":" and its start while it goes on
    wait_kind: WaitKind | None = None
    wait_key: str | None = None
    due_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


class Attempt(_Read):
    """One claim of a node run, with its end.

    `ended_as`: completed, failed, skipped, retrying, waiting, released, lost, reset or cancelled; None while it runs.
    `error` is {type, message, traceback, permanent} of one that failed or is retried.
    """

    attempt: int
    worker_id: str | None
    started_at: datetime
    ended_at: datetime | None = None
    ended_as: str | None = None
    error: dict[str, Any] | None = None


class LogRecord(_Read):
    """One stored log line; `id` rises in the order of storing."""

    id: int
    execution_id: str
    node_id: str | None
    item: int = 0
    attempt: int = 1
    level: str
    message: str
    fields: dict[str, Any] = {}
    at: datetime
    trace_id: str | None = None
    span_id: str | None = None


class SpanRecord(_Read):
    """One stored span; ids are lower-case hex, times Unix nanoseconds."""

    execution_id: str
    trace_id: str
    span_id: str
    parent_span_id: str | None
    node_id: str | None
    item: int = 0
    attempt: int = 1
    name: str
    kind: str
    status: str
    start_ns: int
    end_ns: int | None
    attributes: dict[str, Any] = {}
    links: list[dict[str, str]] = []


class Event(_Read):
    """One line of an execution's history. `cursor` is opaque and grows; pass it to get_events(after=…)."""

    cursor: str
    execution_id: str
    kind: str
    node_id: str | None
    item: int = 0
    attempt: int | None = None
    worker_id: str | None = None
    data: dict[str, Any] = {}
    at: datetime


class WorkflowVersion(_Read):
    """One registered version."""

    workflow_id: str
    version: int
    name: str
    change_notes: str | None
    created_by: str | None
    created_at: datetime
    definition: Workflow


class WorkflowSummary(_Read):
    """One entry of a list of workflows."""

    id: str
    name: str
    latest_version: int
    active: bool
    created_at: datetime
    updated_at: datetime


class StoreStats(_Read):
    """Counts of a store, by status."""

    workflows: int
    executions: dict[ExecutionStatus, int]
    open_node_runs: dict[NodeStatus, int]
    workers: int
    oldest_queued_seconds: float | None


T = TypeVar("T")


class Page(_Read, Generic[T]):
    """One page of a list. `next_cursor` is the cursor of the page after it; None: this is the last.

    >>> Page[int](items=[3, 2, 1], next_cursor="1").next_cursor
    '1'
    """

    items: list[T]
    next_cursor: str | None = None


class ExecutionFilter(_Read):
    """The conditions on executions to list or count. Every field that is set must match.

    >>> failed = ExecutionFilter(workflow_id="orders", status=ExecutionStatus.FAILED, acknowledged=False)
    """

    CHECKS_FIELDS: ClassVar[bool] = True

    workflow_id: str | None = None
    status: ExecutionStatus | None = None
    parent_execution_id: str | None = None
    root: bool | None = None  # True: only those that have no parent
    acknowledged: bool | None = None  # False: without those that an operator has dealt with
    created_after: datetime | None = None  # inclusive
    created_before: datetime | None = None  # exclusive
    metadata: dict[str, str] = {}  # every pair must match exactly

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, given: Any, validate: ModelWrapValidatorHandler[ExecutionFilter]) -> ExecutionFilter:
        try:
            made = validate(given)
        except Exception as error:  # pydantic compares and shows values, whose own methods may fail
            why = "; ".join(problem_sentences(error)) if isinstance(error, ValidationError) else "a value can't be read"
            raise ConfigurationError(f"ExecutionFilter: {why}") from None
        check_value("ExecutionFilter", made, ExecutionFilter)
        return made
