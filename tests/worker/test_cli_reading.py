"""The commands that read a store: list, show, logs, trace, workflows, stats, for a pipe and for a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from spanloom.cli.exit_codes import DONE, MISTAKE, run
from spanloom.engine import ExecutionStore
from spanloom.engine.store.models import (
    Attempt,
    Execution,
    LogRecord,
    NodeRun,
    SpanRecord,
    StoreStats,
    WorkflowSummary,
    WorkflowVersion,
)
from spanloom.engine.store.requests import (
    Claim,
    FanOut,
    LogLine,
    NodeKey,
    Outcome,
    RecordRequest,
    RecordResult,
    SpanLine,
    StartRequest,
    StartResult,
)
from spanloom.engine.store.states import WaitKind
from spanloom.engine.workflow.definitions import MapOver, Node, Workflow
from spanloom.stores import open_store
from spanloom.testing.workflows import single
from support.cli import NEWER, NINE, NINE_NS, OLDER, ROOT_SPAN, TRACE_ID, Invoke, at, in_terminal

pytestmark = pytest.mark.usefixtures("clean_environment")


class TestReading:
    @pytest.fixture(autouse=True)
    def filled(self, store: ExecutionStore) -> None:
        """Every test here reads the same store."""

    def test_list_shows_the_newest_first(self, invoke: Invoke) -> None:
        rows = [line.split("\t") for line in invoke("list").splitlines()]
        assert [row[:4] for row in rows] == [[NEWER, "mail", "1", "running"], [OLDER, "orders", "1", "failed"]]
        assert rows[1][4:] == [*["2026-03-01T09:00:00.000Z"] * 2, "2026-03-01T09:00:02.250Z", "", '{"customer": "17"}']

    @pytest.mark.parametrize(
        ("arguments", "found"),
        [
            (["--workflow", "orders"], [OLDER]),
            (["--status", "running"], [NEWER]),
            (["--metadata", "customer=17"], [OLDER]),
            (["--metadata", "customer=18"], []),
            (["--since", "2026-03-01T09:00:02Z"], [NEWER]),
            (["--limit", "1"], [NEWER]),
            (["--parent", OLDER], []),
        ],
    )
    def test_list_filters(self, invoke: Invoke, arguments: list[str], found: list[str]) -> None:
        assert [line.split("\t")[0] for line in invoke("list", *arguments).splitlines()] == found

    def test_list_pages_by_the_cursor_of_its_json(self, invoke: Invoke) -> None:
        first = json.loads(invoke("list", "--limit", "1", "--json"))
        second = json.loads(invoke("list", "--limit", "1", "--json", "--cursor", first["next_cursor"]))
        assert [page["items"][0]["id"] for page in (first, second)] == [NEWER, OLDER]
        assert set(first["items"][0]) == set(Execution.model_fields)

    @pytest.mark.parametrize("given", [OLDER, OLDER[-8:], OLDER[:12]])
    def test_show_finds_an_execution_by_its_id_or_an_end_of_it(self, invoke: Invoke, given: str) -> None:
        header, nodes = invoke("show", given).split("\n\n")
        assert f"id\t{OLDER}" in header
        assert "error\tValueError: no stock" in header
        assert [line.split("\t") for line in nodes.splitlines()] == [
            ["n1", "completed", "1", "0.250000", "2026-03-01T09:00:01.000Z", "w1", "", ""],
            ["n2", "failed", "1", "0.250000", "2026-03-01T09:00:02.000Z", "w1", "ValueError: no stock", ""],
        ]

    def test_show_has_a_json_form_with_the_fields_of_the_models(self, invoke: Invoke) -> None:
        document = json.loads(invoke("show", OLDER, "--json"))
        assert set(document) == {"execution", "nodes", "children"}
        assert document["execution"]["input"] == {"id": 7}
        assert [node["data"] for node in document["nodes"]] == ["priced", None]
        assert set(document["nodes"][0]) == set(NodeRun.model_fields)

    def test_logs_come_in_the_order_of_storing(self, invoke: Invoke) -> None:
        lines = invoke("logs", OLDER).splitlines()
        assert [line.split("\t")[5] for line in lines] == ["n1 begins", "n1 ends", "n2 begins", "n2 ends"]
        assert lines[0] == '2026-03-01T09:00:01.000Z\tinfo\tn1\t0\t1\tn1 begins\t{"cents": 990}'

    def test_logs_of_one_node_as_json_lines(self, invoke: Invoke) -> None:
        records = [json.loads(line) for line in invoke("logs", OLDER, "--node", "n2", "--json").splitlines()]
        assert [record["message"] for record in records] == ["n2 begins", "n2 ends"]
        assert set(records[0]) == set(LogRecord.model_fields)

    def test_following_the_logs_of_an_ended_execution_ends(self, invoke: Invoke) -> None:
        assert len(invoke("logs", OLDER, "--follow").splitlines()) == 4

    def test_following_logs_prints_what_comes_until_the_end(
        self, invoke: Invoke, store: ExecutionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.add_log(NEWER, LogLine("info", "early", NINE))

        def meanwhile(_seconds: float) -> None:
            store.add_log(NEWER, LogLine("info", "late", NINE))
            store.cancel_execution(NEWER)

        monkeypatch.setattr("spanloom.cli.commands.logs.time.sleep", meanwhile)
        assert [line.split("\t")[5] for line in invoke("logs", NEWER, "-f").splitlines()] == ["early", "late"]

    def test_trace_puts_nodes_below_the_executions_own_span(self, invoke: Invoke) -> None:
        assert [line.split("\t")[:4] for line in invoke("trace", OLDER).splitlines()] == [
            ["orders", "0.000000", "2.250000", "error"],
            ["  n1", "1.000000", "0.250000", "ok"],
            ["  n2", "2.000000", "0.250000", "error"],
        ]

    def test_trace_has_a_json_form_of_what_is_stored(self, invoke: Invoke) -> None:
        document = json.loads(invoke("trace", OLDER, "--json"))
        assert document["execution_id"] == OLDER
        assert [span["name"] for span in document["spans"]] == ["n1", "n2"]
        assert set(document["spans"][0]) == set(SpanRecord.model_fields)

    def test_workflows_lists_them_and_the_versions_of_one(self, invoke: Invoke) -> None:
        assert [line.split("\t")[:4] for line in invoke("workflows").splitlines()] == [
            ["mail", "mail", "1", "active"],
            ["orders", "orders", "2", "active"],
        ]
        versions = [line.split("\t") for line in invoke("workflows", "orders").splitlines()]
        assert [(one[1], one[3], one[5], one[6]) for one in versions] == [
            ("2", "3", "", ""),
            ("1", "2", "ada", "first"),
        ]

    def test_workflows_has_json_forms_with_the_fields_of_the_models(self, invoke: Invoke) -> None:
        (mail, _) = json.loads(invoke("workflows", "--json"))["items"]
        (version,) = json.loads(invoke("workflows", "mail", "--json"))["items"]
        assert set(mail) == set(WorkflowSummary.model_fields)
        assert set(version) == set(WorkflowVersion.model_fields)

    def test_stats_counts_by_state_and_lists_workers(self, invoke: Invoke) -> None:
        counts = dict(line.split("\t", 1) for line in invoke("stats").splitlines())
        assert counts["workflows"] == "2"
        assert counts["executions.failed"] == counts["executions.running"] == "1"
        document = json.loads(invoke("stats", "--json"))
        assert set(document) == {*StoreStats.model_fields, "live_workers"}

    def test_a_reader_that_has_enough_gets_no_traceback(self, sqlite_url: str) -> None:
        command = [sys.executable, "-m", "spanloom.cli", "logs", OLDER, "--store", sqlite_url]
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
        os.close(write_end)
        assert done.stderr == ""

    @pytest.mark.parametrize(
        ("arguments", "drawn"),
        [
            (["list"], ["● running", "✗ failed"]),
            (["show", OLDER], ["orders v1", "✓ completed", "ValueError: no stock"]),
            (["logs", OLDER], ["n2 begins"]),
            (["trace", OLDER], ["orders", "━", "n2 ✗"]),
            (["workflows"], ["mail", "v2"]),
            (["workflows", "orders"], ["ada"]),
            (["stats"], ["1 failed", "default"]),
        ],
    )
    def test_a_terminal_gets_colours_and_a_drawing(
        self, sqlite_url: str, arguments: list[str], drawn: list[str]
    ) -> None:
        shown = in_terminal([*arguments, "--store", sqlite_url])
        assert "\x1b[" in shown
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
        assert all(fragment in plain for fragment in drawn)


CHILD = "019cb2f4-3333-7abc-8def-0a0b0c0d0e0f"
CHILD_SPAN = "c" * 16


class TestFamilies:
    """A node mapped over three of whom one failed and one waits, and a child of its item 2, in a store of their own."""

    @pytest.fixture(autouse=True)
    def family(self, sqlite_url: str) -> Iterator[ExecutionStore]:
        store = open_store(sqlite_url)
        store.open()
        each = Node(id="each", type="work", map=MapOver(over="input", max_concurrency=2, tolerated_failures=1))
        store.save_workflow(Workflow(id="orders", nodes=(each, Node(id="after", type="work", inputs="each"))))
        store.save_workflow(single("mail"))
        store.register_worker("w1", name="w1", host="here", pid=1, queues=["default"], lease_seconds=1e9, now=NINE)
        parent = StartRequest(OLDER, "orders", "[1, 2, 3]", trace_parent=f"00-{TRACE_ID}-{ROOT_SPAN}-01")
        assert isinstance(store.create_execution(parent, now=NINE), StartResult)
        self.record(
            store,
            0,
            1,
            Outcome.WAITING,
            wait_kind=WaitKind.ITEMS,
            fan_out=FanOut(["1", "2", "3"], max_concurrency=2, tolerated_failures=1),
        )
        error = json.dumps({"type": "ValueError", "message": "no", "traceback": "File x\n  no", "permanent": False})
        self.record(store, 1, 2, Outcome.RETRY, error=error, delay_seconds=1)
        store.sweep(heads={}, epoch=0, now=at(4))
        self.record(store, 1, 5, Outcome.FAILED, error=error)
        child = StartRequest(
            CHILD, "mail", "null", trace_parent=f"00-{TRACE_ID}-{CHILD_SPAN}-01", caller_span_id=f"{2:016x}",
            parent=NodeKey(OLDER, "each", 2), parent_fence=1, depth=1,
        )  # fmt: skip
        self.record(store, 2, 6, Outcome.WAITING, wait_kind=WaitKind.CHILD, wait_key=CHILD, child=child)
        yield store
        store.close()

    def record(self, store: ExecutionStore, item: int, second: float, outcome: Outcome, **fields: Any) -> RecordResult:
        (claim,) = store.claim([NodeKey(OLDER, "each", item)], worker_id="w1", now=at(second))
        assert isinstance(claim, Claim)
        start_ns = NINE_NS + int(second) * 1_000_000_000
        span = SpanLine(
            TRACE_ID,
            f"{int(second):016x}",
            ROOT_SPAN,
            "run each",
            "consumer",
            "ok",
            start_ns,
            start_ns + 1,
            "each",
            item,
        )
        record = RecordRequest(OLDER, "each", item, claim.node.fence, "w1", outcome, spans=[span], **fields)
        (answer,) = store.record([record], now=at(second + 0.5))
        assert answer.recorded
        return answer

    def test_a_mapped_node_is_one_line_with_how_many_there_will_be(self, invoke: Invoke) -> None:
        (each, after) = invoke("show", OLDER).split("\n\n")[1].splitlines()
        assert each.split("\t")[1] == "waiting"
        assert each.split("\t")[7] == "0/3 completed, 1 waiting, 1 queued, 1 failed"
        assert after.split("\t")[:2] == ["after", "pending"]

    def test_show_lists_the_items_of_a_node(self, invoke: Invoke) -> None:
        rows = [line.split("\t") for line in invoke("show", OLDER, "--items", "each").splitlines()]
        assert [row[:3] for row in rows] == [["1", "failed", "2"], ["2", "waiting", "1"], ["3", "queued", "1"]]
        assert rows[1][7] == f"for child {CHILD}; ↳ mail v1 {CHILD} running"
        document = json.loads(invoke("show", OLDER, "--items", "each", "--json"))
        assert [one["item"] for one in document["items"]] == [1, 2, 3]
        assert [one["id"] for one in document["children"]] == [CHILD]

    def test_show_tells_the_attempts_at_an_item(self, invoke: Invoke) -> None:
        rows = [line.split("\t") for line in invoke("show", OLDER, "--attempts", "each:1").splitlines()]
        assert [row[:3] for row in rows] == [["1", "retrying", "0.500000"], ["2", "failed", "0.500000"]]
        assert rows[0][5:] == ["w1", "ValueError: no", "File x\\n  no"]
        document = json.loads(invoke("show", OLDER, "--attempts", "each", "--json"))
        assert (document["node_id"], document["item"]) == ("each", 0)
        assert [one["ended_as"] for one in document["attempts"]] == ["waiting"]
        assert set(document["attempts"][0]) == set(Attempt.model_fields)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--items", "eac"], "has no node 'eac'; did you mean 'each'?"),
            (["--attempts", "x"], f"has no node 'x'; `spanloom show {OLDER}` shows its nodes"),
            (["--items", "after"], "node 'after' of 'orders' v1 is not mapped"),
        ],
    )
    def test_a_node_that_is_not_there_or_has_no_items_is_refused(
        self, sqlite_url: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["show", OLDER, *arguments, "--store", sqlite_url]) == MISTAKE
        assert said in capsys.readouterr().err

    def test_a_child_names_its_parent_and_is_listed_by_it(self, invoke: Invoke) -> None:
        header = dict(line.split("\t", 1) for line in invoke("show", CHILD).split("\n\n")[0].splitlines())
        assert (header["parent"], header["parent_node"]) == (OLDER, "each[2]")
        (row,) = invoke("list", "--parent", OLDER, "--status", "running").splitlines()
        assert (row.split("\t")[0], row.split("\t")[7]) == (CHILD, OLDER)
        assert invoke("list", "--parent", OLDER, "--status", "failed") == ""

    def test_the_children_of_items_are_in_the_document_without_their_nodes(self, invoke: Invoke) -> None:
        (child,) = json.loads(invoke("show", OLDER, "--json"))["children"]
        assert (child["execution"]["id"], child["nodes"], child["children"]) == (CHILD, None, None)

    def test_trace_shows_the_family_as_one_waterfall(self, invoke: Invoke, family: ExecutionStore) -> None:
        child_span = SpanLine(
            TRACE_ID, f"{9:016x}", CHILD_SPAN, "run only", "consumer", "ok", NINE_NS, NINE_NS + 1, "only"
        )
        family.add_span(CHILD, child_span)
        names = [line.split("\t")[0] for line in invoke("trace", OLDER).splitlines()]
        assert names == ["orders", *["  run each"] * 2, "    mail", "      run only", *["  run each"] * 2]
        assert {span["execution_id"] for span in json.loads(invoke("trace", OLDER, "--json"))["spans"]} == {
            OLDER,
            CHILD,
        }
        assert [line.split("\t")[0] for line in invoke("trace", CHILD).splitlines()] == ["mail", "  run only"]

    def test_of_a_family_that_is_too_large_a_part_is_traced_and_that_is_said(
        self, sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("spanloom.cli.rendering.family.EXECUTIONS", 1)
        assert run(["trace", OLDER, "--store", sqlite_url]) == DONE
        printed = capsys.readouterr()
        assert (CHILD in printed.out, printed.err) == (
            False,
            "of its family the 1 executions nearest to it are shown\n",
        )

    @pytest.mark.parametrize(
        ("arguments", "drawn"),
        [
            (["show", OLDER], ["0/3 completed, 1 waiting"]),
            (["show", OLDER, "--items", "each"], ["✗ failed", "↳ mail v1"]),
            (["show", OLDER, "--attempts", "each:1"], ["#1  ↻ retrying", "File x"]),
            (["show", CHILD], [f"↳ child of orders v1 {OLDER} at node each[2]  ● running"]),
            (["list"], ["↳ mail v1", OLDER[-8:]]),
            (["trace", OLDER], ["mail", "of 2 executions"]),
        ],
    )
    def test_a_terminal_gets_a_drawing(self, sqlite_url: str, arguments: list[str], drawn: list[str]) -> None:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", in_terminal([*arguments, "--store", sqlite_url]))
        assert [fragment for fragment in drawn if fragment not in plain] == []
