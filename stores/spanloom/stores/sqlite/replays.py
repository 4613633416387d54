"""Starts that replay, on SQLite: the new execution begins where an earlier one had got to."""

from __future__ import annotations

from spanloom.engine.errors import InvalidTransition, SpanloomError, UnknownExecution
from spanloom.engine.store.requests import END, Replay
from spanloom.engine.store.states import NodeStatus
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.sqlite.control import FamilyMember
from spanloom.stores.sqlite.resets import count_anew
from spanloom.stores.sqlite.transaction import SUSPECT_MICROS, GraphEdge, Transaction

__all__ = ["refusal", "take_over"]

_KNOWN = "SELECT 1 FROM executions WHERE id = ?"

_FOUND = """
SELECT status, arrived FROM node_results WHERE execution_id = ?1 AND node_id = ?2 AND item = 0
UNION ALL SELECT status, 0 FROM node_runs WHERE execution_id = ?1 AND node_id = ?2 AND item = 0
"""

_CARRY_RESULTS = """
INSERT INTO node_results (execution_id, node_id, item, node_type, status, data, error, taken, arrived, attempt,
       recovery_attempts,
                          fence, push, worker_id, started_at, ended_at)
SELECT ?, node_id, item, node_type, status, data, error, taken, 1, attempt, recovery_attempts, 0, 0, worker_id,
       started_at, ended_at
FROM node_results WHERE execution_id = ? AND node_id = ?
"""

_CARRY_ITEMS = """
INSERT INTO node_items (execution_id, node_id, item, data)
SELECT ?, node_id, item, data FROM node_items WHERE execution_id = ? AND node_id = ?
"""

_SKIP = """
INSERT INTO node_results (execution_id, node_id, item, node_type, status, arrived, attempt, recovery_attempts, fence,
       push,
                          ended_at)
VALUES (?, ?, 0, ?, 'skipped', 1, 1, 0, 0, 0, ?)
"""

_QUEUE_READY = """
UPDATE node_runs SET status = 'queued', due_at = ?, push = 1, pushed_epoch = ?, pushed_at = ?
WHERE execution_id = ? AND status = 'pending' AND pending = 0 AND node_id <> '$end'
RETURNING node_id
"""


def refusal(tx: Transaction, replay: Replay) -> SpanloomError | None:
    """Say why the results can't be taken over; None if they can."""
    source = canonical_id(replay.source)
    if source is None or tx.execute(_KNOWN, (source,)).fetchone() is None:
        return UnknownExecution(replay.source)
    for node_id in replay.carried:
        status, arrived = tx.execute(_FOUND, (source, node_id)).fetchone() or (NodeStatus.PENDING, 0)
        if not arrived:
            return InvalidTransition(f"node run {node_id}", status, NodeStatus.COMPLETED)
    return None


def take_over(
    tx: Transaction, replay: Replay, member: FamilyMember, version: tuple[str, int], deadline: int | None
) -> tuple[set[str], set[str]]:
    """Copy the results into an execution that has but its `$end`, and count what arrives from them.

    Returns the nodes that need not run, and those that are ready by that, which are queued.
    """
    graph = tx.graph(*version)
    targets: dict[str, GraphEdge] = {edge.target: edge for edges in graph.values() for edge in edges}
    source = canonical_id(replay.source)
    carried = [(member.id, source, node_id) for node_id in replay.carried]
    tx.executemany(_CARRY_RESULTS, carried)
    tx.executemany(_CARRY_ITEMS, carried)
    skipped = [(member.id, node_id, targets[node_id].target_type, tx.now) for node_id in replay.skipped]
    tx.executemany(_SKIP, skipped)
    settled = {*replay.carried, *replay.skipped}
    count_anew(tx, member, version, targets.keys() - settled - {END}, deadline)
    queued = (tx.now + SUSPECT_MICROS, tx.epoch, tx.now, member.id)
    return settled, {node_id for (node_id,) in tx.execute(_QUEUE_READY, queued).fetchall()}
