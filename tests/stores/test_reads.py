"""The reads that all SQL stores share: limits, cursors and ids that make no sense."""

from __future__ import annotations

import base64
import json

import pytest

from spanloom.engine.errors import ConfigurationError, UserError
from spanloom.engine.store.models import ExecutionFilter
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single

NO_UUID = "order-7"


@pytest.fixture
def store() -> InMemoryExecutionStore:
    return InMemoryExecutionStore()


def cursor(*key: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_limit_that_no_page_has_is_refused(store: InMemoryExecutionStore, limit: int) -> None:
    reads = [
        lambda: store.list_executions(limit=limit),
        lambda: store.list_workflows(limit=limit),
        lambda: store.list_workflow_versions("w", limit=limit),
        lambda: store.get_events(NO_UUID, limit=limit),
        lambda: store.get_logs(NO_UUID, limit=limit),
    ]
    for read in reads:
        with pytest.raises(ConfigurationError, match=f"limit must be a whole number from 1 to 1000, not {limit}"):
            read()


@pytest.mark.parametrize(
    "odd",
    ["", "x", "größe", cursor(), cursor("b", "a"), cursor(1), cursor(1, 2), cursor(True, "a"), cursor(10**30, "a")],
)
def test_a_cursor_of_another_list_is_refused(store: InMemoryExecutionStore, odd: str) -> None:
    with pytest.raises(UserError, match="was not given out by this list"):
        store.list_executions(cursor=odd)


@pytest.mark.parametrize("odd", ["x", "-1", "1.5", "9" * 30, cursor(1)])
def test_an_event_cursor_that_was_not_given_out_is_refused(store: InMemoryExecutionStore, odd: str) -> None:
    execution = StoreDriver(store).start(single())
    with pytest.raises(UserError, match="was not given out by this list"):
        store.get_events(execution, after=odd)


def test_an_id_that_is_no_uuid_is_not_there(store: InMemoryExecutionStore) -> None:
    assert store.get_execution(NO_UUID) is None
    assert store.get_parent_execution(NO_UUID) is None
    assert store.get_node_results(NO_UUID) == []
    assert store.get_child_executions(NO_UUID) == []
    assert store.get_events(NO_UUID) == []
    assert store.get_logs(NO_UUID) == []
    assert store.get_trace(NO_UUID) == []
    assert not store.update_span(NO_UUID, "0" * 16, end_ns=1, status="ok")
    assert store.list_executions(ExecutionFilter(parent_execution_id=NO_UUID)).items == []


def test_an_id_is_found_in_any_spelling_of_its_uuid(store: InMemoryExecutionStore) -> None:
    execution = StoreDriver(store).start(single())
    found = store.get_execution(execution.upper())
    assert found is not None
    assert found.id == execution
