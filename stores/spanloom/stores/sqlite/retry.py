"""Retrying a failed execution on SQLite: its failed runs start anew, with the children and items they waited for."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from spanloom.engine.store.requests import PARENT, ControlResult, NodeJob, NodeKey
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind, check_node_transition
from spanloom.stores.schema import FENCES_A_REVISION, from_micros
from spanloom.stores.sqlite.control import ControlTarget, FamilyMember, find, queue_held
from spanloom.stores.sqlite.executions import complete_execution
from spanloom.stores.sqlite.items import Item, next_items, open_items
from spanloom.stores.sqlite.resets import count_anew, downstream, reset
from spanloom.stores.sqlite.transaction import SUSPECT_MICROS, GraphEdge, Transaction

__all__ = ["retry"]

_RUN_AGAIN = """
UPDATE executions SET status = 'running', revision = revision + 1, error = NULL, ended_at = NULL,
       acknowledged_at = NULL
WHERE id = ? AND status = 'failed'
RETURNING workflow_id, version, deadline_seconds
"""

_DELETE_PARENT = "DELETE FROM node_runs WHERE execution_id = ? AND node_id = ? AND item = 0"

_FAILED = """
SELECT node_id, arrived, fence, push, span FROM node_results
WHERE execution_id = ? AND item = 0 AND status = 'failed' ORDER BY node_id
"""

_DELETE_RESULT = "DELETE FROM node_results WHERE execution_id = ? AND node_id = ? AND item = 0"

_LATEST_CHILD = """
SELECT id, status, revision, priority, parent_id, parent_fence FROM executions
WHERE parent_id = ? AND parent_node_id = ? AND parent_item = 0 ORDER BY created_at DESC, id DESC LIMIT 1
"""

# Held because their execution had failed as well, by its deadline or on another branch, before they could tell of it.
_HELD_FOR_FAILED_CHILDREN = """
SELECT r.node_id, r.item, r.attempt, c.id, c.status, c.revision, c.priority, c.parent_id
FROM node_runs r JOIN executions c ON c.id = r.wait_key AND c.parent_fence = r.fence
WHERE r.execution_id = ? AND r.status = 'held' AND r.wait_kind = 'child' AND c.status = 'failed'
ORDER BY r.node_id, r.item
"""

_WAIT_AGAIN = "UPDATE node_runs SET status = 'waiting' WHERE execution_id = ? AND node_id = ? AND item = ?"

_GIVE_FENCE = "UPDATE executions SET parent_fence = ? WHERE id = ?"

_BOUNDS = """
SELECT data FROM events
WHERE execution_id = ? AND node_id = ? AND item = 0 AND kind = 'node.waiting'
  AND json_extract(data, '$.max_concurrency') IS NOT NULL
  AND EXISTS (SELECT 1 FROM node_items i WHERE i.execution_id = events.execution_id AND i.node_id = events.node_id)
ORDER BY seq DESC LIMIT 1
"""

_TAKE_FAILED_ITEMS = """
DELETE FROM node_results WHERE execution_id = ? AND node_id = ? AND item > 0 AND status = 'failed'
RETURNING item, push, fence, span
"""

_ADD_RUN = """
INSERT INTO node_runs (execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
                       recovery_attempts, wait_kind, wait_key, items, max_concurrency, tolerated_failures, next_item,
                       due_at, push, pushed_epoch, pushed_at, span)
VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?, ?, 1, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def retry(tx: Transaction, target: ControlTarget) -> ControlResult:
    """Set a failed execution running again, with those children whose failure had failed it."""
    root = find(tx, target, ExecutionStatus.RUNNING, only=ExecutionStatus.FAILED)
    one = _Retry(tx)
    one.run_again(root)
    return ControlResult(True, root.revision + 1, one.changed, one.jobs)


class _Failed(NamedTuple):
    """What is left of a failed run."""

    node_id: str
    arrived: bool
    fence: int
    push: int
    span: str | None


