"""The engine: definitions, the registry of handlers, the store port, the queue, and the engine that joins them."""

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import (
    ChildFailed,
    ConfigurationError,
    DepthExceeded,
    ExecutionFailed,
    ExpressionFailed,
    HandlerDied,
    IdempotencyConflict,
    InvalidTransition,
    ItemsFailed,
    LeaseLost,
    NodeFailure,
    NodeTimeout,
    PayloadRejected,
    PermanentError,
    QueueUnavailable,
    RoutingFailed,
    SpanloomError,
    StaleVersion,
    StoreNotMigrated,
    StoreRefused,
    StoreUnavailable,
    Unavailability,
    UnknownExecution,
    UnknownNodeType,
    UnknownWorkflow,
    UserError,
    WaitRefused,
    WaitTimeout,
    WorkerLost,
    WorkerStalled,
    WorkflowInvalid,
)
from spanloom.engine.events.handle import ExecutionHandle
from spanloom.engine.events.stream import AsyncEventStream, EventStream
from spanloom.engine.handlers.builder import NodeRef, WorkflowBuilder
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.handlers.registry import NodeRegistry
from spanloom.engine.handlers.results import NodeResult
from spanloom.engine.settings import Settings
from spanloom.engine.store.models import Attempt, Event, Execution, ExecutionFilter, NodeRun, Page
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Priority
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.engine.workflow.cache import CacheOptions
from spanloom.engine.workflow.definitions import Input, MapOver, Node, RetryPolicy, Workflow
from spanloom.engine.workflow.files import dump_workflow, load_workflow, workflow_json_schema

__all__ = [
    "AsyncEventStream",
    "Attempt",
    "CacheOptions",
    "ChildFailed",
    "ConfigurationError",
    "DepthExceeded",
    "Event",
    "EventStream",
    "Execution",
    "ExecutionFailed",
    "ExecutionFilter",
    "ExecutionHandle",
    "ExecutionStatus",
    "ExecutionStore",
    "ExpressionFailed",
    "HandlerDied",
    "IdempotencyConflict",
    "Input",
    "InvalidTransition",
    "ItemsFailed",
    "LeaseLost",
    "MapOver",
    "Node",
    "NodeContext",
    "NodeFailure",
    "NodeRef",
    "NodeRegistry",
    "NodeResult",
    "NodeRun",
    "NodeStatus",
    "NodeTimeout",
    "Page",
    "PayloadRejected",
    "PermanentError",
    "Priority",
    "QueueUnavailable",
    "RetryPolicy",
    "RoutingFailed",
    "Settings",
    "SpanloomError",
    "StaleVersion",
    "StoreNotMigrated",
    "StoreRefused",
    "StoreUnavailable",
    "Unavailability",
    "UnknownExecution",
    "UnknownNodeType",
    "UnknownWorkflow",
    "UserError",
    "WaitRefused",
    "WaitTimeout",
    "WorkerLost",
    "WorkerStalled",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowEngine",
    "WorkflowInvalid",
    "dump_workflow",
    "load_workflow",
    "workflow_json_schema",
]
