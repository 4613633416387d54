"""The rows that transitions read and write, and the graph of a version that they follow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from spanloom.engine.store.requests import END, NodeKey, StartRequest
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.stores.schema import FENCES_A_REVISION

__all__ = [
    "Ended",
    "Event",
    "ExecutionRow",
    "Graph",
    "GraphEdge",
    "InputRow",
    "MemberRow",
    "NewExecution",
    "ResultRow",
    "RunFilter",
    "RunRow",
    "StoredEvent",
    "Time",
    "UsedKey",
    "VersionRow",
    "as_data",
    "claim_reference",
    "ended_by",
]

_COMPLETED, _FAILED = NodeStatus.COMPLETED.value, NodeStatus.FAILED.value  # plain text, compared for every edge


class Time(Protocol):
    """A time in the form in which its store keeps it, so that rows need no conversion. `Transaction` calculates."""

    def __lt__(self, other: Any, /) -> bool: ...
    def __le__(self, other: Any, /) -> bool: ...
    def __gt__(self, other: Any, /) -> bool: ...
    def __ge__(self, other: Any, /) -> bool: ...


#: When an execution ended, and its id.
Ended = tuple[Time, str]


class ExecutionRow(NamedTuple):
    """The columns of an execution that decide transitions."""

    id: str
    workflow_id: str
    version: int
    status: str
    revision: int
    priority: str
    parent_id: str | None
    parent_node_id: str | None
    parent_item: int | None
    parent_fence: int | None
    depth: int
    deadline_seconds: float | None
    created_at: Time
    ended_at: Time | None
    acknowledged_at: Time | None

    @property
    def first_fence(self) -> int:
        """The fence that a run of this execution has before its first claim."""
        return self.revision * FENCES_A_REVISION


class MemberRow(NamedTuple):
    """The columns of an execution of a family that decide whether the family may be deleted."""

    root: str
    id: str
    status: str
    ended_at: Time | None


class NewExecution(NamedTuple):
    """An execution to be inserted."""

    request: StartRequest
    version: int
    status: ExecutionStatus


class RunRow(NamedTuple):
    """One open node run: the columns of `node_runs`, in their order."""

    execution_id: str
    node_id: str
    item: int
    status: str
    node_type: str
    queue: str
    priority: str
    pending: int = 0
    taken: int = 1
    fence: int = 0
    attempt: int = 1
    recovery_attempts: int = 0
    worker_id: str | None = None
    claim_reference: str | None = None
    wait_kind: str | None = None
    wait_key: str | None = None
    items: int | None = None
    max_concurrency: int | None = None
    tolerated_failures: int | None = None
    next_item: int | None = None
    span: str | None = None
    due_at: Time | None = None
    push: int = 0
    pushed_epoch: int = 0
    pushed_at: Time | None = None
    started_at: Time | None = None

    @property
    def key(self) -> NodeKey:
        """The key of this run."""
        return NodeKey(self.execution_id, self.node_id, self.item)


class ResultRow(NamedTuple):
    """One ended node run: the columns of `node_results`, in their order."""

    execution_id: str
    node_id: str
    item: int
    node_type: str
    status: str
    data: str | None = None
    error: str | None = None
    taken: str | None = None  # a JSON list of targets; None: by each edge's kind
    arrived: bool = True
    attempt: int = 1
    recovery_attempts: int = 0
    fence: int = 0
    push: int = 0
    worker_id: str | None = None
    span: str | None = None
    span_start_ns: int | None = None
    span_end_ns: int | None = None
    span_attributes: str | None = None
    span_links: str | None = None
    started_at: Time | None = None
    ended_at: Time | None = None


class InputRow(NamedTuple):
    """The columns of a result that its node's successors take."""

    node_id: str
    status: str
    taken: str | None
    data: str | None
    span: str | None


class Event(NamedTuple):
    """One line of an execution's history, before it has a number."""

    execution_id: str
    kind: str
    node_id: str | None = None
    item: int = 0
    attempt: int | None = None
    worker_id: str | None = None
    data: str | None = None  # JSON text


class RunFilter(NamedTuple):
    """A condition on open runs: their executions, their status and their wait kind (None: any)."""

    executions: Sequence[str]
    statuses: Sequence[NodeStatus]
    wait_kind: str | None = None


class StoredEvent(NamedTuple):
    """A stored event."""

    kind: str
    worker_id: str | None
    data: str | None
    at: Time


class UsedKey(NamedTuple):
    """The execution that an idempotency key has started."""

    execution_id: str
    input_hash: str


class VersionRow(NamedTuple):
    """The version that a start resolves a workflow to. `version` is None if there is no such version."""

    active: bool
    version: int | None


class GraphEdge(NamedTuple):
    """One edge of a version."""

    source: str
    target: str
    kind: str  # success | failure | always
    target_type: str
    target_queue: str
    target_inputs: int

    def is_taken(self, status: str, named: Sequence[str] | None) -> bool:
        """Return whether a source that ended with this status takes the edge.

        `named` are the targets that the source has chosen; None: the kind of the edge decides. The edge to `$end` is
        taken unless the source was skipped. This is the only place of the rule in stores.
        """
        if status != _COMPLETED and status != _FAILED:
            return False
        if self.target == END:
            return True
        if named is not None:
            return self.target in named
        return self.kind != ("failure" if status == _COMPLETED else "success")


class Graph:
    """The edges of one version of a workflow, which never change."""

    def __init__(self, edges: Iterable[GraphEdge]) -> None:
        self._following: dict[str, list[GraphEdge]] = {}
        self._leading: dict[str, list[GraphEdge]] = {}
        for edge in sorted(edges, key=lambda edge: (edge.source, edge.target)):
            self._following.setdefault(edge.source, []).append(edge)
            self._leading.setdefault(edge.target, []).append(edge)
        self.sinks = frozenset(edge.source for edge in self.leading(END))  #: the nodes that `$end` waits for

    def following(self, source: str) -> Sequence[GraphEdge]:
        """Return the edges from a node, in the order of their targets."""
        return self._following.get(source, ())

    def leading(self, target: str) -> Sequence[GraphEdge]:
        """Return the edges to a node, in the order of their sources."""
        return self._leading.get(target, ())

    def target(self, node_id: str) -> GraphEdge | None:
        """Return any edge to a node, for the node's type, queue and number of inputs. None: no such node."""
        edges = self._leading.get(node_id)
        return None if edges is None else edges[0]

    def downstream(self, sources: Iterable[str]) -> set[str]:
        """Return every node that can be reached from these by at least one edge, without `$end`."""
        found: set[str] = set()
        pending = list(sources)
        while pending:
            for edge in self.following(pending.pop()):
                if edge.target != END and edge.target not in found:
                    found.add(edge.target)
                    pending.append(edge.target)
        return found


def claim_reference(node_id: str, item: int, fence: int) -> str:
    """Return the name of a claim within its execution, by which rows refer to the record that made them ready."""
    return f"{node_id}/{item}/{fence}"


#: Encodes the data of an event: compact, keys in their order. A repeated record is found by the end of the text.
as_data = json.JSONEncoder(separators=(",", ":")).encode


@lru_cache(maxsize=1024)
def ended_by(reference: str | None) -> str:
    """Return the data of the event of an execution's end, which names the claim that was recorded last."""
    return as_data({"by": reference})