class _Wait(NamedTuple):
    """What a run waits for, or was woken by."""

    kind: WaitKind | None = None
    key: str | None = None
    pending: int = 0
    taken: int = 1
    items: int | None = None
    max_concurrency: int | None = None
    tolerated_failures: int | None = None
    next_item: int | None = None


class _Retry:
    """One retry: the executions that it changed, and what is to be pushed for it."""

    def __init__(self, tx: Transaction) -> None:
        self.changed: list[str] = []
        self.jobs: list[NodeJob] = []
        self._turn = tx

    def run_again(self, failed: FamilyMember) -> None:
        """Set one failed execution running again."""
        tx, execution_id = self._turn, failed.id
        workflow_id, version, seconds = tx.execute(_RUN_AGAIN, (execution_id,)).fetchone()
        member = failed._replace(revision=failed.revision + 1, status=ExecutionStatus.RUNNING.value)
        self.changed.append(execution_id)
        tx.event(execution_id, "execution.retried", data={"revision": member.revision})
        tx.execute(_DELETE_PARENT, (execution_id, PARENT))
        graph = tx.graph(workflow_id, version)
        failures = [_Failed._make(row) for row in tx.execute(_FAILED, (execution_id,)).fetchall()]
        undone = downstream(graph, (one.node_id for one in failures if one.arrived))
        again = [one for one in failures if one.node_id not in undone]
        self.changed += reset(tx, execution_id, undone)
        tx.executemany(_DELETE_RESULT, [(execution_id, one.node_id) for one in again])
        deadline = None if seconds is None else tx.now + round(seconds * 1e6)
        at_end = count_anew(tx, member, (workflow_id, version), undone, deadline)
        for node_id, item, attempt, *child in tx.execute(_HELD_FOR_FAILED_CHILDREN, (execution_id,)).fetchall():
            self._wait_again(NodeKey(execution_id, node_id, item), attempt, FamilyMember._make(child))
        self.jobs += queue_held(tx, execution_id, because="retried")
        edges = {edge.target: edge for some in graph.values() for edge in some}
        for one in again:
            self._start_anew(member, one, edges[one.node_id])
        if at_end:  # it had failed for its deadline, with its last run under way
            run = tx.load(execution_id, "$end", 0)
            assert run is not None
            complete_execution(tx, run, ExecutionStatus.RUNNING)

    def _wait_again(self, key: NodeKey, attempt: int, child: FamilyMember) -> None:
        """Let a held run wait once more for its child, which had failed and is retried."""
        check_node_transition(key.node_id, NodeStatus.HELD, NodeStatus.WAITING)
        self._turn.execute(_WAIT_AGAIN, key)
        told = {"wait_kind": WaitKind.CHILD, "wait_key": child.id, "because": "retried"}
        self._turn.event(key.execution_id, "node.waiting", key, attempt=attempt, data=told)
        self.run_again(child)

    def _start_anew(self, member: FamilyMember, one: _Failed, edge: GraphEdge) -> None:
        """Make a failed run anew: queued, or waiting for what it had waited for if that runs again as well."""
        tx = self._turn
        bounds = tx.execute(_BOUNDS, (member.id, one.node_id)).fetchone()
        if bounds is not None:
            self._wait_for_items(member, one, edge, json.loads(bounds[0]))
            return
        row = tx.execute(_LATEST_CHILD, (member.id, one.node_id)).fetchone()
        # One from before an earlier reset of the run is none of its own.
        if row is None or (row[-1] or 0) // FENCES_A_REVISION < one.fence // FENCES_A_REVISION:
            self._queue(member, one, edge)
            return
        child = FamilyMember._make(row[:-1])
        status = ExecutionStatus(child.status)
        if status is ExecutionStatus.CANCELLED:
            self._queue(member, one, edge)
            return
        tx.execute(_GIVE_FENCE, (one.fence + 1, child.id))
        wait = _Wait(WaitKind.CHILD, child.id)
        if status is ExecutionStatus.COMPLETED:
            self._queue(member, one, edge, wait, fence=one.fence + 1)
            return
        self._wait(member, one, edge, wait, {}, fence=one.fence + 1)
        if status is ExecutionStatus.FAILED:
            self.run_again(child)

    def _wait_for_items(self, member: FamilyMember, one: _Failed, edge: GraphEdge, bounds: dict[str, Any]) -> None:
        tx, key = self._turn, NodeKey(member.id, one.node_id)
        earlier = {
            number: Item(number, push, fence, span)
            for number, push, fence, span in tx.execute(_TAKE_FAILED_ITEMS, key[:2]).fetchall()
        }
        items, max_concurrency, tolerated_failures = (
            bounds["items"],
            bounds["max_concurrency"],
            bounds["tolerated_failures"],
        )
        first = next_items(tx, key, 1, max_concurrency)
        next_item = first[-1] + 1 if first else items + 1
        wait = _Wait(
            WaitKind.ITEMS,
            bounds["wait_key"],
            len(first),
            tolerated_failures,
            items,
            max_concurrency,
            tolerated_failures,
            next_item,
        )
        if not first:
            self._queue(member, one, edge, wait)
            return
        fence = max(one.fence, member.revision * FENCES_A_REVISION)
        self._wait(
            member,
            one,
            edge,
            wait,
            {"items": items, "max_concurrency": max_concurrency, "tolerated_failures": tolerated_failures},
            fence=fence,
        )
        run = tx.load(*key)
        assert run is not None
        self.jobs += open_items(tx, run, [earlier.get(number, Item(number)) for number in first], because="retried")

    def _queue(
        self,
        member: FamilyMember,
        one: _Failed,
        edge: GraphEdge,
        wait: _Wait | None = None,
        *,
        fence: int | None = None,
    ) -> None:
        tx, push = self._turn, one.push + 1
        check_node_transition(one.node_id, NodeStatus.FAILED, NodeStatus.QUEUED)
        if fence is None:
            fence = max(one.fence, member.revision * FENCES_A_REVISION)
        self._add(member, one, edge, wait or _Wait(), NodeStatus.QUEUED, fence, push)
        key = NodeKey(member.id, one.node_id)
        tx.event(member.id, "node.queued", key, attempt=1, data={"push": push, "because": "retried"})
        self.jobs.append(NodeJob(*key, edge.target_type, edge.target_queue, member.priority, push, from_micros(tx.now)))

    def _wait(
        self, member: FamilyMember, one: _Failed, edge: GraphEdge, wait: _Wait, bounds: dict[str, Any], *, fence: int
    ) -> None:
        check_node_transition(one.node_id, NodeStatus.FAILED, NodeStatus.WAITING)
        self._add(member, one, edge, wait, NodeStatus.WAITING, fence, one.push)
        told = {"wait_kind": wait.kind, "wait_key": wait.key, **bounds, "because": "retried"}
        self._turn.event(member.id, "node.waiting", NodeKey(member.id, one.node_id), attempt=1, data=told)

    def _add(
        self,
        member: FamilyMember,
        one: _Failed,
        edge: GraphEdge,
        wait: _Wait,
        status: NodeStatus,
        fence: int,
        push: int,
    ) -> None:
        tx = self._turn
        queued = status is NodeStatus.QUEUED
        kind = None if wait.kind is None else wait.kind.value
        tx.execute(
            _ADD_RUN,
            (member.id, one.node_id, status.value, edge.target_type, edge.target_queue, member.priority, wait.pending,
             wait.taken, fence, kind, wait.key, wait.items, wait.max_concurrency, wait.tolerated_failures,
             wait.next_item,
             tx.now + SUSPECT_MICROS if queued else None, push, tx.epoch, tx.now if queued else None, one.span),
        )  # fmt: skip
