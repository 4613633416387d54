"""`spanloom purge`: what goes, what stays, and that its dry run counts what it would delete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from spanloom.cli.exit_codes import DONE, FAILED, MISTAKE
from spanloom.engine import ExecutionStore
from spanloom.engine.store.requests import Claim, NodeKey, Outcome, RecordRequest, StartRequest
from spanloom.engine.store.states import WaitKind
from spanloom.stores import open_store
from spanloom.testing.workflows import single
from support.cli import Control, in_terminal

pytestmark = pytest.mark.usefixtures("clean_environment")

NOW = datetime.now(UTC)
OLD, RECENT = NOW - timedelta(days=40), NOW - timedelta(days=1)
COMPLETED, FAILED_ONE, CANCELLED, OPEN, LATE, PARENT, CHILD = (
    f"019cb2f4-4444-7abc-8def-00000000000{number}" for number in range(1, 8)
)


@pytest.fixture
def store(sqlite_url: str) -> Iterator[ExecutionStore]:
    """Executions that ended long ago, as completed, failed or cancelled; one open, one that ended late, a family."""
    store = open_store(sqlite_url)
    store.open()
    store.save_workflow(single("mail"))
    store.register_worker("w1", name="w1", host="here", pid=1, queues=["default"], lease_seconds=1e9, now=OLD)
    for number, execution_id in enumerate((COMPLETED, FAILED_ONE, CANCELLED, OPEN, LATE, PARENT)):
        store.create_executions(
            [StartRequest(execution_id, "mail", "null")], now=OLD - timedelta(hours=1 - number / 60)
        )
    claim = claimed(store, PARENT)
    child = StartRequest(CHILD, "mail", "null", parent=NodeKey(PARENT, "only"), parent_fence=claim.node.fence, depth=1)
    end(store, PARENT, OLD, Outcome.WAITING, claim, wait_kind=WaitKind.CHILD, wait_key=CHILD, child=child)
    end(store, COMPLETED, OLD)
    end(store, FAILED_ONE, OLD, Outcome.FAILED, error='{"type": "E", "message": ""}')
    store.cancel_execution(CANCELLED, now=OLD)
    end(store, LATE, RECENT)
    yield store
    store.close()


def claimed(store: ExecutionStore, execution_id: str) -> Claim:
    (claim,) = store.claim([NodeKey(execution_id, "only")], worker_id="w1", now=OLD)
    assert isinstance(claim, Claim)
    return claim


def end(
    store: ExecutionStore,
    execution_id: str,
    when: datetime,
    outcome: Outcome = Outcome.COMPLETED,
    claim: Claim | None = None,
    **fields: object,
) -> None:
    claim = claim or claimed(store, execution_id)
    record = RecordRequest(execution_id, "only", 0, claim.node.fence, "w1", outcome, **fields)  # type: ignore[arg-type]
    assert store.record([record], now=when)[0].recorded


def left(store: ExecutionStore) -> set[str]:
    return {execution.id for execution in store.list_executions().items}


def dry_and_real(control: Control, *arguments: str) -> tuple[int, int]:
    """Return how many a dry run counts, and how many a purge right after it deletes."""
    dry, real = (control("purge", *arguments, flag) for flag in ("--dry-run", "--yes"))
    assert (dry[0], dry[2], real[0], real[2]) == (DONE, "", DONE, "")
    return int(dry[1][0][0]), int(real[1][0][0])


def test_what_completed_or_was_cancelled_long_ago_goes(control: Control, store: ExecutionStore) -> None:
    assert dry_and_real(control, "--older-than", "30d") == (2, 2)
    assert left(store) == {FAILED_ONE, OPEN, LATE, PARENT, CHILD}
    assert dry_and_real(control, "--older-than", "30d") == (0, 0)


def test_failed_ones_go_if_they_are_asked_for(control: Control, store: ExecutionStore) -> None:
    assert dry_and_real(control, "--older-than", "30d", "--status", "failed,completed") == (2, 2)
    assert left(store) == {CANCELLED, OPEN, LATE, PARENT, CHILD}


def test_how_long_ago_is_told_in_days_or_less(control: Control, store: ExecutionStore) -> None:
    assert dry_and_real(control, "--older-than", "41d") == (0, 0)
    assert dry_and_real(control, "--older-than", "12h") == (3, 3)
    assert left(store) == {FAILED_ONE, OPEN, PARENT, CHILD}


def test_a_limit_ends_it_early_with_the_oldest_gone(control: Control, store: ExecutionStore) -> None:
    assert dry_and_real(control, "--older-than", "1h", "--limit", "2") == (2, 2)
    assert left(store) == {FAILED_ONE, OPEN, LATE, PARENT, CHILD}


def test_a_family_goes_whole_when_all_of_it_ended_long_ago(control: Control, store: ExecutionStore) -> None:
    end(store, CHILD, OLD)
    store.wake_parents([CHILD], now=OLD)
    end(store, PARENT, OLD)
    assert dry_and_real(control, "--older-than", "30d", "--status", "completed") == (3, 3)
    assert left(store) == {FAILED_ONE, CANCELLED, OPEN, LATE}


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled,failed,completed"])
def test_a_family_stays_whole_while_a_child_is_open_or_ended_later(
    control: Control, store: ExecutionStore, status: str
) -> None:
    store.fail_execution(PARENT, '{"type": "E", "message": ""}', now=OLD)
    counted, deleted = dry_and_real(control, "--older-than", "30d", "--status", status)
    assert counted == deleted
    assert left(store) >= {PARENT, CHILD}
    end(store, CHILD, RECENT)
    assert dry_and_real(control, "--older-than", "30d", "--status", status) == (0, 0)
    assert left(store) >= {PARENT, CHILD}


def test_a_dry_run_deletes_nothing_and_json_says_which_it_was(control: Control, store: ExecutionStore) -> None:
    before = left(store)
    code, ((line,),), _ = control("purge", "--older-than", "30d", "--dry-run", "--json")
    assert (code, json.loads(line)) == (DONE, {"executions": 2, "dry_run": True})
    assert left(store) == before
    _, ((line,),), _ = control("purge", "--older-than", "30d", "--yes", "--json")
    assert json.loads(line) == {"executions": 2, "dry_run": False}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--older-than", "30d"], "nobody can be asked whether to purge them; give --yes, or --dry-run"),
        (["--yes"], "Missing option '--older-than'"),
        (["--older-than", "a month", "--yes"], "is no duration; write seconds, or 500ms, 30s, 5m, 2h, 1d"),
        (["--older-than", "30d", "--status", "completed,running", "--yes"], "'running' is no status"),
    ],
)
def test_what_is_not_clear_is_refused_and_deletes_nothing(
    control: Control, store: ExecutionStore, arguments: list[str], said: str
) -> None:
    before = left(store)
    code, lines, complaints = control("purge", *arguments)
    assert (code, lines) == (MISTAKE, [])
    assert said in complaints
    assert left(store) == before


def test_a_terminal_is_told_how_many_and_asked(store: ExecutionStore, sqlite_url: str, redis_url: str) -> None:
    purge = ["purge", "--older-than", "30d", "--store", sqlite_url, "--redis", redis_url]
    before = left(store)
    shown = in_terminal(purge, answer="n", code=FAILED)
    assert "2 executions found; delete them for good? [y/N] n" in shown
    assert left(store) == before
    assert in_terminal(purge, answer="y").splitlines()[-1] == "2 executions were deleted"
    assert left(store) == before - {COMPLETED, CANCELLED}
    assert in_terminal([*purge, "--yes"]).splitlines()[-1] == "0 executions were deleted"
