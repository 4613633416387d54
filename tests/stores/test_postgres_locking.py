"""What Postgres makes possible and must not show: writers that lock the same rows in any order, and late commits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from spanloom.engine.store.requests import (
    Claim,
    NodeKey,
    Outcome,
    RecordRequest,
    RecordResult,
)
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.postgres import connections as postgres_connections
from spanloom.stores.postgres.store import PostgresExecutionStore
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.workflows import fan, graph
from stores.racing import by_node, claimed, completed, quietly
from support.forms import FORMS, open_form
from support.postgres import until_blocked

ROUNDS = 15


@pytest.fixture(params=[pytest.param(form, marks=pytest.mark.one_in(3)) for form in FORMS])
def store(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[Any]:
    """A store of each form of the hot transitions, and both on one database: one for each test in every run."""
    with open_form(request.param, postgres_url) as store:
        yield store


@pytest.fixture
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a deadlock show instead of being retried."""
    monkeypatch.setattr(postgres_connections, "CONFLICT_RETRIES", 0)


@pytest.mark.usefixtures("no_second_try")
def test_batches_over_the_same_executions_in_opposite_orders_never_deadlock(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    store.save_workflow(fan(4))
    for _ in range(ROUNDS):
        # given four executions whose branches are all queued
        executions = [driver.start("fan") for _ in range(4)]
        driver.jobs.clear()
        for execution in executions:
            driver.run(execution, "split")
        driver.jobs.clear()
        # when four workers claim one branch of each, then record them, each in another order
        shares = [[NodeKey(one, f"w{number}") for one in executions] for number in range(1, 5)]
        shares = [share if number % 2 else share[::-1] for number, share in enumerate(shares)]
        claims = race([partial(claimed, store, driver, share) for share in shares])
        answers = race([partial(store.record, completed(driver, some[::-1])) for some in claims])
        # then every join is ready exactly once
        assert all(answer.recorded for some in answers for answer in some)
        ready = [job.execution_id for some in answers for answer in some for job in answer.jobs]
        assert sorted(ready) == sorted(executions)


@pytest.mark.usefixtures("no_second_try")
def test_siblings_that_fail_or_end_at_once_beside_control_and_sweep_never_deadlock(
    store: PostgresExecutionStore,
) -> None:
    driver = StoreDriver(store)
    sinks = {f"s{number}": list[str]() for number in range(4)}
    store.save_workflow(graph("sinks", sinks))
    for _ in range(ROUNDS):
        # given two executions, each with four claimed nodes
        first, second = (driver.start("sinks") for _ in range(2))
        driver.jobs.clear()
        claims = {one: dict(by_node(store, driver, one, list(sinks))) for one in (first, second)}
        batches = [
            [driver.outcome(one, claims[one][name], Outcome.FAILED) for one in (first, second)] for name in sinks
        ]
        # when all fail at once, while others sweep and cancel
        calls: list[Callable[[], object]] = [partial(store.record, batch) for batch in batches]
        calls += [partial(store.sweep, heads={}, epoch=0), partial(quietly, driver.cancel, second)]
        race(calls)
        # then each fails once, or was cancelled
        ended = store.get_execution(first)
        assert ended is not None
        assert ended.status is ExecutionStatus.FAILED
        assert [event.kind for event in store.get_events(first)].count("execution.failed") == 1


@pytest.mark.usefixtures("no_second_try")
def test_items_of_several_nodes_that_end_in_opposite_orders_never_deadlock(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    store.save_workflow(graph("maps", {"a": [], "b": []}))
    for _ in range(ROUNDS):
        # given two executions with two mapped nodes each, all of whose items are claimed
        executions = [driver.start("maps") for _ in range(2)]
        driver.jobs.clear()
        keys = [NodeKey(one, node, item) for one in executions for node in "ab" for item in range(1, 9)]
        for one in executions:
            for node in "ab":
                driver.fan_out(one, node, list(range(8)), tolerated_failures=8)
        claims = claimed(store, driver, keys)
        # when four workers record every fourth of them, each in another order, while others sweep and look
        shares = [claims[number::4] for number in range(4)]
        shares = [share if number % 2 else share[::-1] for number, share in enumerate(shares)]
        answers: list[RecordResult] = []
        calls: list[Callable[[], object]] = [
            *(partial(_record_into, answers, store, completed(driver, share)) for share in shares),
            partial(store.sweep, heads={}, epoch=0),
            partial(store.claim, keys[::-1], worker_id=driver.worker_id),
        ]
        race(calls)
        # then each node's own run is ready exactly once
        ready = [(job.execution_id, job.node_id, job.item) for one in answers for job in one.jobs]
        assert sorted(ready) == sorted((one, node, 0) for one in executions for node in "ab")


def _record_into(answers: list[RecordResult], store: PostgresExecutionStore, records: list[RecordRequest]) -> None:
    answers.extend(store.record(records))


@pytest.mark.usefixtures("no_second_try")
def test_families_under_control_while_their_children_start_and_end_never_deadlock(
    store: PostgresExecutionStore,
) -> None:
    driver = StoreDriver(store)
    nodes = [f"n{number}" for number in range(6)]
    store.save_workflow(graph("family", {name: list[str]() for name in nodes}))
    store.save_workflow(graph("one", {"only": []}))
    for number in range(ROUNDS):
        # given an execution with three children whose last runs are claimed, and three runs that ask for one
        parent = driver.start("family")
        children = [driver.start_child(parent, name, "one") for name in nodes[:3]]
        driver.jobs.clear()
        ends = [driver.outcome(one, driver.claim(one, "only"), Outcome.FAILED) for one in children]
        starts = [driver.waiting_for_child(parent, driver.claim(parent, name), request("one")) for name in nodes[3:]]
        # when all that happens while the family is paused, resumed, swept and, every other time, cancelled
        calls: list[Callable[[], object]] = [
            *(partial(_end_and_tell, driver, record) for record in ends),
            *(partial(driver.send, record) for record in starts),
            partial(quietly, driver.pause, parent),
            partial(quietly, driver.resume, parent),
            partial(quietly, driver.retry, children[0]),
            partial(store.sweep, heads={}, epoch=0),
        ]
        if number % 2:
            calls.append(partial(quietly, driver.cancel, parent))
        race(calls)
        # then nobody waits for a child that has ended
        quietly(driver.resume, parent)
        driver.sweep_all()
        for run in store.get_node_results(parent):
            child = store.get_execution(run.wait_key) if run.status == "waiting" and run.wait_key else None
            assert child is None or not child.status.ended, (run, child)


def _end_and_tell(driver: StoreDriver, record: RecordRequest) -> None:
    if driver.send(record).ended is not None:
        driver.wake(record.execution_id)


def test_a_call_that_lost_to_a_deadlock_is_made_again(
    store: PostgresExecutionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = StoreDriver(store)
    execution = driver.start(graph("one", {"only": []}))
    conflicts: list[Exception] = [
        psycopg.errors.DeadlockDetected("lost"),
        psycopg.errors.SerializationFailure("lost"),
    ]
    for name in ("_call", "_step"):  # a function's, and that of a step in Python
        _lose(monkeypatch, name, conflicts)
    assert isinstance(driver.try_claim(execution, "only"), Claim)
    assert conflicts == []


def _lose(patch: pytest.MonkeyPatch, name: str, conflicts: list[Exception]) -> None:
    run = getattr(postgres_connections.PostgresConnections, name)

    def lose_some(*given: object) -> object:
        if conflicts:
            raise conflicts.pop()
        return run(*given)

    patch.setattr(postgres_connections.PostgresConnections, name, lose_some)


def test_a_claim_waits_for_a_row_that_a_sweep_holds(store: PostgresExecutionStore, postgres_url: str) -> None:
    driver = StoreDriver(store)
    execution = driver.start(graph("one", {"only": []}))
    answers: list[object] = []
    with psycopg.connect(postgres_url) as holder:
        holder.execute("select from spanloom.node_runs where execution_id = %s for update", [execution])
        claiming = threading.Thread(target=lambda: answers.append(driver.try_claim(execution, "only")))
        claiming.start()
        until_blocked(postgres_url)
        assert answers == []
    claiming.join(10)
    assert isinstance(answers[0], Claim)


def test_a_claim_sent_again_while_the_first_is_under_way_gets_the_same_answer(
    store: PostgresExecutionStore, postgres_url: str
) -> None:
    driver = StoreDriver(store)
    key = NodeKey(driver.start(graph("one", {"only": []})), "only")
    answers: list[object] = []
    with psycopg.connect(postgres_url) as holder:
        holder.execute("select from spanloom.node_runs where execution_id = %s for update", [key.execution_id])
        claim = partial(store.claim, [key], worker_id=driver.worker_id, token="t")
        claiming = [threading.Thread(target=lambda: answers.extend(claim())) for _ in range(2)]
        for one in claiming:
            one.start()
        until_blocked(postgres_url, 2)
    for one in claiming:
        one.join(10)
    first, second = answers
    assert isinstance(first, Claim)
    assert second == first


def test_a_sweep_passes_over_rows_that_are_held(store: PostgresExecutionStore, postgres_url: str) -> None:
    driver = StoreDriver(store)
    execution = driver.start(graph("one", {"only": []}))
    with psycopg.connect(postgres_url) as holder:
        holder.execute("select from spanloom.executions where id = %s for no key update", [execution])
        assert store.sweep(heads={}, epoch=1).moved == {}
    assert store.sweep(heads={}, epoch=1).moved == {"lost_redis": 1}


def test_rows_that_others_hold_are_no_reason_to_come_back_at_once(
    store: PostgresExecutionStore, postgres_url: str
) -> None:
    # given more delayed starts, deadlines and lost jobs than one pass looks at, of which all but the first are held
    clock = ManualClock()
    driver = StoreDriver(store, clock=clock)
    store.save_workflow(graph("one", {"only": []}))
    free = driver.start("one", delay_seconds=0.5)
    held = [driver.start("one", delay_seconds=1) for _ in range(4)]
    held += [driver.start("one", deadline_seconds=1) for _ in range(4)]
    clock.advance(60)
    with psycopg.connect(postgres_url) as holder:
        holder.execute("select from spanloom.executions where id = any(%s::uuid[]) for no key update", [held])
        # when a pass comes to the free one, then it asks for another, and that one gets nowhere
        passes = [store.sweep(heads={}, epoch=1, limit=3, now=clock()) for _ in range(2)]
        assert [job.execution_id for swept in passes for job in swept.jobs] == [free]
        assert [swept.more for swept in passes] == [True, False]
    # then all is found once nobody holds it
    driver.sweep_all()
    assert {job.execution_id for job in driver.jobs} >= set(held)


def test_an_event_of_a_lower_transaction_that_commits_later_is_not_passed_over(store: PostgresExecutionStore) -> None:
    # given an execution with two branches, and a reader who has read all there is
    driver = StoreDriver(store)
    store.save_workflow(fan(2))
    execution = driver.start("fan")
    driver.run(execution, "split")
    cursor = store.get_events(execution)[-1].cursor
    started, release = threading.Event(), threading.Event()

    def slowly() -> None:
        with store.transaction():
            driver.claim(execution, "w1")
            started.set()
            assert release.wait(10)

    # when an older transaction is still open, and a younger one commits
    older = threading.Thread(target=slowly)
    older.start()
    assert started.wait(10)
    try:
        driver.claim(execution, "w2")
        # then the younger one's events wait
        assert store.get_events(execution, after=cursor) == []
    finally:
        release.set()
        older.join(10)
    # and a reader sees both, the older first
    assert [event.node_id for event in store.get_events(execution, after=cursor)] == ["w1", "w2"]


def test_two_executions_failing_in_one_batch_fail_both(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    store.save_workflow(graph("one", {"only": []}))
    executions = [driver.start("one") for _ in range(3)]
    nodes = claimed(store, driver, [NodeKey(one, "only") for one in executions])
    outcomes = [Outcome.FAILED, Outcome.COMPLETED, Outcome.FAILED]
    answers = store.record([driver.outcome(*pair, outcome) for pair, outcome in zip(nodes, outcomes, strict=True)])
    assert [answer.ended for answer in answers] == ["failed", "completed", "failed"]


def test_a_run_in_an_old_backlog_is_looked_at_once_a_minute(store: PostgresExecutionStore) -> None:
    clock = ManualClock()
    StoreDriver(store, clock=clock).start(graph("one", {"only": []}))
    head = clock()
    clock.advance(3600)
    assert list(store.sweep(heads={"default": head}, epoch=0, now=clock()).jobs) == []
    assert store.next_due() == clock() + timedelta(minutes=1)
