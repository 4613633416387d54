"""Workers and operators at once on Postgres, of both forms: no deadlock, nothing is lost, each end comes once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from spanloom.engine.store.requests import ControlAction, NodeClaim, NodeKey, Outcome
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.postgres import connections as postgres_connections
from spanloom.stores.postgres.store import PostgresExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.workflows import fan, graph
from stores.racing import by_node, claimed, completed, quietly, record_each, run_all
from support.forms import FORMS, open_form

ROUNDS = 15
WIDTH = 100


@pytest.fixture(params=[pytest.param(form, marks=pytest.mark.one_in(3)) for form in FORMS])
def store(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[Any]:
    """A store of each form of the hot transitions, and both on one database: one for each test in every run."""
    with open_form(request.param, postgres_url) as store:
        yield store


@pytest.fixture(autouse=True)
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a deadlock show instead of being retried."""
    monkeypatch.setattr(postgres_connections, "CONFLICT_RETRIES", 0)


def test_a_wide_join_under_control_gets_every_input_and_ends_once(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    branches = [f"w{number}" for number in range(1, WIDTH + 1)]
    store.save_workflow(fan(WIDTH))
    for number in range(3):
        # given a hundred claimed branches
        execution = driver.start("fan")
        driver.run(execution, "split")
        claims = dict(by_node(store, driver, execution, branches))
        # when eight workers record them in lots, some to be tried again or given back, beside pause, resume and sweep
        outcomes = [Outcome.RETRY if at % 10 == 3 else Outcome.RELEASED if at % 10 == 7 else Outcome.COMPLETED
                    for at in range(WIDTH)]  # fmt: skip
        records = [
            driver.outcome(execution, claims[name], outcome) for name, outcome in zip(branches, outcomes, strict=True)
        ]
        lots = [records[at::8] for at in range(8)]
        calls: list[Callable[[], object]] = [
            *(partial(record_each, store, lot if at % 2 else lot[::-1]) for at, lot in enumerate(lots)),
            partial(quietly, driver.pause, execution),
            partial(quietly, driver.resume, execution),
            partial(store.sweep, heads={}, epoch=number),
        ]
        race(calls)
        # then what is left runs, the join once and with all its inputs, and the execution completes
        quietly(driver.resume, execution)
        assert run_all(driver, store, execution) == [ExecutionStatus.COMPLETED]
        kinds = [(event.kind, event.node_id) for event in store.get_events(execution)]
        assert kinds.count(("execution.completed", None)) == 1
        assert all(kinds.count(("node.completed", name)) == 1 for name in (*branches, "join"))


def test_siblings_that_fail_while_it_is_retried_fail_it_once_each_time(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    sinks = [f"s{number}" for number in range(6)]
    store.save_workflow(graph("sinks", {name: list[str]() for name in sinks}))
    for _ in range(ROUNDS):
        # given six claimed siblings
        execution = driver.start("sinks")
        claims = dict(by_node(store, driver, execution, sinks))
        outcomes = [Outcome.FAILED if at % 2 else Outcome.COMPLETED for at in range(len(sinks))]
        records = [
            driver.outcome(execution, claims[name], outcome) for name, outcome in zip(sinks, outcomes, strict=True)
        ]
        # when half of them fail, while others retry it
        calls: list[Callable[[], object]] = [partial(store.record, [record]) for record in records]
        calls += [partial(quietly, driver.retry, execution)] * 2
        race(calls)
        # then each failure was followed by one retry at most, and it completes once what failed is done again
        while (seen := store.get_execution(execution)) is not None and seen.status is ExecutionStatus.FAILED:
            driver.retry(execution)
        assert run_all(driver, store, execution) == [ExecutionStatus.COMPLETED]
        # in the order in which they were written: a cursor's transaction may have its number before it waits for a lock
        told = sorted(store.get_events(execution), key=lambda event: int(event.cursor.partition(":")[2]))
        kinds = [event.kind for event in told]
        changes = [kind for kind in kinds if kind in ("execution.failed", "execution.retried")]
        assert changes == ["execution.failed", "execution.retried"] * (len(changes) // 2)
        assert kinds.count("execution.completed") == 1


def test_control_of_many_in_opposite_orders_beside_records_never_deadlocks(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    store.save_workflow(fan(4))
    for _ in range(ROUNDS // 3):
        # given six executions with four claimed branches each
        executions = [driver.start("fan") for _ in range(6)]
        claims: list[tuple[str, NodeClaim]] = []
        for execution in executions:
            driver.run(execution, "split")
            claims += claimed(store, driver, [NodeKey(execution, f"w{number}") for number in range(1, 5)])
        records = completed(driver, claims)
        # when four workers record a branch of each, and all are paused and resumed, each time in another order
        orders = [executions, executions[::-1]]
        calls: list[Callable[[], object]] = [partial(store.record, records[number::4]) for number in range(4)]
        calls += [
            partial(store.control_executions, action, order)
            for action in (ControlAction.PAUSE, ControlAction.RESUME)
            for order in orders
        ]
        race(calls)
        # then each runs its join, and completes, once
        store.control_executions(ControlAction.RESUME, executions)
        for execution in executions:
            assert run_all(driver, store, execution) == [ExecutionStatus.COMPLETED]
            kinds = [(event.kind, event.node_id) for event in store.get_events(execution)]
            assert kinds.count(("node.completed", "join")) == kinds.count(("execution.completed", None)) == 1
