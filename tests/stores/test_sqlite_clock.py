"""The machine's clock under a SQLite store: a step of it is noticed, and costs no worker its lease."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome
from spanloom.stores import InMemoryExecutionStore, SqliteExecutionStore
from spanloom.stores.sqlite import clock_steps
from spanloom.stores.sqlite.clock_steps import ClockSteps
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain

HOUR = 3600

pytestmark = pytest.mark.skipif(ClockSteps()._boot is None, reason="a boot has no id here")


class Clock:
    """A machine's clocks: `set` steps one of them, `pass_` lets time go by on both."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._real, self._steady = time.time_ns(), time.monotonic_ns()
        patch.setattr(clock_steps.time, "time_ns", lambda: self._real)
        patch.setattr(clock_steps.time, "monotonic_ns", lambda: self._steady)
        patch.setattr(clock_steps.time, "clock_gettime_ns", lambda clock: self._steady)

    def set(self, seconds: float) -> None:
        self._real += int(seconds * 1e9)

    def pass_(self, seconds: float) -> None:
        self._steady += int(seconds * 1e9)
        self.set(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[ExecutionStore]:
    store = SqliteExecutionStore(tmp_path / "store.db") if request.param == "file" else InMemoryExecutionStore()
    store.migrate()
    yield store
    store.close()


@pytest.mark.parametrize("step", [HOUR, -HOUR, 24 * HOUR, 3])
def test_a_step_takes_no_worker_its_lease_and_keeps_none_alive(store: ExecutionStore, clock: Clock, step: int) -> None:
    # given a worker that runs a node, one that is dead, and nothing else
    driver, dead = StoreDriver(store, lease_seconds=15), StoreDriver(store, lease_seconds=15)
    execution, other = driver.start(chain(2)), driver.start("chain")
    node, _ = driver.claim(execution, "n1"), dead.claim(other, "n1")
    # when the clock is set
    clock.set(step)
    with structlog.testing.capture_logs() as lines:
        moved = store.sweep(heads={}, epoch=0).moved
        # then nobody lost anything, and the step was logged once
        assert moved == {}
    assert [(line["event"], line["seconds"]) for line in lines] == [("clock_stepped", step)]
    assert driver.record(execution, node, Outcome.COMPLETED).recorded
    # and the dead one's node goes to others as soon as without a step
    clock.pass_(14)
    assert store.renew_lease(driver.worker_id, lease_seconds=15)
    assert "lost_worker" not in store.sweep(heads={}, epoch=0).moved
    clock.pass_(2)
    assert store.sweep(heads={}, epoch=0).moved.get("lost_worker") == 1


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_retry_is_due_after_its_delay_whatever_the_clock_shows(
    store: ExecutionStore, clock: Clock, step: int
) -> None:
    driver = StoreDriver(store)
    execution = driver.start(chain(2))
    driver.record(execution, driver.claim(execution, "n1"), Outcome.RETRY, delay_seconds=10)
    clock.set(step)
    assert store.sweep(heads={}, epoch=0).moved == {}
    clock.pass_(11)
    assert store.sweep(heads={}, epoch=0).moved == {"retry": 1}


def test_a_delay_and_a_deadline_are_read_off_the_clock(store: ExecutionStore, clock: Clock) -> None:
    driver = StoreDriver(store)
    driver.start(chain(2), delay_seconds=HOUR)
    driver.start("chain", deadline_seconds=HOUR)
    clock.set(HOUR + 1)
    moved = store.sweep(heads={}, epoch=0).moved
    assert (moved["start"], moved["deadline"]) == (1, 1)


def test_a_step_is_made_up_for_by_one_of_several_processes(tmp_path: Path, clock: Clock) -> None:
    stores = [SqliteExecutionStore(tmp_path / "store.db") for _ in range(3)]
    for store in stores:
        store.migrate()
        StoreDriver(store).start(chain(1))
    before = stores[0].list_workers(now=datetime(2020, 1, 1, tzinfo=UTC))
    clock.set(HOUR)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            for store in stores:
                store.save_workflow(chain(1))
    assert [line["event"] for line in lines] == ["clock_stepped"]
    after = stores[0].list_workers(now=datetime(2020, 1, 1, tzinfo=UTC))
    moves = {now.lease_until - then.lease_until for now, then in zip(after, before, strict=True)}
    assert moves == {timedelta(seconds=HOUR)}
    for store in stores:
        store.close()


def test_a_boot_is_no_step(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with structlog.testing.capture_logs() as lines:
        for boot in (1, 2):
            monkeypatch.setattr(clock_steps, "_boot_number", lambda boot=boot: boot)
            store = SqliteExecutionStore(tmp_path / "store.db")
            store.migrate()
            StoreDriver(store).start(chain(1))
            store.close()
            clock.set(-HOUR)
    assert lines == []


def test_a_step_in_a_transaction_that_is_rolled_back_is_made_up_for_by_the_next(
    store: ExecutionStore, clock: Clock
) -> None:
    driver = StoreDriver(store)
    execution = driver.start(chain(2))
    node = driver.claim(execution, "n1")
    clock.set(HOUR)
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.save_workflow(chain(3))
        raise ZeroDivisionError
    assert driver.record(execution, node).recorded
    assert [worker.worker_id for worker in store.list_workers()] == [driver.worker_id]


def test_a_sleep_of_the_machine_is_no_step(store: ExecutionStore, clock: Clock) -> None:
    StoreDriver(store).start(chain(1))
    with structlog.testing.capture_logs() as lines:
        clock.pass_(HOUR)
        store.save_workflow(chain(2))
    assert lines == []


def test_a_process_that_stands_still_between_two_readings_sees_no_step(
    store: ExecutionStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    StoreDriver(store).start(chain(1))
    # given a process that is stopped for a minute just after it has read one clock, twice
    read, stops = clock_steps.time.time_ns, iter([60, 60])

    def stopped_after() -> int:
        now = read()
        clock.pass_(next(stops, 0))
        return now

    monkeypatch.setattr(clock_steps.time, "time_ns", stopped_after)
    with structlog.testing.capture_logs() as lines:
        store.save_workflow(chain(2))
    assert lines == []
