"""The start of executions: the row, with `$end` and entry nodes, a `$start` that waits, or the results of a replay."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache

from spanloom.engine.errors import (
    IdempotencyConflict,
    InvalidTransition,
    SpanloomError,
    UnknownExecution,
    UnknownWorkflow,
)
from spanloom.engine.store.requests import END, START, NodeJob, NodeKey, Replay, StartAnswer, StartRequest, StartResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.transitions.arrivals import FIRST_PUSH, SUSPECT_AFTER, recount_arrivals
from spanloom.stores.transitions.rows import (
    Event,
    ExecutionRow,
    GraphEdge,
    NewExecution,
    ResultRow,
    RunRow,
    UsedKey,
    VersionRow,
    as_data,
)
from spanloom.stores.transitions.transaction import Transaction

__all__ = ["begin", "create"]

OUTBOX_PUSH = as_data({"push": 0})  #: of a run whose first push is left to the sweep


def create(tx: Transaction, requests: Sequence[StartRequest], *, outbox: bool = False) -> list[StartAnswer]:
    """Create executions, or return those that their keys or their ids have started before.

    With `outbox` no jobs are returned: the sweep makes the first push after the caller's transaction.
    """
    order = sorted(range(len(requests)), key=lambda place: _lock_order(requests[place], place))
    found = {place: _examine(tx, requests[place]) for place in order}
    new = tx.insert_executions(
        [
            NewExecution(requests[place], version, _first_status(requests[place]))
            for place, version in found.items()
            if isinstance(version, int)
        ]
    )
    answers = {place: _answer(tx, requests[place], found[place], new, outbox=outbox) for place in order}
    return [answers[place] for place in range(len(requests))]


def begin(tx: Transaction, execution: ExecutionRow, *, outbox: bool = False) -> list[NodeJob]:
    """Insert the `$end` of a running execution, whose deadline counts from now, and its queued entry nodes."""
    graph = tx.graph(execution.workflow_id, execution.version)
    entries = [_entry(tx, execution, edge, outbox=outbox) for edge in graph.following(START)]
    tx.insert_runs([_end_of(tx, execution, graph.leading(END)[0].target_inputs), *entries])
    tx.add_events(
        [
            Event(execution.id, "execution.started"),
            *(Event(run.execution_id, "node.queued", run.node_id, 0, 1, None, FIRST_PUSH if run.push else OUTBOX_PUSH)
              for run in entries),
        ]
    )  # fmt: skip
    return [] if outbox else [tx.job(run) for run in entries]


def _lock_order(request: StartRequest, place: int) -> tuple[str, bool, str, int]:
    """Return the sort key by which all transactions take idempotency keys in one order."""
    return request.workflow_id, request.idempotency_key is None, request.idempotency_key or "", place


def _first_status(request: StartRequest) -> ExecutionStatus:
    delayed = request.delay_seconds > 0 and request.replay is None
    return ExecutionStatus.PENDING if delayed else ExecutionStatus.RUNNING


def _examine(tx: Transaction, request: StartRequest) -> int | UsedKey | SpanloomError:
    """Return the version to start, or the holder of its idempotency key, or the reason why it can't be started."""
    found = tx.version(request.workflow_id, request.version)
    refused = _refusal(tx, request, found)
    if refused is not None:
        # A start that is sent again gets its answer even if its workflow or its source has changed or gone.
        used = None if request.idempotency_key is None else tx.used_key(request.workflow_id, request.idempotency_key)
        return refused if used is None else used
    assert found is not None
    assert found.version is not None
    if request.idempotency_key is not None:
        used = tx.take_key(request)
        if used.execution_id != request.execution_id:
            return used
    return found.version


def _created(version: int, replay: Replay | None) -> str:
    if replay is None:
        return _created_first(version)
    return as_data({"version": version, "replay_of": canonical_id(replay.source), "carried": len(replay.carried)})


@lru_cache(maxsize=1024)
def _created_first(version: int) -> str:
    return as_data({"version": version})


def _answer(
    tx: Transaction, request: StartRequest, found: int | UsedKey | SpanloomError, new: set[str], *, outbox: bool
) -> StartAnswer:
    """Begin an execution that was inserted, and return the answer of its start."""
    if isinstance(found, SpanloomError):
        return found
    if isinstance(found, UsedKey):
        return _repeated(tx, request, found)
    if request.execution_id not in new:  # sent again after a lost answer
        return StartResult(request.execution_id, found, created=False)
    new.remove(request.execution_id)
    replay = request.replay
    tx.add_events([Event(request.execution_id, "execution.created", data=_created(found, replay))])
    status = _first_status(request)
    if status is ExecutionStatus.PENDING:
        tx.insert_runs([_delayed_start(tx, request)])
        return StartResult(request.execution_id, found, True, created_at=tx.as_datetime(tx.now))
    execution = ExecutionRow(
        request.execution_id, request.workflow_id, found, status.value, 0, request.priority.value,
        None if request.parent is None else request.parent.execution_id, None, None, request.parent_fence,
        request.depth, request.deadline_seconds, tx.now, None, None,
    )  # fmt: skip
    jobs = _take_over(tx, execution, replay, outbox=outbox) if replay else begin(tx, execution, outbox=outbox)
    return StartResult(request.execution_id, found, True, jobs, tx.as_datetime(tx.now))


