"""Conformance: the common rules of pausing, resuming, cancelling and retrying an execution."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from spanloom.engine.errors import InvalidTransition, StaleVersion, UnknownExecution
from spanloom.engine.store.models import Execution
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import ControlResult, Outcome
from spanloom.testing.clock import ManualClock
from spanloom.testing.conformance.reading.seen import everything_of, execution_of, status_of
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.workflows import diamond

__all__ = ["Controls"]


def _in_status(driver: StoreDriver, clock: ManualClock, status: str) -> str:
    if status == "pending":
        return driver.start(diamond(), delay_seconds=60)
    execution = driver.start(diamond())
    if status == "completed":
        driver.drain()
    elif status == "failed":
        driver.run(execution, "top", Outcome.FAILED)
    elif status == "paused":
        driver.pause(execution)
    elif status == "cancelled":
        driver.cancel(execution)
    return execution


_EACH_CONTROL = pytest.mark.parametrize(
    ("control", "from_status"),
    [
        (StoreDriver.pause, "running"),
        (StoreDriver.resume, "paused"),
        (StoreDriver.cancel, "running"),
        (StoreDriver.retry, "failed"),
    ],
    ids=["pause", "resume", "cancel", "retry"],
)


class Controls:
    """The common rules of pause, resume, cancel and retry."""

    @pytest.mark.parametrize(
        ("control", "status"),
        [
            *((StoreDriver.pause, status) for status in ("pending", "completed", "failed", "cancelled")),
            *((StoreDriver.resume, status) for status in ("pending", "completed", "failed", "cancelled")),
            *((StoreDriver.cancel, status) for status in ("completed", "failed")),
            *((StoreDriver.retry, status) for status in ("pending", "running", "paused", "completed", "cancelled")),
        ],
    )
    def test_what_the_state_forbids_is_refused_and_writes_nothing(
        self,
        store: ExecutionStore,
        driver: StoreDriver,
        clock: ManualClock,
        control: Callable[[StoreDriver, str], ControlResult],
        status: str,
    ) -> None:
        execution = _in_status(driver, clock, status)
        assert status_of(store, execution) == status
        before = everything_of(store, execution)
        with pytest.raises(InvalidTransition) as refused:
            control(driver, execution)
        assert execution in str(refused.value)
        assert everything_of(store, execution) == before

    @_EACH_CONTROL
    @pytest.mark.parametrize("unknown", [str(uuid.UUID(int=7)), "no such thing"])
    def test_an_unknown_execution_is_refused(
        self, driver: StoreDriver, control: Callable[[StoreDriver, str], ControlResult], from_status: str, unknown: str
    ) -> None:
        with pytest.raises(UnknownExecution):
            control(driver, unknown)

    @_EACH_CONTROL
    def test_another_than_the_expected_revision_is_refused(
        self,
        store: ExecutionStore,
        driver: StoreDriver,
        clock: ManualClock,
        control: Callable[..., ControlResult],
        from_status: str,
    ) -> None:
        execution = _in_status(driver, clock, from_status)
        found = execution_of(store, execution)
        before = everything_of(store, execution)
        with pytest.raises(StaleVersion) as refused:
            control(driver, execution, expected_revision=found.revision + 1)
        assert (refused.value.expected, refused.value.actual) == (found.revision + 1, found.revision)
        assert isinstance(refused.value.current, Execution)
        assert everything_of(store, execution) == before
        answer = control(driver, execution, expected_revision=found.revision)
        assert (answer.done, answer.revision) == (True, found.revision + 1)
        assert execution_of(store, execution).revision == answer.revision

    @_EACH_CONTROL
    def test_its_event_tells_the_revision(
        self,
        store: ExecutionStore,
        driver: StoreDriver,
        clock: ManualClock,
        control: Callable[[StoreDriver, str], ControlResult],
        from_status: str,
    ) -> None:
        execution = _in_status(driver, clock, from_status)
        answer = control(driver, execution)
        kind = {"running": ("execution.paused", "execution.cancelled"), "paused": ("execution.resumed",)}
        wanted = kind.get(from_status, ("execution.retried",))
        (event,) = [event for event in store.get_events(execution) if event.kind in wanted]
        assert event.kind == "execution.cancelled" or event.data["revision"] == answer.revision

    @_EACH_CONTROL
    def test_one_of_two_that_act_at_once_on_what_they_read_is_refused(
        self,
        store: ExecutionStore,
        driver: StoreDriver,
        clock: ManualClock,
        control: Callable[..., ControlResult],
        from_status: str,
    ) -> None:
        execution = _in_status(driver, clock, from_status)
        revision = execution_of(store, execution).revision

        def act() -> bool:
            try:
                return control(driver, execution, expected_revision=revision).done
            except (StaleVersion, InvalidTransition):
                return False

        assert sum(race([act] * 4)) == 1
        assert execution_of(store, execution).revision == revision + 1
