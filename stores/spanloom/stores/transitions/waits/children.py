"""Child executions: created in the step in which a run begins to wait for them. Their end wakes that run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from spanloom.engine.errors import StoreRefused, UnknownWorkflow
from spanloom.engine.store.requests import END, PARENT, NodeJob, NodeKey, StartRequest, StartResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.transitions.arrivals import requeue
from spanloom.stores.transitions.rows import ExecutionRow, RunRow
from spanloom.stores.transitions.start import create
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["Woken", "start_child", "wake_parents"]

LEAST_DEADLINE = 0.001  # seconds: of a child whose parent has no time left


class Woken(NamedTuple):
    """The effect of ended children: those that a run waited for, the number of deleted rows, and the jobs."""

    children: Sequence[str]
    jobs: Sequence[NodeJob]
    passed: int


def start_child(
    tx: Transaction, execution: ExecutionRow, run: RunRow, wanted: StartRequest
) -> StartResult | UnknownWorkflow:
    """Create the child of a running run, under its fence, or return the reason why it can't be started."""
    child = replace(
        wanted,
        parent=run.key,
        parent_fence=run.fence,
        deadline_seconds=_deadline(tx, execution, wanted),
    )
    (answer,) = create(tx, [child])
    if isinstance(answer, UnknownWorkflow):
        return answer
    if not isinstance(answer, StartResult):
        raise answer
    if not answer.created:
        raise StoreRefused(
            f"node {run.node_id!r} of execution {run.execution_id} can't start execution {answer.execution_id} as its "
            "child: it was started before; ask for one with a new id and without an idempotency key"
        )
    return answer


def wake_parents(tx: Transaction, execution_ids: Sequence[str], *, wait: bool = True) -> Woken:
    """Wake the parents' runs that still wait for these children, which have ended.

    The rows of other executions are locked from root to leaf: the parents, their runs, then the `$parent` rows of the
    children. Without `wait`, children of which another transaction has locked a row are left out.
    """
    left = {key: key.execution_id for key in (NodeKey(child_id, PARENT) for child_id in execution_ids)}
    children = tx.executions([left[key] for key in tx.runs(list(left))])
    parents = tx.lock_executions({row.parent_id for row in children.values() if row.parent_id}, wait=wait)
    keys = {row.id: _parent_key(row) for row in children.values() if row.parent_id in parents}
    waiting = {key for key, run in tx.runs(set(keys.values())).items() if run.status == NodeStatus.WAITING}
    locked = tx.lock_runs(waiting, wait=wait)
    mine = [child_id for child_id, key in keys.items() if key not in waiting or key in locked]
    gone = tx.lock_runs([NodeKey(child_id, PARENT) for child_id in mine], wait=wait)
    tx.delete_runs(sorted(gone))
    woken: list[str] = []
    jobs: list[NodeJob] = []
    for child_id in sorted((key.execution_id for key in gone), key=lambda child_id: keys[child_id]):
        child = children[child_id]
        run = locked.get(keys[child_id])
        if run is None or not _waits_for(run, child) or not ExecutionStatus(child.status).ended:
            continue
        new = requeue(tx, run, parents[run.execution_id].status, because="child")
        locked[run.key] = new
        woken.append(child_id)
        if new.status == NodeStatus.QUEUED:
            jobs.append(tx.job(new))
    return Woken(woken, jobs, len(gone))


def _waits_for(run: RunRow, child: ExecutionRow) -> bool:
    return (
        run.status == NodeStatus.WAITING
        and run.wait_kind == WaitKind.CHILD
        and run.wait_key == child.id
        and run.fence == child.parent_fence
    )


def _parent_key(child: ExecutionRow) -> NodeKey:
    assert child.parent_id is not None
    assert child.parent_node_id is not None
    assert child.parent_item is not None
    return NodeKey(child.parent_id, child.parent_node_id, child.parent_item)


def _deadline(tx: Transaction, execution: ExecutionRow, wanted: StartRequest) -> float | None:
    """Return the child's deadline, in seconds from its start: no later than its parent's."""
    end = NodeKey(execution.id, END)
    due_at = tx.runs([end])[end].due_at
    if due_at is None:
        return wanted.deadline_seconds
    left = max(tx.elapsed(tx.now, due_at).total_seconds() - wanted.delay_seconds, LEAST_DEADLINE)
    return left if wanted.deadline_seconds is None else min(wanted.deadline_seconds, left)
