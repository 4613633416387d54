"""The attempts that all SQL stores draw from events: what begins one, and each way in which one ends."""

from __future__ import annotations

import json

import pytest

from spanloom.engine.store.models import Attempt
from spanloom.engine.store.requests import Outcome
from spanloom.engine.store.states import WaitKind
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, graph, single

BOOM = {"type": "Boom", "message": "no", "traceback": "in line 1", "permanent": False}


@pytest.fixture
def store() -> InMemoryExecutionStore:
    return InMemoryExecutionStore()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def driver(store: InMemoryExecutionStore, clock: ManualClock) -> StoreDriver:
    return StoreDriver(store, clock=clock, lease_seconds=1000)


def told(attempts: list[Attempt]) -> list[tuple[int, str | None]]:
    return [(one.attempt, one.ended_as) for one in attempts]


def test_a_run_that_was_never_claimed_has_none(store: InMemoryExecutionStore, driver: StoreDriver) -> None:
    execution = driver.start(chain(2))
    assert store.get_attempts(execution, "n1") == []
    assert store.get_attempts(execution, "nowhere") == []
    assert store.get_attempts("order-7", "n1") == []


def test_one_that_is_under_way_has_no_end(
    store: InMemoryExecutionStore, driver: StoreDriver, clock: ManualClock
) -> None:
    execution = driver.start(single())
    clock.advance(1)
    driver.claim(execution, "only")
    assert store.get_attempts(execution, "only") == [Attempt(attempt=1, worker_id=driver.worker_id, started_at=clock())]


def test_each_claim_is_told_with_its_end_and_its_whole_error(
    store: InMemoryExecutionStore, driver: StoreDriver, clock: ManualClock
) -> None:
    execution = driver.start(single())
    begun = clock()
    for outcome in (Outcome.RELEASED, Outcome.WAITING, Outcome.RETRY, Outcome.FAILED):
        node = driver.claim(execution, "only")
        clock.advance(1)
        wait = WaitKind.TIMER if outcome is Outcome.WAITING else None
        driver.record(execution, node, outcome, error=json.dumps(BOOM), wait_kind=wait)
        driver.sweep()
    driver.retry(execution)
    driver.run(execution, "only")
    found = store.get_attempts(execution, "only")
    assert told(found) == [(1, "released"), (1, "waiting"), (1, "retrying"), (2, "failed"), (1, "completed")]
    assert [one.error for one in found] == [None, None, BOOM, BOOM, None]
    assert [(one.started_at - begun).total_seconds() for one in found] == [0, 1, 2, 3, 4]
    assert [(one.ended_at - one.started_at).total_seconds() for one in found if one.ended_at] == [1, 1, 1, 1, 0]
    assert {one.worker_id for one in found} == {driver.worker_id}


@pytest.mark.parametrize("paused", [False, True])
def test_one_whose_worker_was_lost_ends_as_lost(
    store: InMemoryExecutionStore, driver: StoreDriver, clock: ManualClock, paused: bool
) -> None:
    execution = driver.start(single())
    other = StoreDriver(store, clock=clock, lease_seconds=5)
    other.claim(execution, "only")
    if paused:
        driver.pause(execution)
    clock.advance(6)
    driver.sweep()
    (lost,) = store.get_attempts(execution, "only")
    assert (lost.ended_as, lost.worker_id, lost.ended_at) == ("lost", other.worker_id, clock())


def test_one_that_is_cancelled_or_reset_ends_as_that(store: InMemoryExecutionStore, driver: StoreDriver) -> None:
    execution = driver.start(graph("two", {"a": [], "b": ["a"], "c": []}))
    driver.run(execution, "a", Outcome.FAILED, taken=("b",))
    driver.claim(execution, "b")
    driver.run(execution, "c", Outcome.FAILED)
    driver.retry(execution)
    driver.claim(execution, "c")
    driver.cancel(execution)
    assert told(store.get_attempts(execution, "b")) == [(1, "reset")]
    assert told(store.get_attempts(execution, "c")) == [(1, "failed"), (1, "cancelled")]


def test_each_item_has_attempts_of_its_own(store: InMemoryExecutionStore, driver: StoreDriver) -> None:
    execution = driver.start(single())
    driver.fan_out(execution, "only", ["x", "y"])
    driver.run(execution, "only", Outcome.SKIPPED, item=2)
    assert told(store.get_attempts(execution, "only")) == [(1, "waiting")]
    assert store.get_attempts(execution, "only", 1) == []
    assert told(store.get_attempts(execution, "only", 2)) == [(1, "skipped")]
