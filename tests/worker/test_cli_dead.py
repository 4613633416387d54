"""`spanloom dead-letters`: which failed executions wait for someone, and where each failed and why."""

from __future__ import annotations

import json
import re

import pytest

from spanloom.engine import ExecutionStore
from spanloom.engine.store.models import Execution
from spanloom.engine.store.requests import Claim, NodeKey, Outcome, RecordRequest, StartRequest
from spanloom.engine.store.states import WaitKind
from support.cli import NEWER, OLDER, Invoke, at, in_terminal

pytestmark = pytest.mark.usefixtures("clean_environment", "store")

CHILD = "019cb2f4-3333-7abc-8def-0a0b0c0d0e0f"


def ids(printed: str) -> list[str]:
    return [line.split("\t")[0] for line in printed.splitlines()]


def claimed(store: ExecutionStore, execution_id: str) -> Claim:
    (claim,) = store.claim([NodeKey(execution_id, "only")], worker_id="w1", now=at(4))
    assert isinstance(claim, Claim)
    return claim


def fail(store: ExecutionStore, execution_id: str) -> None:
    error = '{"type": "mail.Refused", "message": "no such mailbox"}'
    record = RecordRequest(
        execution_id, "only", 0, claimed(store, execution_id).node.fence, "w1", Outcome.FAILED, error=error
    )
    assert store.record([record], now=at(5))[0].recorded


@pytest.fixture
def child(store: ExecutionStore) -> str:
    """A child of NEWER, which waits for it."""
    claim = claimed(store, NEWER)
    request = StartRequest(CHILD, "mail", "null", parent=NodeKey(NEWER, "only"), parent_fence=claim.node.fence, depth=1)
    record = RecordRequest(
        NEWER, "only", 0, claim.node.fence, "w1", Outcome.WAITING,
        wait_kind=WaitKind.CHILD, wait_key=CHILD, child=request,
    )  # fmt: skip
    assert store.record([record], now=at(4))[0].recorded
    return CHILD


def test_each_has_a_line_that_says_where_it_failed_and_why(store: ExecutionStore, invoke: Invoke) -> None:
    fail(store, NEWER)
    assert [line.split("\t") for line in invoke("dead-letters").splitlines()] == [
        [NEWER, "mail", "1", "2026-03-01T09:00:05.000Z", "only", "Refused", "no such mailbox", "", ""],
        [OLDER, "orders", "1", "2026-03-01T09:00:02.250Z", "n2", "ValueError", "no stock", '{"customer": "17"}', ""],
    ]


def test_what_was_acknowledged_or_retried_waits_no_more(store: ExecutionStore, invoke: Invoke) -> None:
    fail(store, NEWER)
    store.acknowledge_execution(OLDER, now=at(9))
    assert ids(invoke("dead-letters")) == [NEWER]
    (line,) = invoke("dead-letters", "--acknowledged").splitlines()
    assert (line.split("\t")[0], line.split("\t")[8]) == (OLDER, "2026-03-01T09:00:09.000Z")
    store.retry_execution(NEWER)
    assert invoke("dead-letters") == ""


def test_of_a_family_only_the_first_is_listed(store: ExecutionStore, invoke: Invoke, child: str) -> None:
    fail(store, child)
    assert ids(invoke("dead-letters")) == [OLDER]
    store.wake_parents([child], now=at(6))
    fail(store, NEWER)
    assert ids(invoke("dead-letters")) == [NEWER, OLDER]
    assert ids(invoke("dead-letters", "--parent", NEWER)) == [child]


def test_list_leaves_children_out_if_it_is_told_to(invoke: Invoke, child: str) -> None:
    assert set(ids(invoke("list"))) == {OLDER, NEWER, child}
    assert ids(invoke("list", "--roots")) == [NEWER, OLDER]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--workflow", "orders"], [OLDER]),
        (["--metadata", "customer=17"], [OLDER]),
        (["--since", "2026-03-01T09:00:01Z"], [NEWER]),
        (["--before", "2026-03-01T09:00:01Z"], [OLDER]),
        (["--limit", "1"], [NEWER]),
    ],
)
def test_it_takes_the_filters_of_list(
    store: ExecutionStore, invoke: Invoke, arguments: list[str], found: list[str]
) -> None:
    fail(store, NEWER)
    assert ids(invoke("dead-letters", *arguments)) == found


def test_it_pages_by_the_cursor_of_its_json(store: ExecutionStore, invoke: Invoke) -> None:
    fail(store, NEWER)
    first = json.loads(invoke("dead-letters", "--limit", "1", "--json"))
    second = json.loads(invoke("dead-letters", "--limit", "1", "--json", "--cursor", first["next_cursor"]))
    assert [page["items"][0]["id"] for page in (first, second)] == [NEWER, OLDER]
    assert set(first["items"][0]) == set(Execution.model_fields)


def test_a_terminal_gets_a_table_and_is_told_if_there_is_nothing(store: ExecutionStore, sqlite_url: str) -> None:
    def shown(*arguments: str) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", in_terminal(["dead-letters", *arguments, "--store", sqlite_url]))

    assert re.search(rf"{OLDER}  orders v1  .* ago  n2 +ValueError: no stock", shown())
    assert f"no acknowledged executions in {sqlite_url}" in shown("--acknowledged")
    store.acknowledge_execution(OLDER)
    assert f"no dead executions in {sqlite_url}" in shown()
