"""Records that do not end a run: released, to be retried, or waiting; and the rule of each kind of wait."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from spanloom.engine.errors import StoreRefused, UnknownWorkflow
from spanloom.engine.store.requests import Outcome, RecordRequest, RecordResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.engine.store.texts import check_exact, check_start
from spanloom.stores.transitions.arrivals import queued
from spanloom.stores.transitions.rows import Event, ExecutionRow, RunRow, Time, as_data
from spanloom.stores.transitions.transaction import Transaction
from spanloom.stores.transitions.waits.children import start_child
from spanloom.stores.transitions.waits.mapped import fan_out

__all__ = ["PARKED", "WAITS", "WaitRule", "check_wait", "wait"]


#: Ends a claim with a wait: of this execution, the run as it was and without its claim, by this record and reference.
Begin = Callable[[Transaction, ExecutionRow, RunRow, RunRow, RecordRequest, str], tuple[RecordResult, RunRow]]


class WaitRule(NamedTuple):
    """The rule by which runs of one kind of wait are recorded, woken and retried."""

    lacks: Callable[[RecordRequest], str | None]  # why nothing could end such a wait of this record, if nothing could
    begin: Begin
    timed: bool  # whether it is due after a time, and then woken by the sweep
    kept: bool  # whether the run keeps, until its next record, the kind of wait that woke it
    on_retry: Literal["anew", "child", "items"]  # how a retry starts a failed run that had waited like this


PARKED = {Outcome.RETRY: "node.retrying", Outcome.WAITING: "node.waiting", Outcome.RELEASED: "node.released"}


def check_wait(record: RecordRequest) -> None:
    """Raise StoreRefused for a wait that nothing could end, PayloadRejected for a child of an unstorable identity."""
    if record.child is not None:
        check_start(record.child)
    if record.wait_key is not None:
        check_exact("key of a wait", record.wait_key)
    kind = record.wait_kind or WaitKind.TIMER
    if record.outcome is Outcome.WAITING and (lacking := WAITS[kind].lacks(record)) is not None:
        raise StoreRefused(
            f"node {record.node_id!r}, item {record.item}, of execution {record.execution_id} can't wait for "
            f"{kind.value}: {lacking}"
        )


def wait(
    tx: Transaction, execution: ExecutionRow, run: RunRow, request: RecordRequest, reference: str
) -> tuple[RecordResult, RunRow]:
    """End a claim without ending its run, and return the answer and the new row of the run."""
    kept = run._replace(worker_id=None, claim_reference=None, span=request.span or run.span)
    if request.outcome is Outcome.RELEASED:
        return _release(tx, execution, run, kept)
    kind = WaitKind.RETRY if request.outcome is Outcome.RETRY else request.wait_kind or WaitKind.TIMER
    return WAITS[kind].begin(tx, execution, run, kept, request, reference)


def _release(tx: Transaction, execution: ExecutionRow, run: RunRow, kept: RunRow) -> tuple[RecordResult, RunRow]:
    _note(tx, run, PARKED[Outcome.RELEASED], {"fence": run.fence})
    if execution.status != ExecutionStatus.RUNNING:
        held = _hold(tx, run, kept, {"because": "released"})
        return RecordResult(True), held
    new = queued(tx, kept)
    tx.update_runs([(run, new)])
    _note_ready(tx, new, {"push": new.push, "because": "released"})
    return RecordResult(True, (tx.job(new),)), new


def _wait_for_retry(
    tx: Transaction, execution: ExecutionRow, run: RunRow, kept: RunRow, request: RecordRequest, reference: str
) -> tuple[RecordResult, RunRow]:
    """Wait for the next attempt. In a failed execution it is held until the execution is retried."""
    details: dict[str, Any] = {} if request.error is None else {"error": json.loads(request.error)}
    _note(tx, run, PARKED[Outcome.RETRY], {**details, "delay_seconds": request.delay_seconds, "fence": run.fence})
    new = kept._replace(attempt=run.attempt + request.spends_attempt, wait_key=None)
    if execution.status not in (ExecutionStatus.RUNNING, ExecutionStatus.PAUSED):
        return RecordResult(True), _hold(tx, run, new._replace(wait_kind=None), None)
    return RecordResult(True), _park(tx, run, new, WaitKind.RETRY, None, tx.after(_delay(request)))


def _wait_for_time(
    tx: Transaction, execution: ExecutionRow, run: RunRow, kept: RunRow, request: RecordRequest, reference: str
) -> tuple[RecordResult, RunRow]:
    _note_wait(tx, run, WaitKind.TIMER, request.wait_key)
    due_at = tx.after(_delay(request)) if request.due_at is None else tx.as_time(request.due_at)
    return RecordResult(True), _park(tx, run, kept, WaitKind.TIMER, request.wait_key, due_at)


def _wait_for_child(
    tx: Transaction, execution: ExecutionRow, run: RunRow, kept: RunRow, request: RecordRequest, reference: str
) -> tuple[RecordResult, RunRow]:
    """Start a child and wait for its end. Unless the execution is running, the run is held, to request it again."""
    child = request.child
    assert child is not None
    if execution.status != ExecutionStatus.RUNNING:
        _note_wait(tx, run, WaitKind.CHILD, child.execution_id)
        return RecordResult(True), _hold(tx, run, kept, None)
    started = start_child(tx, execution, run, child)
    if isinstance(started, UnknownWorkflow):
        return RecordResult(True, refused=started), run
    _note_wait(tx, run, WaitKind.CHILD, child.execution_id)
    return RecordResult(True, tuple(started.jobs)), _park(tx, run, kept, WaitKind.CHILD, child.execution_id, None)


def _wait_for_items(
    tx: Transaction, execution: ExecutionRow, run: RunRow, kept: RunRow, request: RecordRequest, reference: str
) -> tuple[RecordResult, RunRow]:
    """Start items and wait for their ends. Unless the execution is running, the run is held, to request them again."""
    wanted = request.fan_out
    assert wanted is not None
    if execution.status != ExecutionStatus.RUNNING:
        _note_wait(tx, run, WaitKind.ITEMS, request.wait_key)
        return RecordResult(True), _hold(tx, run, kept, None)
    bounds = {
        "items": len(wanted.items), "max_concurrency": wanted.max_concurrency,
        "tolerated_failures": wanted.tolerated_failures,
    }  # fmt: skip
    _note_wait(tx, run, WaitKind.ITEMS, request.wait_key, **bounds)
    waiting = _waiting(kept, WaitKind.ITEMS, request.wait_key, None)
    goes_on = run.node_id in request.successors and tx.is_live(request.worker_id)
    new, follows = fan_out(tx, execution, waiting, wanted, reference, request.worker_id if goes_on else None)
    tx.update_runs([(run, new)])
    return RecordResult(True, tuple(follows.jobs), () if follows.claim is None else (follows.claim,)), new


def _lacks_items(record: RecordRequest) -> str | None:
    if record.fan_out is not None and record.fan_out.items and not record.item:
        return None
    return "its record needs a `fan_out` that is not empty, and comes from item 0"


WAITS: Mapping[WaitKind, WaitRule] = {
    WaitKind.RETRY: WaitRule(
        lambda record: "a retry is an outcome of its own", _wait_for_retry, timed=True, kept=False, on_retry="anew"
    ),
    WaitKind.TIMER: WaitRule(lambda record: None, _wait_for_time, timed=True, kept=True, on_retry="anew"),
    WaitKind.CHILD: WaitRule(
        lambda record: None if record.child is not None else "its record needs a `child`", _wait_for_child,
        timed=False, kept=True, on_retry="child",
    ),
    WaitKind.ITEMS: WaitRule(_lacks_items, _wait_for_items, timed=False, kept=True, on_retry="items"),
}  # fmt: skip


def _delay(request: RecordRequest) -> timedelta:
    return timedelta(seconds=request.delay_seconds)


def _waiting(kept: RunRow, kind: WaitKind, wait_key: str | None, due_at: Time | None) -> RunRow:
    return kept._replace(status=NodeStatus.WAITING.value, wait_kind=kind.value, wait_key=wait_key, due_at=due_at)


def _park(
    tx: Transaction, run: RunRow, kept: RunRow, kind: WaitKind, wait_key: str | None, due_at: Time | None
) -> RunRow:
    new = _waiting(kept, kind, wait_key, due_at)
    tx.update_runs([(run, new)])
    return new


def _hold(tx: Transaction, run: RunRow, kept: RunRow, details: Mapping[str, Any] | None) -> RunRow:
    new = kept._replace(status=NodeStatus.HELD.value, due_at=None)
    tx.update_runs([(run, new)])
    _note_ready(tx, new, details)
    return new


def _note_wait(tx: Transaction, run: RunRow, kind: WaitKind, wait_key: str | None, **details: Any) -> None:
    fields = {"wait_kind": kind.value, "wait_key": wait_key, **details, "fence": run.fence}
    _note(tx, run, PARKED[Outcome.WAITING], fields)


def _note(tx: Transaction, run: RunRow, kind: str, details: Mapping[str, Any]) -> None:
    # The fence comes last: a record that is sent again is found by the end of the text.
    tx.add_events([Event(run.execution_id, kind, run.node_id, run.item, run.attempt, run.worker_id, as_data(details))])


def _note_ready(tx: Transaction, run: RunRow, details: Mapping[str, Any] | None) -> None:
    data = None if details is None else as_data(details)
    tx.add_events([Event(run.execution_id, f"node.{run.status}", run.node_id, run.item, run.attempt, None, data)])
