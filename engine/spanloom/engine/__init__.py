"""The engine: definitions, the registry of handlers, the store port, the queue, and the engine that joins them."""

from spanloom.engine.builder import NodeRef, WorkflowBuilder
from spanloom.engine.cache import CacheOptions
from spanloom.engine.context import NodeContext
from spanloom.engine.definitions import Input, MapOver, Node, RetryPolicy, Workflow
from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import (
    ChildFailed,
    ConfigurationError,
    DepthExceeded,
    ExecutionFailed,
    ExpressionFailed,
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
    UnknownExecution,
    UnknownNodeType,
    UnknownWorkflow,
    UserError,
    WaitTimeout,
    WorkerLost,
    WorkflowInvalid,
)
from spanloom.engine.events import AsyncEventStream, EventStream
from spanloom.engine.files import dump_workflow, load_workflow, workflow_json_schema
from spanloom.engine.handle import ExecutionHandle
from spanloom.engine.records import Priority
from spanloom.engine.registry import NodeRegistry
from spanloom.engine.results import NodeResult
from spanloom.engine.settings import Settings
from spanloom.engine.states import ExecutionStatus, NodeStatus
from spanloom.engine.store import ExecutionStore
from spanloom.engine.views import Attempt, Event, Execution, ExecutionFilter, NodeRun, Page

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
    "UnknownExecution",
    "UnknownNodeType",
    "UnknownWorkflow",
    "UserError",
    "WaitTimeout",
    "WorkerLost",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowEngine",
    "WorkflowInvalid",
    "dump_workflow",
    "load_workflow",
    "workflow_json_schema",
]
