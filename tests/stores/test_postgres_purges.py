"""Purging on Postgres beside others who hold, retry, cancel, record or start the same: whole families or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
import pytest

from spanloom.engine.errors import UserError
from spanloom.engine.store.requests import NodeClaim, Outcome, PurgeResult, Replay, StartResult
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.postgres import connections as postgres_connections
from spanloom.stores.postgres.store import PostgresExecutionStore
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.workflows import graph, single
from support.postgres import until_blocked

ROUNDS = 12
ENDED = (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED)
OF_AN_EXECUTION = ("node_runs", "node_results", "node_items", "logs", "spans", "events", "execution_metadata")


@pytest.fixture
def store(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresExecutionStore]:
    monkeypatch.setattr(postgres_connections, "CONFLICT_RETRIES", 0)  # a deadlock shows instead of being retried
    store = PostgresExecutionStore(f"{postgres_url}&options=-clock_timeout%3D20s")  # nor does a wait without end hang
    store.save_workflow(single())
    store.save_workflow(graph("family", {"a": [], "b": [], "c": []}))
    yield store
    store.close()


def _purge(store: PostgresExecutionStore, limit: int = 500) -> PurgeResult:
    later = datetime.now(UTC) + timedelta(hours=1)
    return store.purge_executions(ended_before=later, statuses=ENDED, limit=limit)


def _failed_family(driver: StoreDriver) -> tuple[str, list[str], NodeClaim]:
    """An execution failed with its two children, while a worker still runs its node c."""
    parent = driver.start("family", metadata={"of": "family"})
    children = [driver.start_child(parent, node, "single") for node in "ab"]
    running = driver.claim(parent, "c")
    for child in children:
        driver.run(child, "only", Outcome.FAILED)
        driver.wake(child)
    driver.run(parent, "a", Outcome.FAILED)
    driver.jobs.clear()
    return parent, children, running


def _left(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        counts = {
            name: connection.execute(f"select count(*) from spanloom.{name}").fetchone() for name in OF_AN_EXECUTION
        }
    return {name: count[0] for name, count in counts.items() if count is not None and count[0]}


@pytest.mark.parametrize("held", ["parent", "child"])
def test_a_family_of_which_someone_holds_a_row_is_left_and_goes_another_time(
    store: PostgresExecutionStore, postgres_url: str, held: str
) -> None:
    driver = StoreDriver(store)
    parent, children, _ = _failed_family(driver)
    other = driver.start("single")
    driver.drain()
    with psycopg.connect(postgres_url) as holder:
        one = parent if held == "parent" else children[1]
        holder.execute("select from spanloom.executions where id = %s for key share", [one])
        assert _purge(store) == PurgeResult(executions=1, keys=0)
    assert store.get_execution(other) is None
    assert store.get_execution_count() == 3
    assert _purge(store) == PurgeResult(executions=3, keys=0)
    assert _left(postgres_url) == {}


def test_whoever_asks_for_an_execution_that_is_being_purged_finds_none(
    store: PostgresExecutionStore, postgres_url: str
) -> None:
    driver = StoreDriver(store)
    parent, _, running = _failed_family(driver)
    late = driver.outcome(parent, running, Outcome.FAILED)
    with ThreadPoolExecutor(2) as pool:
        with store.transaction():
            assert _purge(store).executions == 3
            recording = pool.submit(store.record, [late])
            retrying = pool.submit(_quietly, driver.retry, parent)
            until_blocked(postgres_url, 2)
        assert [answer.recorded for answer in recording.result(30)] == [False]
        assert retrying.result(30) is None
    assert _left(postgres_url) == {}


def test_a_family_beside_all_that_may_happen_to_it_goes_whole_or_stays_whole(
    store: PostgresExecutionStore, postgres_url: str
) -> None:
    driver = StoreDriver(store)
    gone = 0
    for number in range(10 * ROUNDS):
        if number >= ROUNDS and gone:
            break
        # given a failed family, and a worker that still runs a node of it
        parent, children, running = _failed_family(driver)
        late = driver.outcome(parent, running)
        # when it is purged by two at once while all that happens
        calls: list[Callable[[], object]] = [
            partial(_purge, store),
            partial(_purge, store, 1),
            partial(driver.send, late),  # through the driver, which keeps the jobs of all
            partial(driver.wake, *children),
            partial(driver.sweep, epoch=number + 1),
            partial(_quietly, driver.cancel, children[0]),
        ]
        if number % 3:
            calls.append(partial(_quietly, driver.retry, parent if number % 3 == 1 else children[0]))
        race(calls)
        # then it is there with all that it needs to end, or has left nothing
        if store.get_execution(parent) is None:
            gone += 1
            assert store.get_execution_count() == 0
            assert _left(postgres_url) == {}
            continue
        assert [child.id for child in store.get_child_executions(parent)] == children
        _quietly(driver.retry, parent)
        driver.sweep_all()
        driver.drain()
        found = store.get_execution(parent)
        assert found is not None
        assert found.status is ExecutionStatus.COMPLETED
        assert _purge(store).executions == 3
    assert gone  # else nothing was put to the test


def test_an_execution_whose_key_a_start_repeats_at_that_moment_is_left(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    execution = driver.start("single", idempotency_key="key", input_hash="same")
    driver.drain()
    with ThreadPoolExecutor(1) as pool, store.transaction():
        again = store.create_execution(request("single", idempotency_key="key", input_hash="same"))
        assert pool.submit(_purge, store).result(30) == PurgeResult(executions=0, keys=0)
    assert isinstance(again, StartResult)
    assert again.execution_id == execution
    assert _purge(store) == PurgeResult(executions=1, keys=1)


def test_starts_that_repeat_keys_of_what_is_being_purged_never_deadlock(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    keys = [f"key {number}" for number in range(6)]
    for _ in range(ROUNDS):
        # given executions that were started under keys, and have ended
        earlier = [driver.start("single", idempotency_key=key, input_hash="same") for key in keys]
        driver.drain()
        # when they are purged while two batches start under these keys again, in opposite orders
        wanted = [request("single", idempotency_key=key, input_hash="same") for key in keys]
        _, _, *answers = race(
            [
                partial(_purge, store),
                partial(_purge, store, 3),
                partial(store.create_executions, wanted),
                partial(store.create_executions, wanted[::-1]),
            ]
        )
        # then each key leads to one execution: the earlier one, or, where that is gone, a new one
        first, second = answers
        assert isinstance(first, list)
        assert isinstance(second, list)
        started = {answer.execution_id for answer in (*first, *second) if isinstance(answer, StartResult)}
        alive = {found.id for found in store.list_executions().items}
        assert started <= alive | set(earlier)
        assert alive <= started | set(earlier)
        for one in alive:
            driver.sweep(epoch=1)
            _quietly(driver.cancel, one)
        assert _purge(store).keys == len(alive)


def test_a_replay_of_what_is_being_purged_is_whole_or_refused(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    store.save_workflow(graph("two", {"first": [], "second": ["first"]}))
    answers: list[str] = []
    for _ in range(ROUNDS):
        source = driver.start("two")
        driver.run(source, "first", data=1)
        driver.run(source, "second", Outcome.FAILED)
        driver.jobs.clear()
        wanted = request("two", replay=Replay(source, ["first"]))
        _, answer = race([partial(_purge, store), partial(store.create_execution, wanted)])
        answers.append(type(answer).__name__)
        if isinstance(answer, StartResult):
            driver.jobs.extend(answer.jobs)
            assert driver.drain(lambda node: node.results) == ["second"]
            replayed = store.get_execution(answer.execution_id)
            assert replayed is not None
            assert replayed.output == {"first": "1"}
        else:
            assert store.get_execution_count() == 0
        _purge(store)
    assert set(answers) <= {"StartResult", "UnknownExecution"}


def test_a_family_of_ten_thousand_goes_in_seconds(store: PostgresExecutionStore, postgres_url: str) -> None:
    driver = StoreDriver(store)
    parent = driver.start("single")
    driver.drain()
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "insert into spanloom.executions (id, workflow_id, version, status, revision, priority, input, metadata,"
            " parent_id, depth, created_at, ended_at) select gen_random_uuid(), workflow_id, version, status, 0,"
            " priority, input, '{\"number\": \"' || number || '\"}', id, 1, created_at, ended_at"
            " from spanloom.executions, generate_series(1, 10000) number"
        )
        connection.execute(
            "insert into spanloom.execution_metadata (execution_id, key, value, created_at, workflow_id)"
            " select id, 'number', metadata::json ->> 'number', created_at, workflow_id from spanloom.executions"
            " where parent_id is not null"
        )
        connection.execute(
            "insert into spanloom.events (execution_id, kind, item, at)"
            " select id, 'execution.completed', 0, ended_at from spanloom.executions, generate_series(1, 4)"
        )
    assert store.get_execution(parent) is not None
    began = time.monotonic()
    assert _purge(store) == PurgeResult(executions=10_001, keys=0, more=True)
    assert time.monotonic() - began < 30  # half a second where this was written; a minute if each looked at the others
    assert _left(postgres_url) == {}


def _quietly(act: Callable[[str], object], execution: str) -> object:
    with suppress(UserError):
        return act(execution)
    return None
