"""Conformance: a hold is no push: a held run keeps its push number, has its cause in the event, and no record."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Outcome
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, fan

__all__ = ["Holds"]


def _release(store: ExecutionStore, clock: ManualClock, execution: str) -> str:
    driver = StoreDriver(store, clock=clock)
    node = driver.claim(execution, "n1")
    driver.pause(execution)
    assert list(driver.record(execution, node, Outcome.RELEASED).jobs) == []
    return "released"


def _retire(store: ExecutionStore, clock: ManualClock, execution: str) -> str:
    driver = StoreDriver(store, clock=clock)
    driver.claim(execution, "n1")
    driver.pause(execution)
    assert store.unregister_worker(driver.worker_id, now=clock()) == []
    return "retired"


def _lose(store: ExecutionStore, clock: ManualClock, execution: str) -> str:
    driver = StoreDriver(store, clock=clock, lease_seconds=5)
    driver.claim(execution, "n1")
    driver.pause(execution)
    clock.advance(6)
    assert list(driver.sweep().jobs) == []
    return "lost_worker"


class Holds:
    """Runs that are ready in an execution that is not running."""

    @pytest.mark.parametrize("hold", [_release, _retire, _lose], ids=lambda hold: hold.__name__.strip("_"))
    def test_a_hold_names_its_cause_and_raises_no_push_number(
        self,
        store: ExecutionStore,
        driver: StoreDriver,
        clock: ManualClock,
        hold: Callable[[ExecutionStore, ManualClock, str], str],
    ) -> None:
        execution = driver.start(chain(2))
        because = hold(store, clock, execution)
        event = store.get_events(execution)[-1]
        assert (event.kind, event.node_id, event.data) == ("node.held", "n1", {"because": because})
        assert [(job.node_id, job.push) for job in driver.resume(execution).jobs] == [("n1", 2)]

    def test_what_was_resumed_is_no_job_of_a_record_that_is_sent_again(self, driver: StoreDriver) -> None:
        # given a record whose successor is held and resumed before its answer arrives
        execution = driver.start(chain(2))
        record = driver.outcome(execution, driver.claim(execution, "n1"))
        assert len(driver.send(record).jobs) == 1
        driver.pause(execution)
        assert len(driver.resume(execution).jobs) == 1
        # then the resume pushes it
        answer = driver.send(record)
        assert (answer.recorded, list(answer.jobs)) == (True, [])

    def test_what_was_retried_is_no_job_of_a_record_that_is_sent_again(self, driver: StoreDriver) -> None:
        # given a record whose successors are queued when one of them fails the execution
        execution = driver.start(fan(2))
        record = driver.outcome(execution, driver.claim(execution, "split"))
        driver.send(record)
        driver.run(execution, "w1", Outcome.FAILED)
        driver.retry(execution)
        answer = driver.send(record)
        assert (answer.recorded, list(answer.jobs)) == (True, [])

    def test_what_becomes_ready_held_is_no_job_of_its_record_either(self, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        record = driver.outcome(execution, driver.claim(execution, "n1"))
        driver.pause(execution)
        assert list(driver.send(record).jobs) == []
        assert len(driver.resume(execution).jobs) == 1
        assert list(driver.send(record).jobs) == []
