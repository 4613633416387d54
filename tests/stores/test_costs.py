"""Behaviour 6: what a join costs a store, in rows and instructions, grows with its parents, not with their square."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine import ExecutionStore
from spanloom.stores import open_store
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import fan
from support.stores import count_work

NARROW, WIDE = 40, 160
TIMES = WIDE / NARROW


@pytest.fixture
def store(store_url: str) -> Iterator[ExecutionStore]:
    store = open_store(store_url)
    store.open()
    yield store
    store.close()


def test_a_join_costs_as_much_for_each_of_its_parents_however_many_there_are(
    store: ExecutionStore, store_url: str
) -> None:
    cost = {width: _cost_of_a_join(store, store_url, width) for width in (NARROW, WIDE)}

    assert cost[NARROW] > NARROW
    assert cost[WIDE] / cost[NARROW] < TIMES * 1.2, cost  # by their square it would be 16


def _cost_of_a_join(store: ExecutionStore, url: str, width: int) -> int:
    """Return the work for the ends of all parents, each recorded by itself, and for the claim of the join."""
    driver = StoreDriver(store)
    execution = driver.start(fan(width, f"fan{width}"))
    driver.run(execution, "split")
    with count_work(store, url) as cost:
        for number in range(1, width + 1):
            driver.run(execution, f"w{number}", data=number)
        joined = driver.claim(execution, "join")
    driver.record(execution, joined)
    return cost()
