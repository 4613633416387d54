"""Mapped nodes on SQLite: the items that a node's run waits for, so many at once, and what follows from their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spanloom.engine.store.requests import FanOut, NodeClaim, NodeJob, NodeKey, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, check_node_transition
from spanloom.stores.schema import from_micros
from spanloom.stores.sqlite.ends import Ending, keep_result
from spanloom.stores.sqlite.transaction import SUSPECT_MICROS, Run, Transaction

__all__ = ["Item", "end_item", "fan_out", "next_items", "open_items"]

# A node that is mapped anew, after its items were there already, forgets them; no fence of theirs may be given again.
_FORGET_RESULTS = "DELETE FROM node_results WHERE execution_id = ? AND node_id = ? AND item > 0 RETURNING fence"
_FORGET_ITEMS = "DELETE FROM node_items WHERE execution_id = ? AND node_id = ?"

_ADD_ITEM = "INSERT INTO node_items (execution_id, node_id, item, data) VALUES (?, ?, ?, ?)"

_WAIT_FOR_ITEMS = """
UPDATE node_runs SET status = 'waiting', worker_id = NULL, claim_reference = NULL, wait_kind = 'items', wait_key = ?,
       items = ?, max_concurrency = ?, tolerated_failures = ?, pending = ?, taken = ?, next_item = ?, due_at = NULL
WHERE execution_id = ? AND node_id = ? AND item = 0 AND status = 'running'
"""

_ITEM_ENDED = """
UPDATE node_runs SET pending = pending - 1, taken = taken - ?
WHERE execution_id = ? AND node_id = ? AND item = 0 AND status = 'waiting' AND wait_kind = 'items'
RETURNING pending, taken, next_item
"""

# After a retry there may be holes: items that have ended well before it, or are open still.
_NEXT_ITEMS = """
SELECT item FROM node_items AS i
WHERE execution_id = ? AND node_id = ? AND item >= ?
  AND NOT EXISTS (SELECT 1 FROM node_runs r
                  WHERE r.execution_id = i.execution_id AND r.node_id = i.node_id AND r.item = i.item)
  AND NOT EXISTS (SELECT 1 FROM node_results r
                  WHERE r.execution_id = i.execution_id AND r.node_id = i.node_id AND r.item = i.item)
ORDER BY item LIMIT ?
"""

_ITEM_STARTED = """
UPDATE node_runs SET pending = pending + 1, next_item = ? WHERE execution_id = ? AND node_id = ? AND item = 0
"""

_ADD_RUN = """
INSERT INTO node_runs (execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
                       recovery_attempts, worker_id, claim_reference, span, due_at, push, pushed_epoch, pushed_at,
                       started_at)
