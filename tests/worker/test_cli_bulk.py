"""The control commands over all executions that a filter finds: who is found, who is asked, and what is told."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest

from spanloom.cli.exit_codes import DONE, FAILED, MISTAKE
from spanloom.engine import ExecutionStore, NodeRegistry, WorkflowEngine
from spanloom.engine.operations.bulk import find
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.requests import Claim, NodeKey, Outcome, RecordRequest, StartRequest
from spanloom.engine.store.states import ExecutionStatus, WaitKind
from support.cli import NEWER, OLDER, Control, at, in_terminal

pytestmark = pytest.mark.usefixtures("clean_environment")

FIRST, SECOND, THIRD = (f"019cb2f4-4444-7abc-8def-00000000000{number}" for number in (1, 2, 3))


@pytest.fixture
def store(store: ExecutionStore) -> ExecutionStore:
    """Next to OLDER, which failed, and NEWER: three more executions of mail, of which two belong together."""
    for number, (execution_id, batch) in enumerate([(FIRST, "a"), (SECOND, "b"), (THIRD, "a")]):
        request = StartRequest(execution_id, "mail", "null", metadata={"batch": batch})
        store.create_executions([request], now=at(10 + number))
    return store


def statuses(store: ExecutionStore, ids: Sequence[str] = (OLDER, NEWER, FIRST, SECOND, THIRD)) -> list[str]:
    return [found.status.value for found in map(store.get_execution, ids) if found is not None]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--metadata", "batch=a"], [FIRST, THIRD]),
        (["--workflow", "mail"], [NEWER, FIRST, SECOND, THIRD]),
        (["--workflow", "mail", "--limit", "2"], [NEWER, FIRST]),
        (["--since", "2026-03-01T09:00:11Z"], [SECOND, THIRD]),
        (["--before", "2026-03-01T09:00:11Z"], [NEWER, FIRST]),
        (["--status", "paused"], []),
        (["--parent", NEWER], []),
        (["--all"], [NEWER, FIRST, SECOND, THIRD]),
    ],
)
def test_those_that_a_filter_finds_are_done_the_oldest_first(
    control: Control, store: ExecutionStore, arguments: list[str], found: list[str]
) -> None:
    assert control("cancel", *arguments, "--yes") == (DONE, [[one, "cancelled", "done", "1"] for one in found], "")
    cancelled = ExecutionFilter(status=ExecutionStatus.CANCELLED)
    assert {one.id for one in store.list_executions(cancelled).items} == set(found)


def test_each_command_finds_those_that_it_can_do_something_about(control: Control, store: ExecutionStore) -> None:
    def done(command: str) -> list[str]:
        code, lines, complaints = control(command, "--all", "--yes")
        assert (code, complaints) == (DONE, "")
        return [line[0] for line in lines if line[2] == "done"]

    waiting = [NEWER, FIRST, SECOND, THIRD]
    assert done("pause") == waiting
    assert done("pause") == []
    assert done("resume") == waiting
    assert done("acknowledge") == [OLDER]
    assert done("acknowledge") == []
    assert done("cancel") == waiting
    assert statuses(store) == ["failed", *["cancelled"] * 4]


def test_a_retry_leaves_acknowledged_ones_alone_unless_it_is_told_otherwise(
    control: Control, store: ExecutionStore
) -> None:
    store.acknowledge_execution(OLDER)
    assert control("retry", "--all", "--yes") == (DONE, [], "")
    assert control("retry", "--workflow", "orders", "--yes") == (DONE, [], "")
    code, lines, _ = control("retry", "--acknowledged", "--yes")
    assert (code, [line[:3] for line in lines]) == (DONE, [[OLDER, "retried", "done"]])


def test_children_that_were_retried_with_their_parent_are_not_refused(control: Control, store: ExecutionStore) -> None:
    children = failed_family(store)
    code, lines, complaints = control("retry", "--workflow", "mail", "--yes")
    assert (code, complaints) == (DONE, "")
    assert [line[:3] for line in lines] == [
        [NEWER, "retried", "done"],
        *([child, "retried", "already"] for child in children),
    ]
    assert statuses(store, [NEWER, *children]) == ["running"] * 3


def test_the_engine_says_the_same_of_them(store: ExecutionStore, redis_url: str) -> None:
    children = failed_family(store)
    with WorkflowEngine(NodeRegistry(), store, redis_url) as engine:
        retried = engine.retry_executions(ExecutionFilter(workflow_id="mail"))
    assert (retried.done, retried.unchanged, retried.refused) == ([NEWER], children, {})


def failed_family(store: ExecutionStore) -> list[str]:
    """Let NEWER start a child and that another one; the last fails, and so fail they all."""
    ids = [NEWER, *(f"019cb2f4-5555-7abc-8def-00000000000{number}" for number in (1, 2))]
    for depth, (parent, child_id) in enumerate(itertools.pairwise(ids), start=1):
        claim = claimed(store, parent, 20 + depth)
        child = StartRequest(
            child_id, "mail", "null",
            parent=NodeKey(parent, "only"), parent_fence=claim.node.fence, depth=depth,
        )  # fmt: skip
        recorded(store, claim, Outcome.WAITING, wait_kind=WaitKind.CHILD, wait_key=child_id, child=child)
    for number, execution_id in enumerate(reversed(ids)):
        recorded(store, claimed(store, execution_id, 30 + number), Outcome.FAILED, error='{"type": "E", "message": ""}')
        store.wake_parents([execution_id], now=at(30 + number))
    assert statuses(store, ids) == ["failed"] * 3
    return ids[1:]


def claimed(store: ExecutionStore, execution_id: str, second: float) -> Claim:
    (claim,) = store.claim([NodeKey(execution_id, "only")], worker_id="w1", now=at(second))
    assert isinstance(claim, Claim)
    return claim


def recorded(store: ExecutionStore, claim: Claim, outcome: Outcome, **fields: object) -> None:
    record = RecordRequest(claim.header.execution_id, "only", 0, claim.node.fence, "w1", outcome, **fields)  # type: ignore[arg-type]
    (answer,) = store.record([record], now=at(25))
    assert answer.recorded


def test_one_that_changed_since_it_was_found_is_refused_and_the_others_are_done(
    control: Control, store: ExecutionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_too_early(*arguments: object) -> list[str]:
        found = find(*arguments)  # type: ignore[arg-type]
        store.cancel_execution(FIRST)
        return found

    monkeypatch.setattr("spanloom.cli.commands.control.find", find_too_early)
    code, lines, complaints = control("pause", "--all", "--yes")
    assert (code, [line[0] for line in lines]) == (FAILED, [NEWER, SECOND, THIRD])
    assert complaints == f"spanloom: execution {FIRST} is cancelled and can't become paused\n"


def test_a_dry_run_lists_and_changes_nothing(control: Control, store: ExecutionStore) -> None:
    would = [[FIRST, "cancelled", "would", "0"], [THIRD, "cancelled", "would", "0"]]
    assert control("cancel", "--metadata", "batch=a", "--dry-run") == (DONE, would, "")
    assert control("cancel", "--metadata", "batch=a", "--dry-run", "--yes") == (DONE, would, "")
    _, lines, _ = control("cancel", "--metadata", "batch=a", "--dry-run", "--json")
    assert [json.loads(line)["status"] for (line,) in lines] == ["running", "running"]
    assert statuses(store) == ["failed", *["running"] * 4]


def test_json_has_a_line_for_each(control: Control, store: ExecutionStore) -> None:
    code, lines, _ = control("pause", "--metadata", "batch=a", "--yes", "--json")
    assert code == DONE
    assert [json.loads(line) for (line,) in lines] == [
        {"execution_id": one, "done": True, "status": "paused", "revision": 1, "error": None} for one in (FIRST, THIRD)
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cancel", "--all"], "nobody can be asked whether to cancel them; give --yes, or --dry-run"),
        (["cancel", "--yes"], "nothing says which executions to cancel; give EXECUTION_ID, filters"),
        (["cancel", "--limit", "3", "--yes"], "nothing says which executions to cancel"),
        (
            ["cancel", NEWER, "--all", "--yes"],
            "give EXECUTION_ID, or filters with their --limit and --dry-run; not both",
        ),
        (["cancel", NEWER, "--workflow", "mail", "--yes"], "not both"),
        (["cancel", NEWER, "--dry-run"], "not both"),
        (["cancel", NEWER, "--limit", "1"], "not both"),
        (["cancel", "--all", "--workflow", "mail", "--yes"], "--all is for all of them"),
        (["cancel", "--all", "--yes", "--expected-revision", "0"], "the revision of one execution; name one"),
        (["cancel", "--status", "completed", "--yes"], "'completed' is not one of 'pending', 'running', 'paused'"),
        (["acknowledge", "--acknowledged", "--yes"], "No such option '--acknowledged'"),
    ],
)
def test_what_does_not_say_clearly_who_is_meant_is_refused_and_changes_nothing(
    control: Control, store: ExecutionStore, arguments: list[str], said: str
) -> None:
    code, lines, complaints = control(*arguments)
    assert (code, lines) == (MISTAKE, [])
    assert said in complaints
    assert statuses(store) == ["failed", *["running"] * 4]


class TestInATerminal:
    @pytest.fixture
    def places(self, store: ExecutionStore, sqlite_url: str, redis_url: str) -> list[str]:
        return ["--store", sqlite_url, "--redis", redis_url]

    def test_it_is_told_how_many_they_are_and_done_after_a_yes(self, store: ExecutionStore, places: list[str]) -> None:
        shown = in_terminal(["cancel", "--metadata", "batch=a", *places], answer="y")
        assert "2 executions found; cancel them? [y/N] y" in shown
        assert f"mail v1 {FIRST}  cancelled\r\n" in shown
        assert "2 cancelled" in shown.splitlines()[-1]
        assert statuses(store, [FIRST, SECOND, THIRD]) == ["cancelled", "running", "cancelled"]

    @pytest.mark.parametrize("answer", ["", "n", "why?"])
    def test_any_other_answer_leaves_it_undone(self, store: ExecutionStore, places: list[str], answer: str) -> None:
        shown = in_terminal(["cancel", "--all", *places], answer=answer, code=FAILED)
        assert shown.splitlines()[-1] == "nothing was done"
        assert statuses(store) == ["failed", *["running"] * 4]

    def test_with_yes_nobody_is_asked(self, store: ExecutionStore, places: list[str]) -> None:
        shown = in_terminal(["pause", "--workflow", "mail", "--limit", "1", "--yes", *places])
        assert [line for line in shown.splitlines() if "[y/N]" in line] == []
        assert f"mail v1 {NEWER}  paused" in shown

    def test_a_dry_run_says_what_would_be(self, store: ExecutionStore, places: list[str]) -> None:
        shown = in_terminal(["acknowledge", "--all", "--dry-run", *places])
        assert f"orders v1 {OLDER}  would be acknowledged\r\n" in shown
        assert "1 would be acknowledged" in shown.splitlines()[-1]

    def test_that_there_are_none_is_said(self, store: ExecutionStore, sqlite_url: str, places: list[str]) -> None:
        assert f"no executions to resume in {sqlite_url}" in in_terminal(["resume", "--all", "--yes", *places])