def _refusal(tx: Transaction, request: StartRequest, found: VersionRow | None) -> SpanloomError | None:
    """Return the reason why an execution can't be started, None if it can."""
    if found is None:
        return UnknownWorkflow(request.workflow_id)
    if found.version is None:
        return UnknownWorkflow(request.workflow_id, request.version)
    if not found.active:
        return UnknownWorkflow(request.workflow_id, inactive=True)
    return None if request.replay is None else _not_carried(tx, request.replay)


def _repeated(tx: Transaction, request: StartRequest, used: UsedKey) -> StartAnswer:
    assert request.idempotency_key is not None
    if used.input_hash != request.input_hash:
        return IdempotencyConflict(request.workflow_id, request.idempotency_key, used.execution_id)
    earlier = tx.executions([used.execution_id])[used.execution_id]
    return StartResult(used.execution_id, earlier.version, created=False)


def _delayed_start(tx: Transaction, request: StartRequest) -> RunRow:
    return RunRow(
        request.execution_id, START, 0, NodeStatus.WAITING.value, START, "", request.priority.value, taken=0,
        wait_kind=WaitKind.TIMER.value, due_at=tx.after(timedelta(seconds=request.delay_seconds)),
    )  # fmt: skip


def _end_of(tx: Transaction, execution: ExecutionRow, sinks: int) -> RunRow:
    seconds = execution.deadline_seconds
    return RunRow(
        execution.id, END, 0, NodeStatus.PENDING.value, END, "", execution.priority, pending=sinks, taken=0,
        due_at=None if seconds is None else tx.after(timedelta(seconds=seconds)),
    )  # fmt: skip


def _entry(tx: Transaction, execution: ExecutionRow, edge: GraphEdge, *, outbox: bool) -> RunRow:
    return RunRow(
        execution.id, edge.target, 0, NodeStatus.QUEUED.value, edge.target_type, edge.target_queue, execution.priority,
        due_at=tx.now if outbox else tx.after(SUSPECT_AFTER), push=0 if outbox else 1, pushed_epoch=tx.epoch,
        pushed_at=tx.now,
    )  # fmt: skip


# ---- replays ----


def _not_carried(tx: Transaction, replay: Replay) -> SpanloomError | None:
    """Return the reason why the results can't be taken over, None if they can."""
    source = canonical_id(replay.source)
    # Locked until the end, so that neither a purge nor a retry deletes these results meanwhile.
    if source is None or not tx.lock_executions([source]):
        return UnknownExecution(replay.source)
    results = {row.node_id: row for row in tx.results(source, replay.carried)}
    for node_id in replay.carried:
        result = results.get(node_id)
        if result is not None and result.arrived:
            continue
        key = NodeKey(source, node_id)
        run = tx.runs([key]).get(key)
        status = result.status if result is not None else run.status if run is not None else NodeStatus.PENDING
        return InvalidTransition(f"node run {node_id}", status, NodeStatus.COMPLETED)
    return None


def _take_over(tx: Transaction, execution: ExecutionRow, replay: Replay, *, outbox: bool) -> list[NodeJob]:
    """Begin an execution with the results of its source, and queue the runs that follow from them."""
    graph = tx.graph(execution.workflow_id, execution.version)
    source = canonical_id(replay.source)
    assert source is not None
    tx.copy_results(source, execution.id, replay.carried)
    skipped: list[ResultRow] = []
    for node_id in replay.skipped:
        edge = graph.target(node_id)
        assert edge is not None
        skipped.append(ResultRow(execution.id, node_id, 0, edge.target_type, NodeStatus.SKIPPED.value, ended_at=tx.now))
    tx.insert_results(skipped)
    tx.add_events([Event(execution.id, "execution.started")])
    settled = {*replay.carried, *replay.skipped}
    leading = {edge.target for node_id in (START, *settled) for edge in graph.following(node_id)}
    tx.insert_runs([_end_of(tx, execution, graph.leading(END)[0].target_inputs)])
    ended = tx.results(execution.id)
    _, ready = recount_arrivals(tx, execution, leading - settled - {END}, ended, from_start=True, outbox=outbox)
    return [] if outbox else [tx.job(run) for run in ready]
