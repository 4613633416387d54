"""The whole port in one play: every method of a store is called, for tests of what they need."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import (
    ControlAction,
    LogLine,
    NodeLines,
    Outcome,
    RecordRequest,
    Replay,
    SpanLine,
    StartResult,
)
from spanloom.engine.store.states import ExecutionStatus
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, diamond, single

__all__ = ["use_whole_port"]


def use_whole_port(store: ExecutionStore) -> None:
    """Call every method of the port but those of its opening and closing, on a store that may hold this already."""
    driver, now = StoreDriver(store), datetime.now(UTC)
    done = driver.start(diamond(), metadata={"a": "b"}, idempotency_key="k", deadline_seconds=60)
    driver.start("diamond", idempotency_key="k")
    driver.drain()
    # children, items, timers, retries, failures
    parent = driver.start(chain(2))
    child = driver.start_child(parent, "n1", single())
    store.fail_execution(child, '{"type": "Boom", "message": "m"}')
    store.acknowledge_execution(child)
    store.retry_execution(child)
    mapped = driver.start("chain")
    driver.fan_out(mapped, "n1", [1, 2, 3], max_concurrency=2)
    driver.drain()
    waits = driver.start("chain")
    driver.wait(waits, driver.claim(waits, "n1"), delay_seconds=0)
    late = driver.start("single", deadline_seconds=0.001)
    delayed = driver.start("single", delay_seconds=0.001)
    node = driver.claim(waits, "n1") if driver.sweep().jobs else None
    assert node is not None
    driver.record(waits, node, Outcome.RETRY, delay_seconds=0)
    driver.sweep_all()
    driver.drain()
    assert {each.status for each in map(store.get_execution, (done, parent, mapped, delayed)) if each} == {"completed"}
    failing = driver.start("chain")
    claim = driver.claim(failing, "n1")
    line = LogLine("info", "m", now)
    for again in (False, True):
        store.add_logs([NodeLines(failing, "n1", 0, claim.fence, [line], again=again)])
    driver.record(failing, claim, Outcome.FAILED, logs=[line], spans=[_span()])
    driver.record(failing, claim, Outcome.FAILED, logs=[line], spans=[_span()])
    for control in (store.retry_execution, store.pause_execution, store.resume_execution, store.cancel_execution):
        control(failing)
    replay = request("chain", replay=Replay(parent, ["n1"]))
    started = store.create_execution(replay)
    assert isinstance(started, StartResult)
    store.forget_pushes(started.jobs)
    store.update_node_result(RecordRequest(replay.execution_id, "n2", 0, 0, "", Outcome.COMPLETED, "1"))
    # reads
    page = store.list_executions(limit=1)
    store.list_executions(limit=1, cursor=page.next_cursor)
    wanted = ExecutionFilter(
        workflow_id="w", status=ExecutionStatus.FAILED, parent_execution_id=done, root=True, acknowledged=False,
        created_after=now, created_before=now, metadata={"a": "b"},
    )  # fmt: skip
    store.list_executions(wanted)
    store.get_execution_count(wanted)
    for execution in (done, parent, late):
        store.get_status(execution)
        store.get_node_results(execution)
        store.get_node_results(execution, ["n1"])
        store.get_attempts(execution, "n1")
        store.get_child_executions(execution)
        store.get_parent_execution(execution)
        events = store.get_events(execution)
        store.get_events(execution, after=events[0].cursor)
    store.add_log(done, line, node_id="top")
    store.get_logs(done, node_id="top")
    store.add_span(done, _span())
    store.update_span(done, "b" * 16, end_ns=3, status="ok")
    store.get_trace(done)
    assert list(store.iter_trace(done))
    store.stats()
    store.list_workflows(active=True)
    store.list_workflow_versions("chain")
    store.deactivate_workflow("chain")
    store.activate_workflow("chain")
    store.raise_epoch(store.get_epoch().epoch, "run")
    store.sweep(heads={"default": now, "other": None}, epoch=1)
    store.next_due()
    # leases, exports of spans and retention
    other = StoreDriver(store)
    store.ack_exports(driver.worker_id, store.ack_exports(driver.worker_id))
    store.claim_exports(other.worker_id)
    store.release_exports(other.worker_id, driver.worker_id)
    store.wake_parents([child])
    assert store.control_executions(ControlAction.PAUSE, [late])
    assert store.list_executions(ExecutionFilter(root=True)).items
    store.list_workers()
    store.renew_lease(driver.worker_id, lease_seconds=30)
    store.list_claims(driver.worker_id)
    store.unregister_worker(driver.worker_id)
    ended = [ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED]
    assert store.purge_executions(ended_before=now + timedelta(days=1), statuses=ended).executions > 2


def _span() -> SpanLine:
    return SpanLine("a" * 32, "b" * 16, None, "s", "internal", "ok", 1, 2, "n1", 0, 1)
