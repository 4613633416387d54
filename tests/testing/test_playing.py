"""The clock, the driver, the races and the small workflows that store tests are written with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from spanloom.engine.errors import UnknownWorkflow
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeClaim
from spanloom.engine.store.states import ExecutionStatus
from spanloom.engine.workflow.definitions import Workflow
from spanloom.engine.workflow.validation import edges
from spanloom.stores import open_store
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.workflows import chain, diamond, fan, single


@pytest.fixture
def store() -> Iterator[ExecutionStore]:
    store = open_store("memory://")
    yield store
    store.close()


def test_a_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    assert clock() == clock() == datetime(2030, 1, 1, tzinfo=UTC)
    assert clock.advance(1.5) == clock() == datetime(2030, 1, 1, 0, 0, 1, 500000, tzinfo=UTC)


def test_a_clock_refuses_a_time_without_a_zone() -> None:
    with pytest.raises(ValueError, match="aware"):
        ManualClock(datetime(2030, 1, 1))  # noqa: DTZ001 (that is the point)


@pytest.mark.parametrize(
    ("workflow", "wanted"),
    [
        (single(), {("$start", "only"), ("only", "$end")}),
        (chain(3), {("$start", "n1"), ("n1", "n2"), ("n2", "n3"), ("n3", "$end")}),
        (
            fan(2),
            {("$start", "split"), ("split", "w1"), ("split", "w2"), ("w1", "join"), ("w2", "join"), ("join", "$end")},
        ),
    ],
    ids=["single", "chain", "fan"],
)
def test_a_small_workflow_has_the_shape_it_says(workflow: Workflow, wanted: set[tuple[str, str]]) -> None:
    assert {(edge.source, edge.target) for edge in edges(workflow)} == wanted


@pytest.mark.parametrize("work_first", [True, False])
def test_a_drain_runs_everything_and_in_order(store: ExecutionStore, work_first: bool) -> None:
    driver = StoreDriver(store)
    execution = driver.start(diamond())
    ran = driver.drain(lambda node: [node.node_id], work_first=work_first)
    assert (ran[0], sorted(ran[1:3]), ran[3]) == ("top", ["left", "right"], "bottom")
    found = store.get_execution(execution)
    assert found is not None
    assert (found.status, found.output) == (ExecutionStatus.COMPLETED, ["bottom"])


def test_what_stands_in_for_a_handler_may_fail(store: ExecutionStore) -> None:
    def work(node: NodeClaim) -> None:
        raise ValueError(f"{node.node_id} is no good")

    driver = StoreDriver(store)
    execution = driver.start(chain(2))
    assert driver.drain(work) == ["n1"]
    found = store.get_execution(execution)
    assert found is not None
    assert found.error == {"node_id": "n1", "type": "ValueError", "message": "n1 is no good"}


def test_a_start_that_is_refused_is_raised(store: ExecutionStore) -> None:
    with pytest.raises(UnknownWorkflow):
        StoreDriver(store).start("unknown")


def test_a_race_makes_its_calls_at_the_same_moment_and_answers_in_order() -> None:
    together = threading.Barrier(5)

    def call(number: int) -> Callable[[], int]:
        def meet() -> int:
            together.wait(10)  # broken unless all five are here
            return number

        return meet

    assert race([call(number) for number in range(5)]) == [0, 1, 2, 3, 4]


def test_a_race_raises_what_one_of_its_calls_raised() -> None:
    def fail() -> int:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        race([lambda: 1, fail])
