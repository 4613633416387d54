"""Records that do not end a run: released, to be retried, or waiting; and the rule of each kind of wait."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from spanloom.engine.errors import StoreRefused, UnknownWorkflow
from spanloom.engine.store.requests import Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.transitions.arrivals import queued
from spanloom.stores.transitions.rows import Event, ExecutionRow, RunRow, as_data
from spanloom.stores.transitions.transaction import Transaction
from spanloom.stores.transitions.waits.children import start_child
from spanloom.stores.transitions.waits.mapped import fan_out

__all__ = ["PARKED", "WAITS", "WaitRule", "check_wait", "wait"]


class WaitRule(NamedTuple):
    """The rule by which runs of one kind of wait are recorded, woken and retried."""

    asks: Callable[[RecordRequest], bool]  # whether a record of WAITING asks for something that can end the wait
    timed: bool  # whether it is due after a time, and then woken by the sweep
    starts: bool  # whether the wait itself starts a child or items, for which the execution must be running
    kept: bool  # whether the run keeps, until its next record, the kind of wait that woke it
    on_retry: Literal["anew", "child", "items"]  # how a retry starts a failed run that had waited like this


def _asks_for_items(record: RecordRequest) -> bool:
    return record.fan_out is not None and bool(record.fan_out.items) and not record.item


WAITS: Mapping[WaitKind, WaitRule] = {
    WaitKind.RETRY: WaitRule(lambda record: False, timed=True, starts=False, kept=False, on_retry="anew"),
    WaitKind.TIMER: WaitRule(lambda record: True, timed=True, starts=False, kept=True, on_retry="anew"),
    WaitKind.CHILD: WaitRule(
        lambda record: record.child is not None, timed=False, starts=True, kept=True, on_retry="child"
    ),
    WaitKind.ITEMS: WaitRule(_asks_for_items, timed=False, starts=True, kept=True, on_retry="items"),
}

PARKED = {Outcome.RETRY: "node.retrying", Outcome.WAITING: "node.waiting", Outcome.RELEASED: "node.released"}


def check_wait(record: RecordRequest) -> None:
    """Raise StoreRefused for a wait that nothing could end."""
    kind = record.wait_kind or WaitKind.TIMER
    if record.outcome is Outcome.WAITING and not WAITS[kind].asks(record):
        raise StoreRefused(
            f"node {record.node_id!r}, item {record.item}, of execution {record.execution_id} can't wait for "
            f"{kind.value}: a record of WAITING for a child needs `child`, one for items needs a `fan_out` that is not "
            "empty and comes from item 0, and a retry is an outcome of its own"
        )


def wait(
    tx: Transaction, execution: ExecutionRow, run: RunRow, request: RecordRequest, reference: str
) -> tuple[RecordResult, RunRow]:
    """End a claim without ending its run, and return the answer and the new row of the run."""
    kept = run._replace(worker_id=None, claim_reference=None, span=request.span or run.span)
    if request.outcome is Outcome.RELEASED:
        return _release(tx, execution, run, kept)
    kind = WaitKind.RETRY if request.outcome is Outcome.RETRY else request.wait_kind or WaitKind.TIMER
    if WAITS[kind].starts:
        return _start(tx, execution, run, kept, request, kind, reference)
    return _wait_for_time(tx, execution, run, kept, request, kind)


def _release(tx: Transaction, execution: ExecutionRow, run: RunRow, kept: RunRow) -> tuple[RecordResult, RunRow]:
    _note(tx, run, PARKED[Outcome.RELEASED], {"fence": run.fence})
    if execution.status != ExecutionStatus.RUNNING:
        held = _hold(tx, run, kept, {"because": "released"})
        return RecordResult(True), held
    new = queued(tx, kept)
    tx.update_runs([(run, new)])
    _note_ready(tx, new, {"push": new.push, "because": "released"})
    return RecordResult(True, (new.job,)), new


def _wait_for_time(
    tx: Transaction, execution: ExecutionRow, run: RunRow, kept: RunRow, request: RecordRequest, kind: WaitKind
) -> tuple[RecordResult, RunRow]:
    """Wait for a retry or a timer. A retry in a failed execution is held until the execution is retried."""
    due_at = request.due_at if kind is WaitKind.TIMER and request.due_at is not None else None
    due_at = tx.now + timedelta(seconds=request.delay_seconds) if due_at is None else due_at
    if kind is WaitKind.TIMER:
        details: dict[str, Any] = {"wait_kind": kind.value, "wait_key": request.wait_key}
    else:
        details = {} if request.error is None else {"error": json.loads(request.error)}
        details["delay_seconds"] = request.delay_seconds
    _note(tx, run, PARKED[request.outcome], {**details, "fence": run.fence})
    attempt = run.attempt + (request.outcome is Outcome.RETRY and request.spends_attempt)
    open_now = (ExecutionStatus.RUNNING, ExecutionStatus.PAUSED)
    if kind is WaitKind.RETRY and execution.status not in open_now:
        new = kept._replace(attempt=attempt, wait_kind=None, wait_key=None)
        return RecordResult(True), _hold(tx, run, new, None)
    new = kept._replace(
        status=NodeStatus.WAITING.value, attempt=attempt, wait_kind=kind.value,
        wait_key=request.wait_key if WAITS[kind].kept else None, due_at=due_at,
    )  # fmt: skip
    tx.update_runs([(run, new)])
    return RecordResult(True), new


def _start(
    tx: Transaction,
    execution: ExecutionRow,
    run: RunRow,
    kept: RunRow,
    request: RecordRequest,
    kind: WaitKind,
    reference: str,
) -> tuple[RecordResult, RunRow]:
    """Start a child or items and wait for them. Unless the execution is running, the run is held instead."""
    child, wanted = request.child, request.fan_out
    wait_key = request.wait_key if child is None or kind is not WaitKind.CHILD else child.execution_id
    details: dict[str, Any] = {"wait_kind": kind.value, "wait_key": wait_key}
    if execution.status != ExecutionStatus.RUNNING:  # held with its wait kind, to be claimed and to request it again
        _note(tx, run, PARKED[Outcome.WAITING], {**details, "fence": run.fence})
        return RecordResult(True), _hold(tx, run, kept, None)
    waiting = kept._replace(status=NodeStatus.WAITING.value, wait_kind=kind.value, wait_key=wait_key, due_at=None)
    if kind is WaitKind.CHILD:
        assert child is not None
        started = start_child(tx, execution, run, child)
        if isinstance(started, UnknownWorkflow):
            return RecordResult(True, refused=started), run
        _note(tx, run, PARKED[Outcome.WAITING], {**details, "fence": run.fence})
        tx.update_runs([(run, waiting)])
        return RecordResult(True, tuple(started.jobs)), waiting
    assert wanted is not None
    bounds = {
        "items": len(wanted.items), "max_concurrency": wanted.max_concurrency,
        "tolerated_failures": wanted.tolerated_failures,
    }  # fmt: skip
    _note(tx, run, PARKED[Outcome.WAITING], {**details, **bounds, "fence": run.fence})
    goes_on = run.node_id in request.successors and tx.is_live(request.worker_id)
    new, follows = fan_out(tx, execution, waiting, wanted, reference, request.worker_id if goes_on else None)
    tx.update_runs([(run, new)])
    return RecordResult(True, tuple(follows.jobs), follows.claim), new


def _hold(tx: Transaction, run: RunRow, kept: RunRow, details: Mapping[str, Any] | None) -> RunRow:
    new = kept._replace(status=NodeStatus.HELD.value, due_at=None)
    tx.update_runs([(run, new)])
    _note_ready(tx, new, details)
    return new


def _note(tx: Transaction, run: RunRow, kind: str, details: Mapping[str, Any]) -> None:
    # The fence comes last: a record that is sent again is found by the end of the text.
    tx.add_events([Event(run.execution_id, kind, run.node_id, run.item, run.attempt, run.worker_id, as_data(details))])


def _note_ready(tx: Transaction, run: RunRow, details: Mapping[str, Any] | None) -> None:
    data = None if details is None else as_data(details)
    tx.add_events([Event(run.execution_id, f"node.{run.status}", run.node_id, run.item, run.attempt, None, data)])
