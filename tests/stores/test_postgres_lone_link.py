"""The record of a lone link of a chain: a call of its own on Postgres, which writes what the transitions write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from spanloom.engine.store.requests import AttemptSpan, LogLine, Outcome, RecordRequest, RecordResult
from spanloom.stores import PostgresExecutionStore
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, diamond, fan, graph, route_failure, single

SPAN = {"span": "00f067aa0ba902b7", "own_span": AttemptSpan(1, 2, '{"a":1}')}
ROWS = (
    "select to_jsonb(t) - 'execution_id' - 'worker_id' - 'seq' - 'xid' as row from spanloom.{table} t"
    " where execution_id = %s order by {order}"
)
ORDERS = {"node_runs": "node_id", "node_results": "node_id", "events": "seq"}


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresExecutionStore]:
    store = PostgresExecutionStore(postgres_url)
    yield store
    store.close()


@pytest.fixture
def called(store: PostgresExecutionStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions by which records are written, in the order of the calls."""
    names: list[str] = []
    call = store._call

    def noted(statement: str, *parameters: Any) -> Any:
        names.extend(name for name in ("link_v1", "record_v1") if f".{name}(" in statement)
        return call(statement, *parameters)

    monkeypatch.setattr(store, "_call", noted)
    return names


def _link(driver: StoreDriver, **fields: Any) -> RecordRequest:
    """Return the record of the first node of a new execution of a chain of three, by which its worker goes on."""
    execution = driver.start(chain(3))
    return driver.outcome(execution, driver.claim(execution, "n1"), **{"data": 7, "successors": ("n2",), **fields})


@pytest.mark.parametrize(
    "fields", [{}, SPAN, {"taken": ("n2",)}, {"data": None}, {"successors": ("n9", "n2")}], ids=str
)
def test_a_lone_link_is_one_small_call(
    store: PostgresExecutionStore, called: list[str], fields: dict[str, Any], postgres_url: str
) -> None:
    # given the same link in two executions, at one time
    driver = StoreDriver(store, clock=ManualClock())
    python = PostgresExecutionStore(postgres_url, accelerated=False)
    record, reference = _link(driver, **fields), _link(driver, **fields)
    # when one is recorded by the function, and one by the transitions
    (answer,) = store.record([record], epoch=3, now=driver.now())
    (expected,) = python.record([reference], epoch=3, now=driver.now())
    # then the answers are equal, and the rows
    assert called == ["link_v1"]
    assert answer.following
    assert answer == expected
    with psycopg.connect(postgres_url, row_factory=dict_row) as connection:
        for table, order in ORDERS.items():
            query = ROWS.format(table=table, order=order).encode()
            found, wanted = (connection.execute(query, [one.execution_id]).fetchall() for one in (record, reference))
            assert found == wanted
    python.close()


def test_a_chain_is_run_to_its_end_by_links(store: PostgresExecutionStore, called: list[str]) -> None:
    driver = StoreDriver(store)
    execution = driver.start(chain(4))
    driver.drain()
    assert called == ["link_v1"] * 3 + ["record_v1"]
    ended = store.get_execution(execution)
    assert ended is not None
    assert ended.status == "completed"
    kinds = [(event.kind, event.node_id) for event in store.get_events(execution)]
    assert kinds[kinds.index(("node.started", "n1")) + 1 :] == [
        ("node.completed", "n1"), ("node.started", "n2"), ("node.completed", "n2"), ("node.started", "n3"),
        ("node.completed", "n3"), ("node.started", "n4"), ("node.completed", "n4"), ("execution.completed", None),
    ]  # fmt: skip


def test_no_other_record_is_tried_as_a_link(store: PostgresExecutionStore, called: list[str]) -> None:
    driver = StoreDriver(store)
    branches = graph("branches", {"a": [], "b": ["a"], "c": [route_failure("a")]})
    line = LogLine("info", "m", ManualClock()())
    others = [
        _link(driver, successors=()),
        _link(driver, logs=[line]),
        _link(driver, outcome=Outcome.FAILED, data=None),
        _link(driver, taken=()),
        *(
            driver.outcome(execution, driver.claim(execution, node), successors=successors)
            for execution, node, successors in [
                (driver.start(single()), "only", ()),
                (driver.start(fan(2)), "split", ("w1",)),
                (driver.start(branches), "a", ("b",)),
            ]
        ),
    ]
    joined = driver.start(diamond())
    driver.run(joined, "top")
    others.append(driver.outcome(joined, driver.claim(joined, "left"), successors=("bottom",)))
    called.clear()
    for record in others:
        assert driver.send(record).recorded
    store.record([_link(driver), _link(driver)])
    assert called == ["record_v1"] * (len(others) + 1)


def test_a_link_is_answered_again_and_one_under_a_stale_fence_is_not(
    store: PostgresExecutionStore, called: list[str]
) -> None:
    driver = StoreDriver(store)
    record = _link(driver)
    first = driver.send(record)
    assert driver.send(record) == first
    assert driver.send(record._replace(fence=record.fence + 7)) == RecordResult(recorded=False)
    assert called == ["link_v1"] + ["link_v1", "record_v1"] * 2


def test_a_link_of_a_paused_execution_or_of_a_lapsed_worker_is_held_or_queued(store: PostgresExecutionStore) -> None:
    # given
    clock = ManualClock()
    driver = StoreDriver(store, clock=clock)
    paused, lapsed = _link(driver), _link(driver)
    driver.pause(paused.execution_id)
    # then the successor of a paused execution is held
    answer = driver.send(paused)
    assert (answer.recorded, answer.following, answer.jobs) == (True, (), ())
    # and that of a worker whose lease has lapsed is for any worker
    clock.advance(3600)
    answer = driver.send(lapsed)
    assert answer.recorded
    assert answer.following == ()
    assert [job.node_id for job in answer.jobs] == ["n2"]
