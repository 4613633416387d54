"""Every operation of a store's write transaction, on one small execution, for tests of what they run and answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LogLine, NodeKey, SpanLine
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.stores.transitions.rows import Event, NewExecution, ResultRow, RunFilter, RunRow
from spanloom.stores.transitions.transaction import Transaction, always
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import fan

__all__ = ["OPERATIONS", "play"]

CLOCK = ManualClock()
NOW = CLOCK()
ID = "00000000-0000-4000-8000-000000000001"
CHILD = "00000000-0000-4000-8000-000000000002"
WORKER = "worker"
SPLIT, W1, JOIN = (NodeKey(ID, name) for name in ("split", "w1", "join"))
RUN = RunRow(
    ID, "w1", 1, "waiting", "work", "default", "normal", 1, 2, 3, 4, 5, None, "split/0/1", "timer", "key", 6, 7, 8, 9,
    "00ff", NOW + timedelta(seconds=1), 10, 0, NOW, NOW,
)  # fmt: skip
RESULT = ResultRow(
    ID, "w2", 0, "work", "failed", "1", '{"type":"Boom"}', '["join"]', False, 2, 3, 4, 5, WORKER, "00ff",
    5, 7, '{"k":1}', '[["parent","00fe"]]', NOW, NOW,
)  # fmt: skip
CREATED = request(
    "fan", execution_id=CHILD, parent=W1, parent_fence=1, depth=1, idempotency_key="key", input_hash="hash",
    key_ttl_seconds=1.0, metadata={"of": "x"},
)  # fmt: skip
SPAN = SpanLine("0" * 32, "0" * 16, None, "one", "internal", "ok", 1, 2)


def _run(tx: Transaction, key: NodeKey) -> RunRow:
    return tx.runs([key])[key]


def _kept(tx: Transaction, row: Any) -> Any:
    """Return a row with its times in the form of the store."""
    return row._make(tx.as_time(value) if isinstance(value, datetime) else value for value in row)


def _changed(tx: Transaction, key: NodeKey, other: NodeKey) -> None:
    run, row = _run(tx, key), tx.executions([ID])[ID]
    tx.prefetch([key])
    tx.update_executions([row], priority="high")
    assert tx.executions([ID])[ID].priority == "high"
    tx.prefetch([key, other])
    tx.update_runs([(run, run._replace(taken=run.taken + 1))])


def _updated(tx: Transaction) -> Any:
    run = _run(tx, W1)
    tx.update_runs([(run, run._replace(status="running", worker_id=WORKER, started_at=tx.now, due_at=None))])
    return _run(tx, W1)


def _ended(tx: Transaction) -> Any:
    run = _run(tx, W1)
    tx.end_runs([(run, ResultRow(*run.key, run.node_type, "completed", ended_at=tx.now))])
    return tx.runs([W1]), tx.result(W1)


def _executions(tx: Transaction, status: ExecutionStatus) -> Any:
    return tx.set_status(list(tx.lock_executions([ID], alone=always).values()), status, ended_at=tx.now)


#: In this order, in one transaction: each by the name of its method, with what it answers.
OPERATIONS: dict[str, Callable[[Transaction], Any]] = {
    "now": lambda tx: tx.now,
    "later": lambda tx: tx.later(),
    "after": lambda tx: [tx.after(timedelta(seconds=1.5)), tx.after(timedelta(-1))],
    "elapsed": lambda tx: tx.elapsed(tx.now, tx.after(timedelta(microseconds=3))),
    "as_time": lambda tx: tx.as_time(NOW + timedelta(microseconds=1)),
    "as_datetime": lambda tx: [tx.as_datetime(tx.now), tx.as_datetime(tx.after(timedelta(microseconds=1)))],
    "graph": lambda tx: [*tx.graph("fan", 1).leading("join"), *tx.graph("fan", 1).following("split")],
    "version": lambda tx: [tx.version("fan", None), tx.version("fan", 1), tx.version("fan", 9), tx.version("x", None)],
    "executions": lambda tx: tx.executions([ID, CHILD]),
    "lock_executions": lambda tx: [
        tx.lock_executions([ID]), tx.lock_executions([ID, CHILD], alone=lambda row: row.id == ID, wait=False)
    ],
    "insert_executions": lambda tx: [
        tx.insert_executions([NewExecution(CREATED, 1, ExecutionStatus.PENDING)] * 2) for _ in range(2)
    ],
    "children": lambda tx: tx.children(ID, ["w1", "w2"]),
    "lock_descendants": lambda tx: tx.lock_descendants([ID]),
    "lock_families": lambda tx: [tx.lock_families([ID]), tx.lock_families([CHILD, ID]), tx.lock_families([])],
    "headers": lambda tx: [tx.headers(list(tx.executions([ID, CHILD]).values())), tx.headers([])],
    "update_executions": lambda tx: tx.update_executions(
        list(tx.executions([ID]).values()), revise=True, priority="low"
    ),
    "runs": lambda tx: tx.runs([SPLIT, W1, JOIN]),
    "prefetch": lambda tx: [
        tx.prefetch([SPLIT, W1, JOIN, NodeKey(CHILD, "x")]), tx.executions([ID, CHILD]), tx.runs([SPLIT, W1, JOIN]),
        tx.runs([W1])
    ],
    "prefetch before a change": lambda tx: [
        _changed(tx, W1, JOIN), tx.runs([W1, JOIN]), tx.executions([ID]),
        tx.prefetch([W1, JOIN]), tx._move_runs(RunFilter([ID], [NodeStatus.QUEUED]), push=False, taken=7),
        tx.runs([W1, JOIN]),
    ],
    "lock_runs": lambda tx: [
        tx.lock_runs([W1, JOIN]), tx.lock_runs([W1], wait=False), tx.lock_runs([W1, JOIN], status=NodeStatus.QUEUED)
    ],
    "insert_runs": lambda tx: [tx.insert_runs([_kept(tx, RUN)]), _run(tx, RUN.key)],
    "arrive": lambda tx: [
        tx.arrive([_kept(tx, RUN)._replace(node_id="join", item=0, pending=2, taken=1)], {"join": 1}) for _ in range(2)
    ],
    "runs_made_ready": lambda tx: tx.runs_made_ready(ID, "split/0/1"),
    "find_runs": lambda tx: tx.find_runs(RunFilter([ID], [NodeStatus.WAITING], "timer")),
    "update_runs": _updated,
    "_write_runs": _updated,
    "runs_of_worker": lambda tx: tx.runs_of_worker(WORKER),
    "move_runs": lambda tx: tx.move_runs(
        RunFilter([ID], [NodeStatus.RUNNING]), NodeStatus.QUEUED, push=True, due_at=tx.now
    ),
    "_move_runs": lambda tx: tx._move_runs(RunFilter([ID], [NodeStatus.QUEUED]), push=False, pushed_epoch=1),
    "due_runs": lambda tx: [tx.due_runs(9), tx.due_runs(9, ["w1"]), tx.due_runs(9, ["w2"])],
    "outdated_runs": lambda tx: sorted(tx.outdated_runs(9)),  # of equals each store has an order of its own
    "lost_runs": lambda tx: tx.lost_runs(9),
    "end_runs": _ended,
    "delete_runs": lambda tx: [tx.delete_runs([JOIN]), tx.runs([JOIN])],
    "delete_runs_of": lambda tx: [tx.delete_runs_of([ID], ["w1"]), tx.delete_runs_of([ID])],
    "insert_results": lambda tx: [
        tx.insert_results([_kept(tx, RESULT), _kept(tx, RESULT)._replace(item=1)]), tx.result(NodeKey(*RESULT[:3]))
    ],
    "results": lambda tx: [tx.results(ID), tx.results(ID, ["w2"])],
    "inputs": lambda tx: [tx.inputs(ID, ["split", "w2", "x"]), tx.inputs(ID, [])],
    "result": lambda tx: [tx.result(SPLIT), tx.result(JOIN)],
    "mark_cancelled": lambda tx: [tx.mark_cancelled(RESULT._replace(node_id=node)) for node in ("split", "join", "w2")],
    "insert_items": lambda tx: tx.insert_items(ID, "w2", {0: "{}", 1: "1", 2: "2", 3: "3"}),
    "item": lambda tx: [tx.item(NodeKey(ID, "w2", 2)), tx.item(NodeKey(ID, "w2", 9))],
    "bounds": lambda tx: tx.bounds(ID, ["w1", "w2"]),
    "item_count": lambda tx: [tx.item_count(ID, "w2"), tx.item_count(ID, "w1")],
    "next_items": lambda tx: [
        tx.next_items(ID, "w2", 1, 9), tx.next_items(ID, "w2", 0, 1), tx.next_items(ID, "w2", 1, 0)
    ],
    "copy_results": lambda tx: [
        tx.copy_results(ID, CHILD, ["w1", "w2"]), tx.results(CHILD), tx.item_count(CHILD, "w2")
    ],
    "delete_item_results": lambda tx: [
        tx.delete_item_results(ID, "w2", failed_only=True), tx.delete_item_results(CHILD, "w2", failed_only=False)
    ],
    "delete_items": lambda tx: [tx.delete_items(ID, ["w2"]), tx.item_count(ID, "w2")],
    "delete_results": lambda tx: tx.delete_results(CHILD, ["w1", "w2"]),
    "delete_result": lambda tx: [tx.delete_result(NodeKey(*RESULT[:3])), tx.results(ID)],
    "add_events": lambda tx: tx.add_events([Event(ID, "node.waiting", "w1", 0, 1, WORKER, '{"fence":1}')], at=tx.now),
    "events": lambda tx: [(one.kind, one.data) for one in tx.events(W1, ["node.waiting", "node.queued"])],
    "end_events": lambda tx: tx.end_events(ID),
    "add_telemetry": lambda tx: tx.add_telemetry(W1, [LogLine("info", "said", NOW)], [SPAN, SPAN._replace(name="two")]),
    "flush": lambda tx: tx.flush(),
    "used_key": lambda tx: tx.used_key("fan", "key"),
    "take_key": lambda tx: [
        tx.take_key(CREATED), tx.take_key(replace(CREATED, execution_id=ID)), tx.used_key("fan", "key")
    ],
    "is_live": lambda tx: [tx.is_live(WORKER), tx.is_live("nobody")],
    "close_lease": lambda tx: [tx.close_lease(WORKER), tx.is_live(WORKER)],
    "released_workers": lambda tx: sorted(tx.released_workers({WORKER, "nobody"})),
    "release_lapsed_leases": lambda tx: tx.release_lapsed_leases(),
    "set_status": lambda tx: _executions(tx, ExecutionStatus.COMPLETED),
    "ended_roots": lambda tx: [
        tx.ended_roots(status, tx.after(timedelta(1)), after, 9)
        for after in (None, (tx.after(timedelta(-1)), ID), (tx.now, ID))
        for status in ("completed", "failed")
    ],
    "lock_keys": lambda tx: tx.lock_keys([ID, CHILD]),
    "delete_executions": lambda tx: [tx.delete_executions([ID, CHILD]), tx.executions([ID, CHILD])],
    "delete_expired_keys": lambda tx: tx.delete_expired_keys(9),
}  # fmt: skip


def play(store: ExecutionStore) -> dict[str, Any]:
    """Make the execution, do all operations in one transaction, and return what each answered."""
    driver = StoreDriver(store, clock=CLOCK)
    store.register_worker(WORKER, name="w", host="h", pid=1, queues=["default"], lease_seconds=9.0, now=NOW)
    driver.worker_id = WORKER
    driver.start(fan(2), execution_id=ID)
    driver.run(ID, "split")
    answers: dict[str, Any] = {}

    def step(tx: Transaction) -> None:
        for name, operation in OPERATIONS.items():
            answers[name] = operation(tx)

    transacting: Any = store
    transacting._transact(step, epoch=2, now=NOW)
    return answers
