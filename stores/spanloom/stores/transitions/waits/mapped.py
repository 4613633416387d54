"""Mapped nodes: the items that a node's run waits for, some at a time, and the consequences of their ends.

The node's own run is item 0. While it waits, `pending` counts its open items and `taken` how many more may fail. The
data of the items is stored, and under item 0 the bounds, which a retry reads.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from spanloom.engine.store.requests import FanOut, NodeClaim, NodeJob, NodeKey
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.transitions.arrivals import SUSPECT_AFTER
from spanloom.stores.transitions.claim import node_claim
from spanloom.stores.transitions.rows import Event, ExecutionRow, RunRow, as_data
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["Bounds", "Follows", "ItemEnd", "Opening", "end_items", "fan_out", "open_items", "read_bounds"]


class ItemEnd(NamedTuple):
    """The end of one item's run."""

    run: RunRow
    reference: str  # its claim
    worker_id: str
    goes_on: bool  # whether its worker would continue with this node
    status: NodeStatus


class Follows(NamedTuple):
    """The continuation of a recorded claim: jobs to push, and at most one claim for its worker."""

    reference: str
    jobs: Sequence[NodeJob] = ()
    claim: NodeClaim | None = None


class Bounds(NamedTuple):
    """The limits of a mapped node: how many items may run at the same time, and how many may fail."""

    max_concurrency: int
    tolerated_failures: int
    wait_key: str | None


class Opening(NamedTuple):
    """An item's run to open, with the worker that claims it at once and the remains of an earlier run of it."""

    item: int
    reference: str | None = None
    worker_id: str | None = None  # None: it is not claimed
    fence: int = 0
    push: int = 0
    span: str | None = None


def fan_out(
    tx: Transaction, execution: ExecutionRow, run: RunRow, wanted: FanOut, reference: str, claimed_by: str | None
) -> tuple[RunRow, Follows]:
    """Make a node's run wait for items, open the first of them, and return the node's run.

    When a node is mapped anew its earlier items are deleted, and none of their fences is used again.
    """
    forgotten = tx.delete_item_results(run.execution_id, run.node_id, failed_only=False)
    fence = max([execution.first_fence, *(result.fence for result in forgotten)])
    tx.delete_items(run.execution_id, [run.node_id])
    bounds = Bounds(wanted.max_concurrency, wanted.tolerated_failures, run.wait_key)
    items = {0: as_data(bounds._asdict()), **dict(enumerate(wanted.items, start=1))}
    tx.insert_items(run.execution_id, run.node_id, items)
    count = len(wanted.items)
    first = min(count, wanted.max_concurrency)
    new = run._replace(
        items=count, max_concurrency=wanted.max_concurrency, tolerated_failures=wanted.tolerated_failures,
        taken=wanted.tolerated_failures, pending=first, next_item=first + 1,
    )  # fmt: skip
    openings = [Opening(item, reference, claimed_by if item == 1 else None, fence) for item in range(1, first + 1)]
    opened = open_items(tx, execution, new, openings)
    return new, _follows(tx, execution, reference, opened)


def read_bounds(tx: Transaction, execution_id: str, node_ids: Collection[str]) -> dict[str, Bounds]:
    """Return the bounds of those of the nodes that have been mapped."""
    return {node_id: Bounds(**json.loads(text)) for node_id, text in tx.bounds(execution_id, node_ids).items()}


def end_items(tx: Transaction, execution: ExecutionRow, ends: Sequence[ItemEnd]) -> Iterator[Follows]:
    """Count the ends of items at their nodes' runs, summed for each, and return the continuation of each claim."""
    # An item that follows in a node that is mapped anew must not get a fence of its earlier round either.
    fence = max([execution.first_fence, *(end.run.fence for end in ends)])
    for node_id, group in groupby(sorted(ends), key=lambda end: end.run.node_id):
        those = list(group)
        key = NodeKey(execution.id, node_id)
        run = tx.lock_runs([key]).get(key)
        if run is not None and run.status == NodeStatus.WAITING and run.wait_kind == WaitKind.ITEMS:
            yield from _ended(tx, execution, run, those, fence)


