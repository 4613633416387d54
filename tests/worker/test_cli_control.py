"""`spanloom cancel`, `pause`, `resume`, `retry` and `acknowledge` of executions that are named by their ids."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from spanloom.cli.exit_codes import DONE, FAILED, MISTAKE, run
from spanloom.engine import ExecutionStore
from support.cli import APP, NEWER, OLDER, Control, in_terminal
from support.fork_server import run_command

pytestmark = pytest.mark.usefixtures("clean_environment", "store")

UNKNOWN = "019cb2f4-3333-7abc-8def-0a0b0c0d0e0f"


def test_pausing_resuming_and_cancelling_tell_what_was_done_and_the_revision(control: Control) -> None:
    assert control("pause", NEWER) == (DONE, [[NEWER, "paused", "done", "1"]], "")
    assert control("pause", NEWER[-8:]) == (DONE, [[NEWER, "paused", "already", "1"]], "")
    assert control("resume", NEWER) == (DONE, [[NEWER, "resumed", "done", "2"]], "")
    assert control("cancel", NEWER) == (DONE, [[NEWER, "cancelled", "done", "3"]], "")
    assert control("cancel", NEWER) == (DONE, [[NEWER, "cancelled", "already", "3"]], "")


def test_retrying_runs_a_failed_execution_on(control: Control, store: ExecutionStore) -> None:
    assert control("retry", OLDER) == (DONE, [[OLDER, "retried", "done", "1"]], "")
    runs = {one.node_id: one.status for one in store.get_node_results(OLDER)}
    assert runs == {"n1": "completed", "n2": "queued"}


def test_of_several_each_has_its_line_and_a_refused_one_its_sentence(control: Control) -> None:
    code, lines, said = control("pause", OLDER, NEWER, UNKNOWN)
    assert (code, lines) == (FAILED, [[NEWER, "paused", "done", "1"]])
    refused, unknown = said.splitlines()
    assert refused == f"spanloom: execution {OLDER} is failed and can't become paused"
    assert unknown.startswith(f"spanloom: no execution '{UNKNOWN}' in this store")


def test_a_stale_revision_is_refused_and_changes_nothing(control: Control, store: ExecutionStore) -> None:
    code, lines, said = control("cancel", NEWER, "--expected-revision", "7")
    assert (code, lines) == (FAILED, [])
    assert f"execution {NEWER} is at 0, not at the expected 7" in said
    unchanged = store.get_execution(NEWER)
    assert unchanged is not None
    assert (unchanged.status, unchanged.revision) == ("running", 0)
    assert control("cancel", NEWER, "--expected-revision", "0")[0] == DONE


def test_one_revision_can_not_be_that_of_two_executions(control: Control) -> None:
    code, lines, said = control("cancel", OLDER, NEWER, "--expected-revision", "0")
    assert (code, lines) == (MISTAKE, [])
    assert "name one" in said


def test_json_has_a_line_for_each_refused_or_not(control: Control) -> None:
    code, lines, _ = control("pause", "--json", NEWER, OLDER)
    done, refused = (json.loads(line) for (line,) in lines)
    assert code == FAILED
    assert done == {"execution_id": NEWER, "done": True, "status": "paused", "revision": 1, "error": None}
    assert (refused["execution_id"], refused["done"], refused["status"]) == (OLDER, False, "failed")
    assert refused["error"] == f"execution {OLDER} is failed and can't become paused"


def test_an_execution_is_cancelled_also_while_redis_is_away(
    store: ExecutionStore, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        assert run(["cancel", NEWER, "--store", sqlite_url, "--redis", nowhere]) == DONE
    assert capsys.readouterr().out == f"{NEWER}\tcancelled\tdone\t1\n"
    cancelled = store.get_execution(NEWER)
    assert cancelled is not None
    assert cancelled.status == "cancelled"


def test_controlling_through_an_application_registers_nothing(
    store: ExecutionStore, sqlite_url: str, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(APP)
    environment = {"SPANLOOM_STORE_URL": sqlite_url, "SPANLOOM_REDIS_URL": redis_url, "SPANLOOM_APP": "shop:engine"}
    done = run_command(["pause", NEWER], Path.cwd(), {**os.environ, **environment})
    assert (done.returncode, done.stdout) == (DONE, f"{NEWER}\tpaused\tdone\t1\n"), done.stderr
    assert [one.version for one in store.list_workflow_versions("orders").items] == [2, 1]


def test_a_terminal_gets_a_sentence(store: ExecutionStore, sqlite_url: str, redis_url: str) -> None:
    shown = in_terminal(["pause", NEWER, "--store", sqlite_url, "--redis", redis_url])
    assert shown.strip() == f"mail v1 {NEWER}  paused"
