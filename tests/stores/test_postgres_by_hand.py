"""Ending runs by hand on Postgres beside workers that claim and record the same: one of them does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial

import pytest

from spanloom.engine.errors import InvalidTransition
from spanloom.engine.store.requests import Claim, Outcome, RecordRequest, RecordResult, Refusal
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.postgres import connections as postgres_connections
from spanloom.stores.postgres.store import PostgresExecutionStore
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.workflows import fan, graph, single
from support.postgres import until_blocked

ROUNDS = 12


@pytest.fixture
def store(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresExecutionStore]:
    monkeypatch.setattr(postgres_connections, "CONFLICT_RETRIES", 0)  # a deadlock shows instead of being retried
    store = PostgresExecutionStore(postgres_url)
    yield store
    store.close()


def _by_hand(execution: str, node: str, outcome: Outcome = Outcome.COMPLETED, *, item: int = 0) -> RecordRequest:
    error = '{"type": "EndedByHand", "message": "enough"}' if outcome is Outcome.FAILED else None
    return RecordRequest(execution, node, item, fence=0, worker_id="", outcome=outcome, data='"by hand"', error=error)


def _end(store: PostgresExecutionStore, record: RecordRequest) -> RecordResult | None:
    try:
        return store.update_node_result(record)
    except InvalidTransition:
        return None  # another was first


def test_a_run_is_claimed_or_ended_by_hand_never_both(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    store.save_workflow(single())
    for _ in range(ROUNDS):
        execution = driver.start("single")
        ended, claim = race(
            [partial(_end, store, _by_hand(execution, "only")), partial(driver.try_claim, execution, "only")]
        )
        if isinstance(claim, Claim):
            assert ended is None
            assert driver.record(execution, claim.node).ended is ExecutionStatus.COMPLETED
        else:
            assert claim is Refusal.GONE
            assert isinstance(ended, RecordResult)
            assert ended.ended is ExecutionStatus.COMPLETED


def test_an_end_by_hand_waits_for_a_claim_and_is_refused_for_it(
    store: PostgresExecutionStore, postgres_url: str
) -> None:
    driver = StoreDriver(store)
    execution = driver.start(single())
    with ThreadPoolExecutor(1) as pool:
        with store.transaction():
            node = driver.claim(execution, "only")
            ending = pool.submit(store.update_node_result, _by_hand(execution, "only"))
            until_blocked(postgres_url)
        with pytest.raises(InvalidTransition, match="node run only is running and can't become completed"):
            ending.result(30)
    assert driver.record(execution, node).recorded


def test_a_late_record_beside_an_end_by_hand_counts_or_is_stale(store: PostgresExecutionStore) -> None:
    clock = ManualClock()
    store.save_workflow(single())
    for _ in range(ROUNDS):
        # given a run whose worker's lease has lapsed, which no sweep has noticed
        driver = StoreDriver(store, clock=clock)
        execution = driver.start("single")
        late = driver.outcome(execution, driver.claim(execution, "only"), data="late")
        now = clock() + timedelta(seconds=61)
        # when its worker records, and an operator ends it
        recorded, ended = race([partial(_recorded, store, late, now), partial(_ended, store, execution, now)])
        # then one of them did
        assert (recorded, ended) in ((True, False), (False, True))
        found = store.get_execution(execution)
        assert found is not None
        assert found.output == ("by hand" if ended else "late")


def _recorded(store: PostgresExecutionStore, record: RecordRequest, now: datetime) -> bool:
    return store.record([record], now=now)[0].recorded


def _ended(store: PostgresExecutionStore, execution: str, now: datetime) -> bool:
    try:
        return store.update_node_result(_by_hand(execution, "only"), now=now).recorded
    except InvalidTransition:
        return False


def test_siblings_ended_by_hand_and_by_workers_at_once_make_their_join_ready_once(
    store: PostgresExecutionStore,
) -> None:
    driver = StoreDriver(store)
    store.save_workflow(fan(6))
    for number in range(ROUNDS):
        # given six branches, three of them claimed
        execution = driver.start("fan")
        driver.run(execution, "split")
        records = [driver.outcome(execution, driver.claim(execution, f"w{branch}")) for branch in (1, 2, 3)]
        outcomes = [Outcome.COMPLETED, Outcome.SKIPPED, Outcome.FAILED if number % 2 else Outcome.COMPLETED]
        # when all end at once, beside a sweep
        calls: list[Callable[[], object]] = [
            *(partial(store.record, [record]) for record in records),
            *(
                partial(_end, store, _by_hand(execution, f"w{branch}", outcome))
                for branch, outcome in zip((4, 5, 6), outcomes, strict=True)
            ),
            partial(store.sweep, heads={}, epoch=number + 1),
        ]
        race(calls)
        # then the join is ready once, or the execution has failed once; a sweep that comes last may push it again
        told = [event for event in store.get_events(execution) if event.data.get("because") != "lost_redis"]
        kinds = [event.kind for event in told if event.node_id in ("join", None)]
        wanted = "execution.failed" if number % 2 else "node.queued"
        assert [kind for kind in kinds if kind == wanted] == [wanted]


def test_items_ended_by_hand_and_by_workers_at_once_make_their_node_ready_once(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    store.save_workflow(graph("maps", {"a": []}))
    for _ in range(ROUNDS):
        execution = driver.start("maps")
        driver.fan_out(execution, "a", list(range(6)), tolerated_failures=6)
        records = [driver.outcome(execution, driver.claim(execution, "a", item)) for item in (1, 2, 3)]
        outcomes = [Outcome.COMPLETED, Outcome.FAILED, Outcome.COMPLETED]
        answers = race(
            [
                *(partial(store.record, [record]) for record in records),
                *(
                    partial(_listed, store, _by_hand(execution, "a", outcome, item=item))
                    for item, outcome in zip((4, 5, 6), outcomes, strict=True)
                ),
            ]
        )
        assert [job.item for some in answers for answer in some for job in answer.jobs] == [0]


def _listed(store: PostgresExecutionStore, record: RecordRequest) -> list[RecordResult]:
    return [store.update_node_result(record)]
