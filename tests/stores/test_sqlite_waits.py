"""What a record of a wait may ask of a SQLite store, and what one that is sent again is answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from spanloom.engine.errors import IdempotencyConflict, StoreRefused
from spanloom.engine.records import FanOut, Outcome
from spanloom.engine.states import NodeStatus, WaitKind
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, graph, single


@pytest.fixture
def store() -> InMemoryExecutionStore:
    return InMemoryExecutionStore()


@pytest.fixture
def driver(store: InMemoryExecutionStore) -> StoreDriver:
    return StoreDriver(store)


@pytest.mark.parametrize(
    "asked",
    [
        {"wait_kind": WaitKind.RETRY},
        {"wait_kind": WaitKind.CHILD, "wait_key": "child"},
        {"wait_kind": WaitKind.ITEMS},
        {"wait_kind": WaitKind.ITEMS, "fan_out": FanOut((), 1, 0)},
    ],
)
def test_a_wait_for_nothing_is_refused(
    store: InMemoryExecutionStore, driver: StoreDriver, asked: dict[str, Any]
) -> None:
    execution = driver.start(single())
    node = driver.claim(execution, "only")
    with pytest.raises(StoreRefused, match=f"'only', item 0, of execution {execution} can't wait for"):
        driver.record(execution, node, Outcome.WAITING, **asked)
    assert store.get_node_results(execution)[0].status is NodeStatus.RUNNING
    assert driver.record(execution, node).ended


def test_an_item_is_not_mapped_again(driver: StoreDriver) -> None:
    execution = driver.start(single())
    driver.fan_out(execution, "only", ["x"])
    with pytest.raises(StoreRefused, match=r"'only', item 1, of execution .* can't wait for items"):
        driver.send(driver.fanning_out(execution, driver.claim(execution, "only", 1), ["y"]))


def test_a_child_that_was_started_before_is_refused(store: InMemoryExecutionStore, driver: StoreDriver) -> None:
    parent, other = driver.start(chain(2)), driver.start(single())
    wanted = replace(request("single"), execution_id=other)
    with pytest.raises(StoreRefused, match=f"can't start execution {other} as its child"):
        driver.send(driver.waiting_for_child(parent, driver.claim(parent, "n1"), wanted))
    assert store.get_child_executions(parent) == []


def test_a_child_whose_key_is_used_is_refused(driver: StoreDriver) -> None:
    parent = driver.start(chain(2))
    used = driver.start(single(), idempotency_key="k", input_hash="h")
    node = driver.claim(parent, "n1")
    for input_hash, error in (("h", StoreRefused), ("other", IdempotencyConflict)):
        wanted = request("single", idempotency_key="k", input_hash=input_hash)
        with pytest.raises(error, match=used):
            driver.send(driver.waiting_for_child(parent, node, wanted))


def test_a_node_that_is_mapped_anew_forgets_its_earlier_items(
    store: InMemoryExecutionStore, driver: StoreDriver
) -> None:
    execution = driver.start(single())
    driver.fan_out(execution, "only", ["a", "b", "c"])
    for item in (1, 2, 3):
        driver.run(execution, "only", item=item)
    driver.fan_out(execution, "only", ["x", "y"])
    assert [(run.item, run.status) for run in store.get_node_results(execution)] == [
        (0, NodeStatus.WAITING),
        (1, NodeStatus.QUEUED),
        (2, NodeStatus.QUEUED),
    ]
    assert [driver.claim(execution, "only", item).data for item in (1, 2)] == ['"x"', '"y"']


def test_a_wait_that_is_sent_again_after_its_run_was_reset_is_stale(driver: StoreDriver) -> None:
    execution = driver.start(graph("two", {"a": [], "b": ["a"], "c": []}))
    driver.run(execution, "a", Outcome.FAILED, taken=("b",))
    node = driver.claim(execution, "b")
    wait = driver.outcome(execution, node, Outcome.WAITING, wait_kind=WaitKind.TIMER, delay_seconds=9)
    assert driver.send(wait).recorded
    assert driver.send(wait).recorded
    driver.run(execution, "c", Outcome.FAILED)
    driver.retry(execution)
    assert not driver.send(wait).recorded


def test_a_chain_costs_no_statement_for_what_it_does_not_use(
    store: InMemoryExecutionStore, driver: StoreDriver
) -> None:
    statements: list[str] = []
    driver.start(chain(50))
    driver.drain()
    driver.start("chain")
    store._live().raw_writer.set_trace_callback(statements.append)
    driver.drain()
    store._live().raw_writer.set_trace_callback(None)
    assert sum("INTO node_results" in one for one in statements) == 50
    assert len(statements) / 50 < 8.5  # begin, run, row out, row in, result, two events, commit
