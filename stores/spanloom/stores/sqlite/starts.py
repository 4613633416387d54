"""Starting executions on SQLite: the row, its `$end`, and its entry nodes; or a `$start` that waits for its time."""

from __future__ import annotations

import json

from spanloom.engine.errors import IdempotencyConflict, UnknownWorkflow
from spanloom.engine.store.requests import START, NodeJob, NodeKey, Replay, StartAnswer, StartRequest, StartResult
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.schema import from_micros
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.sqlite.control import FamilyMember
from spanloom.stores.sqlite.replays import refusal, take_over
from spanloom.stores.sqlite.transaction import SUSPECT_MICROS, Transaction

__all__ = ["begin", "create"]

_FIND_KEY = """
SELECT k.input_hash, k.execution_id, e.version
FROM idempotency_keys k JOIN executions e ON e.id = k.execution_id
WHERE k.workflow_id = ? AND k.key = ? AND (k.expires_at IS NULL OR k.expires_at > ?)
"""

_KEEP_KEY = """
INSERT OR REPLACE INTO idempotency_keys (workflow_id, key, input_hash, execution_id, expires_at) VALUES (?, ?, ?, ?, ?)
"""

_FIND_VERSION = """
SELECT w.active, v.version
FROM workflows w
LEFT JOIN workflow_versions v ON v.workflow_id = w.id AND v.version = coalesce(?, w.latest_version)
WHERE w.id = ?
"""

_ADD_EXECUTION = """
INSERT INTO executions (id, workflow_id, version, status, revision, priority, input, metadata, parent_id,
                        parent_node_id, parent_item, parent_fence, depth, trace_parent, trace_state, caller_span_id,
                        deadline_seconds, replay_of, created_at)
VALUES (?, ?, ?, 'pending', 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING
"""

_ADD_METADATA = "INSERT INTO execution_metadata (key, value, execution_id) VALUES (?, ?, ?)"

_ADD_START = """
INSERT INTO node_runs (execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
                       recovery_attempts, wait_kind, due_at, push, pushed_epoch)
VALUES (?, '$start', 0, 'waiting', '$start', '', ?, 0, 0, 0, 1, 0, 'timer', ?, 0, 0)
"""

_BEGIN = """
UPDATE executions SET status = 'running', started_at = ? WHERE id = ? AND status = 'pending'
RETURNING workflow_id, version, priority, deadline_seconds
"""

_ADD_END = """
INSERT INTO node_runs (execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
                       recovery_attempts, due_at, push, pushed_epoch)
SELECT ?, '$end', 0, 'pending', '$end', '', ?, sinks, 0, 0, 1, 0, ?, 0, 0
FROM workflow_versions WHERE workflow_id = ? AND version = ?
"""

_ADD_ENTRY = """
INSERT INTO node_runs (execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
                       recovery_attempts, due_at, push, pushed_epoch, pushed_at)
VALUES (?, ?, 0, 'queued', ?, ?, ?, 0, 1, 0, 1, 0, ?, 1, ?, ?)
"""


def create(tx: Transaction, request: StartRequest) -> StartAnswer:
    """Create one execution, or answer the one that its idempotency key, or its id, has started before."""
    workflow_id, key = request.workflow_id, request.idempotency_key
    if key is not None:
        used = tx.execute(_FIND_KEY, (workflow_id, key, tx.now)).fetchone()
        if used is not None:
            input_hash, execution_id, version = used
            if input_hash != request.input_hash:
                return IdempotencyConflict(workflow_id, key, execution_id)
            return StartResult(execution_id, version, created=False)
    found = tx.execute(_FIND_VERSION, (request.version, workflow_id)).fetchone()
    if found is None:
        return UnknownWorkflow(workflow_id)
    active, version = found
    if version is None:
        return UnknownWorkflow(workflow_id, request.version)
    if not active:
        return UnknownWorkflow(workflow_id, inactive=True)
    if request.replay is not None and (refused := refusal(tx, request.replay)) is not None:
        return refused
    if not _add_execution(tx, request, version):
        return StartResult(request.execution_id, version, created=False)
    if key is not None:
        ttl = request.key_ttl_seconds
        expires_at = None if ttl is None else tx.now + round(ttl * 1e6)
        tx.execute(_KEEP_KEY, (workflow_id, key, request.input_hash, request.execution_id, expires_at))
    replay, created_at = request.replay, from_micros(tx.now)
    told = {} if replay is None else {"replay_of": canonical_id(replay.source), "carried": len(replay.carried)}
    tx.event(request.execution_id, "execution.created", data={"version": version, **told})
    if request.delay_seconds > 0:
        due_at = tx.now + round(request.delay_seconds * 1e6)
        tx.execute(_ADD_START, (request.execution_id, request.priority.value, due_at))
        return StartResult(request.execution_id, version, True, created_at=created_at)
    jobs = begin(tx, request.execution_id, replay)
    return StartResult(request.execution_id, version, True, jobs, created_at)


def begin(tx: Transaction, execution_id: str, replay: Replay | None = None) -> list[NodeJob]:
    """Set a pending execution running: its deadline counts from now, its entry nodes are queued.

    One that replays has some nodes' results already, and what these lead to is queued instead.
    """
    row = tx.execute(_BEGIN, (tx.now, execution_id)).fetchone()
    assert row is not None, f"execution {execution_id} is not pending"
    workflow_id, version, priority, deadline_seconds = row
    deadline = None if deadline_seconds is None else tx.now + round(deadline_seconds * 1e6)
    tx.execute(_ADD_END, (execution_id, priority, deadline, workflow_id, version))
    tx.event(execution_id, "execution.started")
    entries = ready = tx.graph(workflow_id, version)[START]
    if replay is not None and replay.carried:
        member = FamilyMember(execution_id, ExecutionStatus.RUNNING, 0, priority, None)
        settled, queued = take_over(tx, replay, member, (workflow_id, version), deadline)
        entries = [edge for edge in entries if edge.target not in settled]
        edges = {edge.target: edge for some in tx.graph(workflow_id, version).values() for edge in some}
        ready = sorted([*entries, *(edges[node_id] for node_id in queued)])
    pushed = (tx.now + SUSPECT_MICROS, tx.epoch, tx.now)
    tx.executemany(
        _ADD_ENTRY,
        [(execution_id, edge.target, edge.target_type, edge.target_queue, priority, *pushed) for edge in entries],
    )
    pushed_at = from_micros(tx.now)
    jobs: list[NodeJob] = []
    for edge in ready:
        tx.event(execution_id, "node.queued", NodeKey(execution_id, edge.target), attempt=1, data={"push": 1})
        jobs.append(NodeJob(execution_id, edge.target, 0, edge.target_type, edge.target_queue, priority, 1, pushed_at))
    return jobs


def _add_execution(tx: Transaction, request: StartRequest, version: int) -> bool:
    parent = request.parent
    added = tx.execute(
        _ADD_EXECUTION,
        (
            request.execution_id, request.workflow_id, version, request.priority.value, request.input,
            json.dumps(dict(request.metadata)),
            *((None, None, None) if parent is None else parent),
            request.parent_fence, request.depth, request.trace_parent, request.trace_state, request.caller_span_id,
            request.deadline_seconds, None if request.replay is None else canonical_id(request.replay.source), tx.now,
        ),
    )  # fmt: skip
    if added.rowcount == 0:
        return False
    if request.metadata:
        tx.executemany(_ADD_METADATA, [(key, value, request.execution_id) for key, value in request.metadata.items()])
    return True
