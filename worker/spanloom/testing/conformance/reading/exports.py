"""Conformance: the spans that may not have been exported when their worker is gone."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from functools import partial

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome, PendingExports
from spanloom.engine.store.states import ExecutionStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, diamond, single

__all__ = ["SpansToExport"]


def _begin(store: ExecutionStore, driver: StoreDriver) -> datetime:
    """Begin to export, and return the store's time."""
    at = store.ack_exports(driver.worker_id, now=driver.now())
    assert at is not None
    return at


def _exporter(store: ExecutionStore, clock: ManualClock) -> StoreDriver:
    """Return a worker that has begun to export."""
    made = StoreDriver(store, clock=clock, lease_seconds=5)
    _begin(store, made)
    return made


def _lose(store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
    """Let the lease of a worker lapse, and have the sweep move its claims."""
    clock.advance(6)
    store.renew_lease(driver.worker_id, lease_seconds=60, now=clock())
    driver.sweep_all()


def _taken(store: ExecutionStore, driver: StoreDriver, *, limit: int = 1000) -> list[tuple[str, str]]:
    """Take over, page by page, all that workers have left: the worker and the execution."""
    found: list[tuple[str, str]] = []
    while (left := store.claim_exports(driver.worker_id, limit=limit, now=driver.now())) is not None:
        assert len(left.execution_ids) <= limit
        found += [(left.worker_id, execution) for execution in left.execution_ids]
        store.release_exports(driver.worker_id, left.worker_id, left.cursor)
    return found


# ---- the records that store spans: each prepares one, and returns the execution and what sends it ----

Prepared = tuple[str, Callable[[], object]]


def _outcome(gone: StoreDriver, outcome: Outcome, **fields: object) -> Prepared:
    execution = gone.start(chain(2))
    node = gone.claim(execution, "n1")
    return execution, lambda: gone.record(execution, node, outcome, **fields)


def _completed(gone: StoreDriver) -> Prepared:
    return _outcome(gone, Outcome.COMPLETED)


def _completed_at_its_end(gone: StoreDriver) -> Prepared:
    execution = gone.start(single())
    node = gone.claim(execution, "only")
    return execution, lambda: gone.record(execution, node)


def _failed(gone: StoreDriver) -> Prepared:
    return _outcome(gone, Outcome.FAILED)


def _failed_and_handled(gone: StoreDriver) -> Prepared:
    return _outcome(gone, Outcome.FAILED, handled=True)


def _skipped(gone: StoreDriver) -> Prepared:
    return _outcome(gone, Outcome.SKIPPED)


def _to_be_retried(gone: StoreDriver) -> Prepared:
    return _outcome(gone, Outcome.RETRY, delay_seconds=60)


def _released(gone: StoreDriver) -> Prepared:
    return _outcome(gone, Outcome.RELEASED)


def _waiting_for_a_timer(gone: StoreDriver) -> Prepared:
    return _outcome(gone, Outcome.WAITING, wait_kind=WaitKind.TIMER, delay_seconds=60)


def _waiting_for_a_child(gone: StoreDriver) -> Prepared:
    execution = gone.start(chain(2))
    gone.store.save_workflow(single(), now=gone.now())
    node = gone.claim(execution, "n1")
    return execution, lambda: gone.send(gone.waiting_for_child(execution, node, request("single")))


def _of_a_child(gone: StoreDriver) -> Prepared:
    child = gone.start_child(gone.start(single()), "only", chain(1))
    node = gone.claim(child, "n1")
    return child, lambda: gone.record(child, node)


def _waiting_for_items(gone: StoreDriver) -> Prepared:
    execution = gone.start(chain(2))
    node = gone.claim(execution, "n1")
    return execution, lambda: gone.send(gone.fanning_out(execution, node, ["x", "y"]))


def _of_an_item(gone: StoreDriver) -> Prepared:
    execution = gone.start(chain(2))
    gone.fan_out(execution, "n1", ["x", "y"])
    node = gone.claim(execution, "n1", 1)
    return execution, lambda: gone.record(execution, node)


def _of_a_failed_execution(gone: StoreDriver) -> Prepared:
    execution = gone.start(diamond())
    gone.run(execution, "top")
    node = gone.claim(execution, "left")
    gone.run(execution, "right", Outcome.FAILED)
    return execution, lambda: gone.record(execution, node)


def _of_a_cancelled_run(gone: StoreDriver) -> Prepared:
    execution = gone.start(single())
    node = gone.claim(execution, "only")
    gone.cancel(execution)
    return execution, lambda: gone.record(execution, node)


RECORDS = (
    _completed, _completed_at_its_end, _failed, _failed_and_handled, _skipped, _to_be_retried, _released,
    _waiting_for_a_timer, _waiting_for_a_child, _of_a_child, _waiting_for_items, _of_an_item, _of_a_failed_execution,
    _of_a_cancelled_run,
)  # fmt: skip


class SpansToExport:
    """`SpanExports`: begun, confirmed, derived from what was recorded since, taken over, released."""

    def test_what_a_live_worker_has_recorded_is_its_own(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        exporter = _exporter(store, clock)
        exporter.run(exporter.start(single()), "only", span="s")
        assert store.claim_exports(driver.worker_id, now=clock()) is None

    @pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__.strip("_"))
    def test_every_record_is_found_that_was_not_confirmed(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, record: Callable[[StoreDriver], Prepared]
    ) -> None:
        gone = _exporter(store, clock)
        execution, send = record(gone)
        clock.advance(1)
        assert store.ack_exports(gone.worker_id, clock(), now=clock()) == clock()
        send()
        _lose(store, driver, clock)
        assert _taken(store, driver) == [(gone.worker_id, execution)]

    @pytest.mark.parametrize("how", ["retired", "lapsed"])
    def test_what_a_worker_leaves_is_taken_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, how: str
    ) -> None:
        gone = _exporter(store, clock)
        execution = gone.start(chain(3))
        for node in ("n1", "n2"):
            gone.run(execution, node)
        if how == "retired":
            store.unregister_worker(gone.worker_id, now=clock())
        else:
            _lose(store, driver, clock)
        left = store.claim_exports(driver.worker_id, now=clock())
        assert left is not None
        assert (left.worker_id, left.execution_ids) == (gone.worker_id, [execution])
        other = StoreDriver(store, clock=clock)
        assert store.claim_exports(other.worker_id, now=clock()) is None
        assert _taken(store, driver) == [(gone.worker_id, execution)]
        store.unregister_worker(driver.worker_id, now=clock())
        assert store.claim_exports(other.worker_id, now=clock()) is None

    @pytest.mark.parametrize("how", ["retired", "lapsed"])
    def test_what_a_taker_leaves_is_taken_from_it(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, how: str
    ) -> None:
        gone = _exporter(store, clock)
        executions = sorted(gone.start(chain(2)) for _ in range(3))
        for execution in executions:
            gone.run(execution, "n1")
        store.unregister_worker(gone.worker_id, now=clock())
        first = StoreDriver(store, clock=clock, lease_seconds=5)
        done = store.claim_exports(first.worker_id, limit=1, now=clock())
        assert done is not None
        store.release_exports(first.worker_id, gone.worker_id, done.cursor)
        assert store.claim_exports(first.worker_id, limit=1, now=clock()) is not None
        if how == "retired":
            store.unregister_worker(first.worker_id, now=clock())
        else:
            clock.advance(6)
        assert [*done.execution_ids] == executions[:1]
        assert _taken(store, driver) == [(gone.worker_id, execution) for execution in executions[1:]]

    def test_what_was_confirmed_is_not_taken(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        gone = _exporter(store, clock)
        early, late, both = (gone.start(chain(3)) for _ in range(3))
        for execution in (early, both):
            gone.run(execution, "n1")
        clock.advance(1)
        store.ack_exports(gone.worker_id, clock(), now=clock())
        for execution in (late, both):
            gone.run(execution, "n2" if execution == both else "n1")
        store.unregister_worker(gone.worker_id, now=clock())
        assert {execution for _, execution in _taken(store, driver)} == {late, both}

    def test_a_confirmation_does_not_reach_what_came_after_its_time(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        gone = StoreDriver(store, clock=clock)
        began = _begin(store, gone)
        clock.advance(1)
        execution = gone.start(single())
        gone.run(execution, "only")
        clock.advance(1)
        assert store.ack_exports(gone.worker_id, began, now=clock()) == clock()
        store.unregister_worker(gone.worker_id, now=clock())
        assert _taken(store, driver) == [(gone.worker_id, execution)]

    def test_to_begin_twice_confirms_nothing(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        gone = _exporter(store, clock)
        execution = gone.start(single())
        gone.run(execution, "only")
        clock.advance(1)
        assert _begin(store, gone) == clock()
        store.unregister_worker(gone.worker_id, now=clock())
        assert _taken(store, driver) == [(gone.worker_id, execution)]

    def test_only_who_has_begun_can_confirm(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        assert store.ack_exports(str(uuid.uuid4()), now=clock()) is None
        assert store.ack_exports(driver.worker_id, clock(), now=clock()) is None
        driver.run(driver.start(single()), "only", span="s")
        store.unregister_worker(driver.worker_id, now=clock())
        assert store.claim_exports(StoreDriver(store, clock=clock).worker_id, now=clock()) is None

    def test_a_worker_that_has_sent_all_leaves_nothing(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        gone = _exporter(store, clock)
        gone.run(gone.start(single()), "only")
        store.release_exports(gone.worker_id, gone.worker_id)
        assert store.ack_exports(gone.worker_id, clock(), now=clock()) is None
        store.unregister_worker(gone.worker_id, now=clock())
        assert store.claim_exports(driver.worker_id, now=clock()) is None

    def test_what_others_recorded_and_what_was_only_claimed_is_not_taken(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        gone = _exporter(store, clock)
        driver.run(driver.start(single()), "only")
        claimed = driver.start(single())
        gone.claim(claimed, "only")
        _lose(store, driver, clock)
        driver.run(claimed, "only")
        assert _taken(store, driver) == []

    def test_it_comes_in_pages_each_again_until_it_is_released(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        gone = _exporter(store, clock)
        executions = set()
        for _ in range(5):
            executions |= {(execution := gone.start(chain(2))), (ended := gone.start(single()))}
            gone.run(execution, "n1")
            gone.run(ended, "only")
            driver.run(driver.start(single()), "only")
            clock.advance(1)
        store.unregister_worker(gone.worker_id, now=clock())
        pages = [store.claim_exports(driver.worker_id, limit=2, now=clock()) for _ in range(2)]
        assert isinstance(pages[0], PendingExports)
        assert pages[0] == pages[1]
        found = [execution for _, execution in _taken(store, driver, limit=2)]
        assert sorted(found) == sorted(executions)

    def test_what_ends_between_two_pages_is_found(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        gone = _exporter(store, clock)
        executions = [gone.start(chain(2)) for _ in range(6)]
        for execution in executions:
            gone.run(execution, "n1")
        store.unregister_worker(gone.worker_id, now=clock())
        found: set[str] = set()
        for end in (*executions[::-1], None, None, None, None, None, None):
            if (left := store.claim_exports(driver.worker_id, limit=1, now=clock())) is None:
                break
            found.update(left.execution_ids)
            store.release_exports(driver.worker_id, left.worker_id, left.cursor)
            clock.advance(0.001)
            if end is not None:
                driver.run(end, "n2")
        assert found == set(executions)

    def test_a_worker_is_not_gone_while_a_claim_of_it_may_be_recorded(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        gone = _exporter(store, clock)
        executions = sorted(gone.start(single()) for _ in range(2))
        claims = {execution: gone.claim(execution, "only") for execution in executions}
        clock.advance(6)
        assert store.claim_exports(driver.worker_id, now=clock()) is None
        driver.sweep(limit=1)
        (left,) = store.list_claims(gone.worker_id)
        assert store.claim_exports(driver.worker_id, now=clock()) is None
        assert gone.record(left.execution_id, claims[left.execution_id]).recorded
        assert _taken(store, driver) == [(gone.worker_id, left.execution_id)]

    def test_of_takers_that_race_one_is_the_exporter(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        left_by = [_exporter(store, clock) for _ in range(3)]
        expected = []
        for gone in left_by:
            for _ in range(4):
                expected.append((gone.worker_id, execution := gone.start(single())))
                gone.run(execution, "only")
            store.unregister_worker(gone.worker_id, now=clock())
        takers = [StoreDriver(store, clock=clock) for _ in range(4)]
        shares = race([partial(_taken, store, taker, limit=2) for taker in takers])
        assert sorted(entry for share in shares for entry in share) == sorted(expected)

    def test_only_its_exporter_can_release_it(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        gone = _exporter(store, clock)
        execution = gone.start(single())
        gone.run(execution, "only")
        store.unregister_worker(gone.worker_id, now=clock())
        assert store.claim_exports(driver.worker_id, now=clock()) is not None
        for other in (StoreDriver(store, clock=clock).worker_id, gone.worker_id):
            store.release_exports(other, gone.worker_id)
        assert _taken(store, driver) == [(gone.worker_id, execution)]

    @pytest.mark.parametrize(("hours", "kept"), [(23, True), (25, False)])
    def test_it_is_kept_for_a_day(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, hours: int, kept: bool
    ) -> None:
        gone = _exporter(store, clock)
        execution = gone.start(single())
        gone.run(execution, "only")
        store.unregister_worker(gone.worker_id, now=clock())
        clock.advance(hours * 3600)
        driver.sweep_all()
        taker = StoreDriver(store, clock=clock)
        assert _taken(store, taker) == ([(gone.worker_id, execution)] if kept else [])

    def test_a_purge_takes_it_with_it(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        gone = _exporter(store, clock)
        answer = gone.run(gone.start(single()), "only")
        assert answer.ended is ExecutionStatus.COMPLETED
        clock.advance(1)
        store.purge_executions(ended_before=clock(), statuses=[answer.ended], now=clock())
        store.unregister_worker(gone.worker_id, now=clock())
        assert _taken(store, driver) == []
