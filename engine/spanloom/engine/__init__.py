"""The engine: definitions, the registry of handlers, the store port, the queue, and the engine that joins them."""

from spanloom.engine.builder import NodeRef, WorkflowBuilder
from spanloom.engine.cache import CacheOptions
from spanloom.engine.context import NodeContext
from spanloom.engine.definitions import Input, Node, RetryPolicy, Workflow
from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import (
    ConfigurationError,
    ExecutionFailed,
    IdempotencyConflict,
    InvalidTransition,
    LeaseLost,
    NodeFailure,
    NodeTimeout,
    PayloadRejected,
    PermanentError,
    QueueUnavailable,
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
    WorkflowInvalid,
)
from spanloom.engine.files import dump_workflow, load_workflow, workflow_json_schema
from spanloom.engine.handle import ExecutionHandle
from spanloom.engine.records import Priority
from spanloom.engine.registry import NodeRegistry
from spanloom.engine.results import NodeResult
from spanloom.engine.settings import Settings
from spanloom.engine.states import ExecutionStatus, NodeStatus
from spanloom.engine.store import ExecutionStore
from spanloom.engine.views import Execution, ExecutionFilter, NodeRun, Page

__all__ = [
    "CacheOptions",
    "ConfigurationError",
    "Execution",
    "ExecutionFailed",
    "ExecutionFilter",
    "ExecutionHandle",
    "ExecutionStatus",
    "ExecutionStore",
    "IdempotencyConflict",
    "Input",
    "InvalidTransition",
    "LeaseLost",
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
    "Workflow",
    "WorkflowBuilder",
    "WorkflowEngine",
    "WorkflowInvalid",
    "dump_workflow",
    "load_workflow",
    "workflow_json_schema",
]
