"""What a retry undoes on SQLite: all that came of a failure that had been handled, and the counts that it changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from spanloom.engine.store.requests import END, NodeKey
from spanloom.engine.store.states import NodeStatus, check_node_transition
from spanloom.stores.schema import FENCES_A_REVISION
from spanloom.stores.sqlite.cancel import cancel_open
from spanloom.stores.sqlite.control import FamilyMember, descendants
from spanloom.stores.sqlite.transaction import Graph, GraphEdge, Transaction

__all__ = ["count_anew", "downstream", "reset"]

_DELETE_RUNS = "DELETE FROM node_runs WHERE execution_id = ? AND node_id = ? RETURNING item, status, attempt"
_DELETE_RESULTS = "DELETE FROM node_results WHERE execution_id = ? AND node_id = ? RETURNING item, status, attempt"
_DELETE_ITEMS = "DELETE FROM node_items WHERE execution_id = ? AND node_id = ?"

_CHILDREN = """
SELECT parent_node_id, id, status, revision, priority, parent_id FROM executions
WHERE parent_id = ? ORDER BY created_at, id
"""

_ARRIVED = """
SELECT edge.target, count(*),
       sum(CASE
             WHEN result.status = 'skipped' THEN 0
             WHEN edge.target = '$end' THEN 1
             WHEN result.taken IS NOT NULL
               THEN EXISTS (SELECT 1 FROM json_each(result.taken) WHERE value = edge.target)
             WHEN result.status = 'completed' THEN edge.kind IN ('success', 'always')
             ELSE edge.kind IN ('failure', 'always')
           END)
FROM node_results result
CROSS JOIN workflow_edges edge ON edge.source = result.node_id AND edge.workflow_id = ? AND edge.version = ?
WHERE result.execution_id = ? AND result.item = 0 AND result.arrived
GROUP BY edge.target
"""

_ADD_PENDING = """
INSERT INTO node_runs (execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
                       recovery_attempts, push, pushed_epoch)
VALUES (?, ?, 0, 'pending', ?, ?, ?, ?, ?, ?, 1, 0, 0, 0)
"""

_COUNT_END = """
UPDATE node_runs SET pending = ?, taken = ?, due_at = ? WHERE execution_id = ? AND node_id = '$end' AND item = 0
"""


def downstream(graph: Graph, sources: Iterable[str]) -> set[str]:
    """Return every node that can be reached from these, without themselves."""
    found: set[str] = set()
    todo = list(sources)
    while todo:
        for edge in graph.get(todo.pop(), ()):
            if edge.target != END and edge.target not in found:
                found.add(edge.target)
                todo.append(edge.target)
    return found


def reset(tx: Transaction, execution_id: str, nodes: Collection[str]) -> list[str]:
    """Forget all that is known of these nodes, and cancel their open children; name the executions cancelled."""
    for node_id in sorted(nodes):
        key = (execution_id, node_id)
        tx.execute(_DELETE_ITEMS, key)
        rows: list[Any] = [*tx.execute(_DELETE_RUNS, key).fetchall(), *tx.execute(_DELETE_RESULTS, key).fetchall()]
        for item, status, attempt in sorted(rows):
            if status != NodeStatus.PENDING:
                check_node_transition(node_id, NodeStatus(status), NodeStatus.PENDING)
                tx.event(execution_id, "node.reset", NodeKey(execution_id, node_id, item), attempt=attempt)
    cancelled: list[str] = []
    if nodes:
        for parent_node_id, *child in tx.execute(_CHILDREN, (execution_id,)).fetchall():
            if parent_node_id in nodes:
                member = FamilyMember._make(child)
                cancelled += cancel_open(tx, [member, *descendants(tx, member.id)])
    return cancelled


def count_anew(
    tx: Transaction, member: FamilyMember, version: tuple[str, int], nodes: Collection[str], deadline: int | None
) -> bool:
    """Count what has arrived at these nodes, and at `$end`, by the results that are left; tell whether `$end` is met.

    `member` is the execution under its new revision.
    """
    graph = tx.graph(*version)
    arrived = {
        target: (arrivals, taken) for target, arrivals, taken in tx.execute(_ARRIVED, (*version, member.id)).fetchall()
    }
    targets: dict[str, GraphEdge] = {edge.target: edge for edges in graph.values() for edge in edges}
    fence = member.revision * FENCES_A_REVISION
    tx.executemany(
        _ADD_PENDING,
        [
            (member.id, name, targets[name].target_type, targets[name].target_queue, member.priority,
             targets[name].target_inputs - arrived[name][0], arrived[name][1], fence)
            for name in sorted(nodes)
            if name in arrived
        ],
    )  # fmt: skip
    arrivals, taken = arrived.get(END, (0, 0))
    pending = targets[END].target_inputs - arrivals
    tx.execute(_COUNT_END, (pending, taken, deadline, member.id))
    return bool(pending == 0)
