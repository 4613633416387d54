"""The states of executions and node runs, and the one table of legal transitions."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from spanloom.engine.argument_checks import Rule
from spanloom.engine.errors import InvalidTransition

__all__ = [
    "EXECUTION_TRANSITIONS",
    "NODE_TRANSITIONS",
    "EndedStatus",
    "ExecutionStatus",
    "NodeStatus",
    "WaitKind",
    "check_execution_transition",
    "check_node_transition",
]


class ExecutionStatus(StrEnum):
    """The status of one run of a workflow version."""

    PENDING = "pending"  # its delayed start is not due yet
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether this status is terminal (a failed execution may still be retried)."""
        return self in _EXECUTION_ENDED


#: The status of an execution that has ended.
EndedStatus = Annotated[
    ExecutionStatus,
    Rule(
        lambda value: isinstance(value, ExecutionStatus) and value.ended,
        "an ExecutionStatus that executions end with (completed, failed, cancelled)",
    ),
]


class NodeStatus(StrEnum):
    """The status of one node inside one execution."""

    PENDING = "pending"  # some inputs are still open
    QUEUED = "queued"  # ready; its job is, or will be pushed again, on Redis
    HELD = "held"  # ready, but the execution is paused or failed
    RUNNING = "running"  # claimed by a worker
    WAITING = "waiting"  # for the event of its WaitKind
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the node run is over."""
        return self in _NODE_ENDED


class WaitKind(StrEnum):
    """The kind of event that a waiting node run waits for."""

    RETRY = "retry"
    TIMER = "timer"
    CHILD = "child"  # the end of the execution that wait_key names
    ITEMS = "items"  # the ends of the items it was mapped over


_EXECUTION_ENDED = frozenset({ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED})
_NODE_ENDED = frozenset({NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.SKIPPED, NodeStatus.CANCELLED})

EXECUTION_TRANSITIONS: dict[ExecutionStatus, frozenset[ExecutionStatus]] = {
    ExecutionStatus.PENDING: frozenset({ExecutionStatus.RUNNING, ExecutionStatus.CANCELLED}),
    ExecutionStatus.RUNNING: frozenset(
        {ExecutionStatus.PAUSED, ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED}
    ),
    ExecutionStatus.PAUSED: frozenset(
        {ExecutionStatus.RUNNING, ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED}
    ),
    ExecutionStatus.FAILED: frozenset({ExecutionStatus.RUNNING}),
    ExecutionStatus.COMPLETED: frozenset(),
    ExecutionStatus.CANCELLED: frozenset(),
}

_READY = frozenset({NodeStatus.QUEUED, NodeStatus.HELD})
_BY_HAND = frozenset({NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.SKIPPED})  # an operator ends it
_AGAIN = frozenset({NodeStatus.PENDING})  # reset by the retry of a handled failure before it
NODE_TRANSITIONS: dict[NodeStatus, frozenset[NodeStatus]] = {
    # Work first claims a ready successor in the step that makes it ready, so pending leads to running as well.
    NodeStatus.PENDING: _READY | {NodeStatus.RUNNING, NodeStatus.SKIPPED, NodeStatus.CANCELLED},
    NodeStatus.QUEUED: _AGAIN | _BY_HAND | {NodeStatus.RUNNING, NodeStatus.HELD, NodeStatus.CANCELLED},
    NodeStatus.HELD: _AGAIN | _BY_HAND | {NodeStatus.QUEUED, NodeStatus.WAITING, NodeStatus.CANCELLED},
    NodeStatus.RUNNING: _READY
    | _AGAIN
    | {NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.SKIPPED, NodeStatus.WAITING, NodeStatus.CANCELLED},
    # Mapped items end in the step that makes their node ready, so waiting leads to running as well.
    NodeStatus.WAITING: _READY | _AGAIN | _BY_HAND | {NodeStatus.RUNNING, NodeStatus.CANCELLED},
    NodeStatus.FAILED: _AGAIN | {NodeStatus.QUEUED, NodeStatus.WAITING},
    NodeStatus.COMPLETED: _AGAIN,
    NodeStatus.SKIPPED: _AGAIN,
    NodeStatus.CANCELLED: frozenset(),
}


def check_execution_transition(execution_id: str, current: ExecutionStatus, wanted: ExecutionStatus) -> None:
    """Raise InvalidTransition unless the table lets the execution go from `current` to `wanted`."""
    if wanted not in EXECUTION_TRANSITIONS[current]:
        raise InvalidTransition(f"execution {execution_id}", current, wanted)


def check_node_transition(node: str, current: NodeStatus, wanted: NodeStatus) -> None:
    """Raise InvalidTransition unless the table lets the node run go from `current` to `wanted`."""
    if wanted not in NODE_TRANSITIONS[current]:
        raise InvalidTransition(f"node run {node}", current, wanted)
