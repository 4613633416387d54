"""Odd arguments of the store's reads and controls: Spanloom's own errors, the same from every store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest

from spanloom.engine import ConfigurationError, ExecutionFilter, ExecutionStore, InvalidArgument
from spanloom.engine.store import port
from spanloom.engine.store.requests import ControlAction, LogLine, Outcome, RecordRequest, SpanLine, StartRequest
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores import InMemoryExecutionStore, PostgresExecutionStore, SqliteExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, single
from support.odd_calls import UNKNOWN, draw, of_ids, outcome

NOW = datetime(2026, 3, 1, tzinfo=UTC)
METHODS = dict(port._CHECKED) | {"create_execution": ExecutionStore.create_execution}


EXECUTION = of_ids(lambda ids: ids[0])
OTHER = of_ids(lambda ids: ids[1])
FITTING: dict[str, Sequence[Any]] = {
    "execution_id": [EXECUTION, OTHER, UNKNOWN, "x"],
    "execution_ids": [of_ids(lambda ids: [*ids]), [], [UNKNOWN], [UNKNOWN, "x"]],
    "workflow_id": ["chain", "single", "unknown"],
    "workflow": [chain(2), chain(3), single()],
    "node_id": ["n1", "only", "x"],
    "node_ids": [["n1"], [], ["x", "n1"]],
    "version": [1, 2, None],
    "expected_version": [0, 1, None],
    "expected_revision": [0, 1, None],
    "filter": [ExecutionFilter(workflow_id="chain"), ExecutionFilter(metadata={"a": "b"}), None],
    "limit": [1, 100, 1000],
    "cursor": [None],
    "after": [0, None],
    "item": [0, 1],
    "epoch": [0, 1],
    "now": [NOW, None],
    "active": [True, None],
    "action": [*ControlAction],
    "error": ['{"type": "T", "message": "m"}'],
    "line": [LogLine("info", "m", NOW)],
    "span": [SpanLine("t" * 32, "s" * 16, None, "n", "internal", "ok", 1, 2)],
    "span_id": ["s" * 16],
    "end_ns": [5],
    "status": ["ok"],
    "ended_before": [NOW],
    "statuses": [[ExecutionStatus.COMPLETED], [ExecutionStatus.FAILED, ExecutionStatus.CANCELLED]],
    "record": [of_ids(lambda ids: RecordRequest(ids[0], "n1", 0, 0, "", Outcome.COMPLETED, data="1"))],
    "request": [StartRequest(UNKNOWN[:-1] + "1", "chain", "null"), StartRequest(UNKNOWN[:-1] + "2", "unknown", "null")],
    "change_notes": ["n", None],
    "created_by": ["n", None],
    "connection": [None],
}


@pytest.fixture
def stores(tmp_path: Any, postgres_url: str) -> Iterator[list[ExecutionStore]]:
    stores = [
        InMemoryExecutionStore(),
        SqliteExecutionStore(tmp_path / "odd.db", synchronous="normal"),
        PostgresExecutionStore(postgres_url, pool_size=2),
        PostgresExecutionStore(postgres_url, pool_size=2, namespace="odd_python", accelerated=False),
    ]
    for store in stores:
        store.migrate()
    yield stores
    for store in stores:
        store.close()


def filled(store: ExecutionStore) -> list[str]:
    """Put in two executions, and return their ids."""
    driver = StoreDriver(store)
    return [driver.start(chain(2)), driver.start(single())]


@pytest.mark.parametrize(
    ("seed", "calls"),
    [(1, 500), pytest.param(2, 10_000, marks=[pytest.mark.torture, pytest.mark.timeout(1800)])],
    ids=["few", "many"],
)
def test_every_store_answers_odd_arguments_alike_and_with_our_errors(
    stores: list[ExecutionStore], seed: int, calls: int
) -> None:
    ids = [filled(store) for store in stores]
    seen: Counter[str] = Counter()
    for call in islice(draw(METHODS, FITTING, seed), calls):
        answers = [outcome(call, store, of) for store, of in zip(stores, ids, strict=True)]
        assert len(set(answers)) == 1, f"{answers} of {call}"
        seen[answers[0]] += 1
    assert seen["InvalidArgument"] > calls / 5
    assert seen["done"] > calls / 10


def test_a_wrong_argument_is_named_with_a_part_of_it(tmp_path: Any) -> None:
    store = InMemoryExecutionStore()
    odd: list[tuple[Callable[[], object], str]] = [
        (lambda: store.get_execution(7), "execution_id must be text, not 7"),  # type: ignore[arg-type]
        (lambda: store.get_node_results("x", "n1"), "node_ids must be a list or None, not 'n1'"),
        (lambda: store.get_node_results("x", ["a", b"b"]), r"node_ids\[1\] must be text, not 1 bytes"),  # type: ignore[list-item]
        (lambda: store.list_executions("a.b"), "filter must be an ExecutionFilter or None, not 'a.b'"),  # type: ignore[arg-type]
        (lambda: store.list_executions(cursor=b"x"), "cursor must be text or None"),  # type: ignore[arg-type]
        (
            lambda: store.get_workflow("w", True),
            "version must be a whole number from 1 to 2147483647 or None, not True",
        ),
        (lambda: store.get_workflow("w", 2**31), "version must be .*, not 2147483648"),
        (lambda: store.cancel_execution("x", now=NOW.replace(tzinfo=None)), "now must be a datetime with a time zone"),
        (lambda: store.add_log("x", LogLine("info", 7, NOW)), "line.message must be text, not 7"),  # type: ignore[arg-type]
        (
            lambda: ExecutionFilter(created_after=NOW.replace(tzinfo=None)),
            "ExecutionFilter.created_after must be a datetime with",
        ),
        (lambda: ExecutionFilter(metadata="a.b"), "metadata"),  # type: ignore[arg-type]
    ]
    for call, message in odd:
        with pytest.raises(ConfigurationError, match=message):
            call()


def test_a_store_of_a_users_own_has_the_same_edge() -> None:
    class Own(InMemoryExecutionStore):
        def get_execution(self, execution_id: str) -> None:
            raise AssertionError("it is not called")

    with pytest.raises(InvalidArgument, match="execution_id must be text"):
        Own().get_execution(7)  # type: ignore[arg-type]