def _ended(
    tx: Transaction, execution: ExecutionRow, run: RunRow, ends: Sequence[ItemEnd], fence: int
) -> Iterator[Follows]:
    failures = sum(end.status is NodeStatus.FAILED for end in ends)
    open_now, may_fail = run.pending - len(ends), run.taken - failures
    assert run.items is not None
    assert run.next_item is not None
    assert run.max_concurrency is not None
    new = run._replace(pending=open_now, taken=may_fail)
    items: list[int] = []
    if may_fail >= 0 and run.next_item <= run.items:
        items = tx.next_items(run.execution_id, run.node_id, run.next_item, run.max_concurrency - open_now)
        new = new._replace(pending=open_now + len(items), next_item=(items[-1] if items else run.items) + 1)
    if items or new.pending:
        tx.update_runs([(run, new)])
        openings = [
            Opening(item, end.reference, _claimant(tx, execution, end) if place < len(ends) else None, fence)
            for place, item in enumerate(items)
            for end in [ends[min(place, len(ends) - 1)]]
        ]
        for opening, opened in zip(openings, open_items(tx, execution, new, openings), strict=True):
            assert opening.reference is not None
            yield _follows(tx, execution, opening.reference, [opened])
        return
    yield _wake(tx, execution, run, new, ends)


def _wake(tx: Transaction, execution: ExecutionRow, run: RunRow, ended: RunRow, ends: Sequence[ItemEnd]) -> Follows:
    """Make the node's run ready, woken by its items: none is open and none is left to start."""
    claimant = next((end for end in ends if _claimant(tx, execution, end) is not None), None)
    end = claimant or ends[-1]
    if claimant is not None:
        new = ended._replace(
            status=NodeStatus.RUNNING.value, claim_reference=end.reference, fence=run.fence + 1,
            worker_id=end.worker_id, started_at=tx.later(), due_at=None,
        )  # fmt: skip
        _note(tx, new, "node.started", worker_id=end.worker_id)
    elif execution.status == ExecutionStatus.RUNNING:
        new = ended._replace(
            status=NodeStatus.QUEUED.value, claim_reference=end.reference, push=run.push + 1, pushed_epoch=tx.epoch,
            pushed_at=tx.now, due_at=tx.after(SUSPECT_AFTER),
        )  # fmt: skip
        _note(tx, new, "node.queued", data=as_data({"push": new.push, "because": "items"}))
    else:
        new = ended._replace(status=NodeStatus.HELD.value, claim_reference=None, due_at=None)
        _note(tx, new, "node.held", data=as_data({"because": "items"}))
    tx.update_runs([(run, new)])
    return _follows(tx, execution, end.reference, [new])


def open_items(
    tx: Transaction, execution: ExecutionRow, node: RunRow, openings: Sequence[Opening], *, because: str | None = None
) -> list[RunRow]:
    """Open runs of items of a node's run: claimed, queued, or held unless the execution is running."""
    goes_on = execution.status == ExecutionStatus.RUNNING
    runs: list[RunRow] = []
    for opening in openings:
        run = RunRow(
            node.execution_id, node.node_id, opening.item, NodeStatus.HELD.value, node.node_type, node.queue,
            node.priority, fence=opening.fence, push=opening.push, pushed_epoch=tx.epoch, span=opening.span,
        )  # fmt: skip
        if opening.worker_id is not None:
            run = run._replace(
                status=NodeStatus.RUNNING.value, fence=opening.fence + 1, worker_id=opening.worker_id,
                claim_reference=opening.reference, started_at=tx.now,
            )  # fmt: skip
            _note(tx, run, "node.started", worker_id=opening.worker_id)
        elif goes_on:
            run = run._replace(
                status=NodeStatus.QUEUED.value, claim_reference=opening.reference, push=opening.push + 1,
                pushed_at=tx.now, due_at=tx.after(SUSPECT_AFTER),
            )  # fmt: skip
            details = {"push": run.push} if because is None else {"push": run.push, "because": because}
            _note(tx, run, "node.queued", data=as_data(details))
        else:
            _note(tx, run, "node.held")
        runs.append(run)
    tx.insert_runs(runs)
    return runs


def _claimant(tx: Transaction, execution: ExecutionRow, end: ItemEnd) -> str | None:
    """Return the worker that continues with the node in this step: its execution is running, its lease live."""
    goes_on = end.goes_on and execution.status == ExecutionStatus.RUNNING and tx.is_live(end.worker_id)
    return end.worker_id if goes_on else None


def _follows(tx: Transaction, execution: ExecutionRow, reference: str, runs: Sequence[RunRow]) -> Follows:
    claimed = next((run for run in runs if run.status == NodeStatus.RUNNING), None)
    return Follows(
        reference,
        [tx.job(run) for run in runs if run.status == NodeStatus.QUEUED],
        None if claimed is None else node_claim(tx, execution, claimed),
    )


def _note(tx: Transaction, run: RunRow, kind: str, *, worker_id: str | None = None, data: str | None = None) -> None:
    tx.add_events([Event(run.execution_id, kind, run.node_id, run.item, run.attempt, worker_id, data)])