VALUES (?, ?, ?, ?, ?, ?, ?, 0, 1, ?, 1, 0, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_CLAIM_NODE = """
UPDATE node_runs SET status = 'running', fence = ?, worker_id = ?, claim_reference = ?, due_at = NULL, started_at = ?
WHERE execution_id = ? AND node_id = ? AND item = 0 AND status = 'waiting'
"""


class Item(NamedTuple):
    """One item to start: its number, and the last push, fence and span of an earlier run of it."""

    number: int
    push: int = 0
    fence: int = 0
    span: str | None = None


def fan_out(tx: Transaction, run: Run, wait_key: str | None, asked: FanOut, *, claims: bool) -> RecordResult:
    """Make a running node's run wait for its items, and start the first of them."""
    execution_id, node_id = run.execution_id, run.node_id
    check_node_transition(node_id, NodeStatus.RUNNING, NodeStatus.WAITING)
    earlier = tx.execute(_FORGET_RESULTS, (execution_id, node_id)).fetchall()
    fence = max([run.first_fence, *(fence for (fence,) in earlier)])
    tx.execute(_FORGET_ITEMS, (execution_id, node_id))
    tx.executemany(
        _ADD_ITEM, [(execution_id, node_id, number, data) for number, data in enumerate(asked.items, start=1)]
    )
    count = len(asked.items)
    first = min(asked.max_concurrency, count)
    tx.execute(
        _WAIT_FOR_ITEMS,
        (
            wait_key,
            count,
            asked.max_concurrency,
            asked.tolerated_failures,
            first,
            asked.tolerated_failures,
            first + 1,
            execution_id,
            node_id,
        ),
    )
    numbers = range(1, first + 1)
    following = None
    if claims:
        following = _claim_item(tx, run, Item(numbers[0], fence=fence))
        numbers = numbers[1:]
    return RecordResult(
        True, open_items(tx, run, [Item(number, fence=fence) for number in numbers], by=run.by), following
    )


def end_item(tx: Transaction, run: Run, ending: Ending, *, claims: bool) -> RecordResult:
    """End one item's run; the next one takes its place, and the last one wakes the node's run."""
    keep_result(tx, run, ending, arrived=True)
    failed = ending.status is NodeStatus.FAILED
    row = tx.execute(_ITEM_ENDED, (failed, run.execution_id, run.node_id)).fetchone()
    assert row is not None, f"node {run.node_id!r} of execution {run.execution_id} does not wait for its items"
    still_open, may_fail, next_item = row
    claims = claims and run.execution_status == ExecutionStatus.RUNNING and run.node_id in ending.successors
    if may_fail >= 0:
        for number in next_items(tx, run, next_item, 1):
            tx.execute(_ITEM_STARTED, (number + 1, run.execution_id, run.node_id))
            item = Item(number, fence=run.fence)
            if claims:
                return RecordResult(True, (), _claim_item(tx, run, item))
            return RecordResult(True, open_items(tx, run, [item], by=run.by))
    if still_open:
        return RecordResult(True)
    node = tx.load(run.execution_id, run.node_id, 0)
    assert node is not None
    if claims:
        return RecordResult(True, (), _claim_node(tx, node, run))
    job = tx.requeue(node, because="items", by=run.by)
    return RecordResult(True, () if job is None else (job,))


def next_items(tx: Transaction, run: Run | NodeKey, first: int, limit: int) -> list[int]:
    """Return the next items from `first` on that have neither ended nor begun."""
    tx.flush_results()
    return [number for (number,) in tx.execute(_NEXT_ITEMS, (run.execution_id, run.node_id, first, limit))]


def open_items(
    tx: Transaction, run: Run, items: Sequence[Item], *, by: str | None = None, because: str | None = None
) -> list[NodeJob]:
    """Queue items of a node, of which `run` is the run or another item; hold them unless the execution is running."""
    goes_on = run.execution_status == ExecutionStatus.RUNNING
    status = NodeStatus.QUEUED if goes_on else NodeStatus.HELD
    record_reference = by if goes_on else None
    at = (tx.now + SUSPECT_MICROS, tx.now) if goes_on else (None, None)
    tx.executemany(
        _ADD_RUN,
        [
            (run.execution_id, run.node_id, item.number, status.value, run.node_type, run.queue, run.priority,
             max(item.fence, run.first_fence), None, record_reference, item.span, at[0], item.push + goes_on,
             tx.epoch, at[1],
             None)
            for item in items
        ],
    )  # fmt: skip
    jobs: list[NodeJob] = []
    pushed_at = from_micros(tx.now)
    told = {} if because is None else {"because": because}
    for item in items:
        key = NodeKey(run.execution_id, run.node_id, item.number)
        if not goes_on:
            tx.event(run.execution_id, "node.held", key, attempt=1)
            continue
        push = item.push + 1
        tx.event(run.execution_id, "node.queued", key, attempt=1, data={"push": push, **told})
        jobs.append(NodeJob(*key, run.node_type, run.queue, run.priority, push, pushed_at))
    return jobs


def _claim_item(tx: Transaction, run: Run, item: Item) -> NodeClaim:
    """Start an item and give it to the worker whose record makes room for it."""
    number, fence = item.number, max(item.fence, run.first_fence) + 1
    tx.execute(
        _ADD_RUN,
        (run.execution_id, run.node_id, number, NodeStatus.RUNNING.value, run.node_type, run.queue, run.priority,
         fence, run.worker_id, run.by, item.span, None, 0, tx.epoch, None, tx.now),
    )  # fmt: skip
    key = NodeKey(run.execution_id, run.node_id, number)
    tx.event(run.execution_id, "node.started", key, attempt=1, worker_id=run.worker_id)
    opened = run._replace(item=number, attempt=1, recovery_attempts=0, wait_kind=None, wait_key=None, span=item.span)
    return tx.node_claim(opened, fence)


def _claim_node(tx: Transaction, node: Run, last: Run) -> NodeClaim:
    """Give the node's run, whose items have all ended, to the worker of the last of them."""
    check_node_transition(node.node_id, NodeStatus.WAITING, NodeStatus.RUNNING)
    fence = node.fence + 1
    tx.execute(_CLAIM_NODE, (fence, last.worker_id, last.by, tx.now, node.execution_id, node.node_id))
    tx.event(node.execution_id, "node.started", node, attempt=node.attempt, worker_id=last.worker_id)
    return tx.node_claim(node, fence)
