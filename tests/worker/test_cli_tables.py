"""The lists and waterfalls that the commands draw and write, from fixed read models: golden text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from spanloom.cli.rendering import (
    dead_lines,
    dead_table,
    execution_row_lines,
    executions_table,
    log_line,
    log_text,
    stats_lines,
    stats_table,
    version_lines,
    versions_table,
    waterfall,
    waterfall_lines,
    workflow_lines,
    workflows_table,
)
from spanloom.cli.rendering.values import ago, cell, duration
from spanloom.engine.escaping import escaped
from spanloom.engine.store.models import LogRecord, SpanRecord, StoreStats, WorkflowSummary, WorkflowVersion
from spanloom.engine.store.requests import WorkerLease
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.engine.workflow.definitions import Node, Workflow
from support.read_models import CHILD_ID, ID, NINE, NOW, ROOT_SPAN, TRACE_ID, at, drawn, execution, span, text


class TestWaterfall:
    @pytest.fixture
    def spans(self) -> Sequence[SpanRecord]:
        return [
            span("scan", 0, 0.8, 1),
            span("price", 0.8, 1.6, 2, status="error"),
            span("price", 2.4, 3.2, 3, attempt=2),
            span("GET /price", 2.6, 3.0, 4, parent=f"{3:016x}", kind="client", node_id="price"),
        ]

    def test_a_terminal_gets_bars_below_the_executions_own_span(self, spans: Sequence[SpanRecord]) -> None:
        lines = drawn(waterfall(spans, width=62, now_ns=0, family=[execution()]), width=62)
        assert lines == text(f"""
        trace {TRACE_ID}  4 spans in 3.20 s

        orders               3.20 s  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
        ├─ scan              800 ms  ━━━━━━━━
        ├─ price ✗           800 ms          ━━━━━━━━
        └─ price #2          800 ms                          ━━━━━━━━
           └─ GET /price     400 ms                            ━━━━
        """)

    def test_a_stored_span_of_the_execution_is_not_drawn_twice(self, spans: Sequence[SpanRecord]) -> None:
        stored = [span("orders", 0, 3.2, int(ROOT_SPAN, 16), parent=None, node_id=None), *spans]
        lines = drawn(waterfall(stored, width=64, now_ns=0, family=[execution()]), width=64)
        assert [line.split()[0] for line in lines[2:]] == ["orders", "├─", "├─", "└─", "└─"]

    def test_an_open_span_lasts_until_now(self) -> None:
        now_ns = int(at(4).timestamp()) * 1_000_000_000
        lines = drawn(
            waterfall([span("a", 0, 2, 1, parent=None), span("b", 2, None, 2, parent=None)], width=39, now_ns=now_ns)
        )
        assert lines[2:] == ["a     2.00 s  ━━━━━━━━━━━━", "b     2.00 s              ━━━━━━━━━━━━"]

    def test_the_shortest_of_many_siblings_share_a_line_and_failed_ones_do_not(self) -> None:
        spans = [span(f"s{number}", number, number + number / 10, number + 1) for number in range(8)]
        spans[1] = span("s1", 1, 1.001, 2, status="error")
        lines = drawn(waterfall(spans, width=80, now_ns=0, family=[execution(ended_at=at(8))], siblings=4))
        assert [line[:24].strip() for line in lines[2:]] == [
            "orders",
            "├─ … 5 more of 0 µs to 5",
            "├─ s1 ✗",
            "├─ s6",
            "└─ s7",
        ]

    def test_a_span_whose_parent_is_not_stored_is_a_root(self) -> None:
        lines = list(waterfall_lines([span("lonely", 0, 1, 1, parent="c" * 16)]))
        assert lines[0].startswith("lonely\t")

    def test_a_family_is_one_waterfall_each_child_below_the_attempt_that_started_it(self) -> None:
        child_span = "c" * 16
        child = execution(
            id=CHILD_ID, workflow_id="mail", trace_parent=f"00-{TRACE_ID}-{child_span}-01", created_at=at(1.1),
            parent_execution_id=ID, parent_node_id="send", parent_item=0, ended_at=at(3), caller_span_id=f"{2:016x}",
        )  # fmt: skip
        spans = [
            span("run send", 0, 0.2, 1, node_id="send", status="error"),
            span("run send", 1, 1.2, 2, node_id="send", attempt=2),
            span("run send", 3, 3.2, 3, node_id="send", attempt=2),
            span("run post", 2, 2.5, 4, parent=child_span, execution_id=CHILD_ID, node_id="post"),
        ]
        lines = [line.split("\t") for line in waterfall_lines(spans, family=[execution(), child])]
        assert [(line[0], line[-1]) for line in lines] == [
            ("orders", ID),
            ("  run send", ID),
            ("  run send", ID),
            ("    mail", CHILD_ID),
            ("      run post", CHILD_ID),
            ("  run send", ID),
        ]
        top = drawn(waterfall(spans, width=80, now_ns=0, family=[execution(), child]), width=80)[0]
        assert top.endswith("4 spans in 3.20 s of 2 executions")

    def test_a_short_attempt_with_a_long_or_failed_child_does_not_share_a_line(self) -> None:
        spans = [span(f"s{number}", number, number + 0.5, number + 1) for number in range(6)]
        spans[0] = span("starts", 0, 0.01, 1)
        spans[1] = span("hides", 1, 1.01, 2)
        spans += [
            span("long", 0, 5, 20, parent=f"{1:016x}"),
            span("bad", 1, 1.1, 21, parent=f"{2:016x}", status="error"),
        ]
        lines = drawn(waterfall(spans, width=80, now_ns=0, family=[execution(ended_at=at(8))], siblings=3), width=80)
        names = [line.lstrip("│├└─ ").partition("  ")[0] for line in lines[2:]]
        assert names == ["orders", "starts", "long", "hides", "bad ✗", "… 4 more of 500 ms to 500 ms"]

    def test_a_pipe_gets_one_line_a_span(self, spans: Sequence[SpanRecord]) -> None:
        assert list(waterfall_lines(spans, family=[execution()])) == [
            f"orders\t0.000000\t3.200000\tok\tinternal\t\t0\t1\t{ROOT_SPAN}\t\t{ID}",
            f"  scan\t0.000000\t0.800000\tok\tconsumer\tscan\t0\t1\t{1:016x}\t{ROOT_SPAN}\t{ID}",
            f"  price\t0.800000\t0.800000\terror\tconsumer\tprice\t0\t1\t{2:016x}\t{ROOT_SPAN}\t{ID}",
            f"  price\t2.400000\t0.800000\tok\tconsumer\tprice\t0\t2\t{3:016x}\t{ROOT_SPAN}\t{ID}",
            f"    GET /price\t2.600000\t0.400000\tok\tclient\tprice\t0\t1\t{4:016x}\t{3:016x}\t{ID}",
        ]

    def test_an_execution_without_spans_says_so(self) -> None:
        assert drawn(waterfall([], width=80, now_ns=0)) == ["no spans are stored"]


class TestTables:
    def test_executions(self) -> None:
        running = execution(id=CHILD_ID, status="running", ended_at=None, metadata={}, parent_execution_id=ID)
        assert drawn(executions_table([execution(), running], NOW), width=120) == text(f"""
        execution                             workflow     status       created    took      child of  metadata
        {ID}  orders v3    ✓ completed  5 min ago  3.20 s              customer=17
        {CHILD_ID}  ↳ orders v3  ● running    5 min ago  5 m 00 s  456789ab
        """)
        nine = "2026-03-01T09:00:00.000Z"
        assert list(execution_row_lines([execution(), running])) == [
            f'{ID}\torders\t3\tcompleted\t{nine}\t{nine}\t2026-03-01T09:00:03.200Z\t\t{{"customer": "17"}}',
            f"{CHILD_ID}\torders\t3\trunning\t{nine}\t{nine}\t\t{ID}\t",
        ]

    def test_dead_letters(self) -> None:
        error = {"type": "shop.OutOfStock", "message": "none\x1b[2J left\nof 7", "node_id": "reserve"}
        rows = [
            execution(status="failed", error=error),
            execution(
                id=CHILD_ID, status="failed", metadata={}, error={"type": "DeadlineExceeded", "message": "q" * 300}
            ),
        ]
        first, second = drawn(dead_table(rows[:1], NOW), width=140)
        assert first.split() == ["execution", "workflow", "failed", "node", "error", "metadata"]
        assert second.split("  ") == [
            ID, "orders v3", "4 min ago", "reserve", "OutOfStock: none\\x1b[2J left\\nof 7", "customer=17",
        ]  # fmt: skip
        long = "".join(drawn(dead_table(rows[1:], NOW), width=140))
        assert (long.count("q"), "…" in long) == (200 - len("DeadlineExceeded: …"), True)
        assert list(dead_lines(rows[:1])) == [
            f"{ID}\torders\t3\t2026-03-01T09:00:03.200Z\treserve\tOutOfStock\tnone\\x1b[2J left\\nof 7"
            '\t{"customer": "17"}\t'
        ]

    def test_one_that_was_acknowledged_says_when(self) -> None:
        (line,) = dead_lines([execution(status="failed", acknowledged_at=NOW)])
        assert line.split("\t")[4:] == ["", "", "", '{"customer": "17"}', "2026-03-01T09:05:00.000Z"]

    def test_workflows(self) -> None:
        rows = [
            WorkflowSummary(id="etl", name="ETL", latest_version=2, active=True, created_at=NINE, updated_at=NOW),
            WorkflowSummary(id="old", name="", latest_version=1, active=False, created_at=NINE, updated_at=NINE),
        ]
        assert drawn(workflows_table(rows, NOW)) == text("""
        workflow  name  latest  state        updated
        etl       ETL   v2      active       just now
        old             v1      deactivated  5 min ago
        """)
        assert list(workflow_lines(rows)) == [
            "etl\tETL\t2\tactive\t2026-03-01T09:00:00.000Z\t2026-03-01T09:05:00.000Z",
            "old\t\t1\tdeactivated\t2026-03-01T09:00:00.000Z\t2026-03-01T09:00:00.000Z",
        ]

    def test_versions(self) -> None:
        version = WorkflowVersion(
            workflow_id="etl",
            version=2,
            name="ETL",
            change_notes="Added e-mail",
            created_by="ada",
            created_at=NINE,
            definition=Workflow(id="etl", nodes=(Node(id="a", type="fetch"),)),
        )
        assert drawn(versions_table([version], NOW)) == text("""
        version  nodes  registered  by   notes
        v2       1      5 min ago   ada  Added e-mail
        """)
        assert list(version_lines([version])) == ["etl\t2\tETL\t1\t2026-03-01T09:00:00.000Z\tada\tAdded e-mail"]

    def test_stats(self) -> None:
        stats = StoreStats(
            workflows=2,
            executions={ExecutionStatus.COMPLETED: 10203, ExecutionStatus.FAILED: 3},
            open_node_runs={NodeStatus.QUEUED: 4, NodeStatus.HELD: 0},
            workers=1,
            oldest_queued_seconds=3.1,
        )
        worker = WorkerLease("1", "w1", "host", 12, ("high", "default"), NINE, NOW, 1)
        assert drawn(stats_table(stats, [worker], NOW)) == text("""
        workflows       2
        executions      10,203 completed   3 failed
        open node runs  4 queued
        oldest queued   since 3.10 s

        worker  host  pid  queues        running  started
        w1      host  12   high,default  1        5 min ago
        """)
        assert list(stats_lines(stats, [worker])) == [
            "workflows\t2",
            "executions.completed\t10203",
            "executions.failed\t3",
            "open_node_runs.queued\t4",
            "open_node_runs.held\t0",
            "oldest_queued_seconds\t3.100000",
            "workers\t1",
            "worker\tw1\thost\t12\thigh,default\t1",
        ]

    def test_stats_without_workers_say_so(self) -> None:
        stats = StoreStats(workflows=0, executions={}, open_node_runs={}, workers=0, oldest_queued_seconds=None)
        assert drawn(stats_table(stats, [], NOW))[-1] == "workers         none is running"

    def test_a_log_line_with_breaks_is_one_line_in_a_pipe_and_can_not_steer_a_terminal(self) -> None:
        record = LogRecord(
            id=1,
            execution_id=ID,
            node_id="scan",
            attempt=2,
            level="warning",
            message="a\nb\x1b[2J",
            fields={"n": 1},
            at=NINE,
        )
        assert log_line(record) == '2026-03-01T09:00:00.000Z\twarning\tscan\t0\t2\ta\\nb\\x1b[2J\t{"n": 1}'
        first, second = drawn(log_text(record))
        assert first.endswith("warning   scan #2  a")
        assert second == "b\\x1b[2J  n=1"


class TestValues:
    @pytest.mark.parametrize(
        ("seconds", "told"),
        [
            (0, "0 µs"),
            (0.00087, "870 µs"),
            (0.0009999, "1 ms"),
            (0.9994, "999 ms"),
            (0.99951, "1.00 s"),
            (9.999, "10.0 s"),
            (59.99, "1 m 00 s"),
            (125, "2 m 05 s"),
            (3599.7, "1 h 00 m"),
            (4 * 86400 + 3 * 3600, "4 d 03 h"),
        ],
    )
    def test_a_duration_is_told_in_its_own_size(self, seconds: float, told: str) -> None:
        assert duration(seconds) == told

    @pytest.mark.parametrize(
        ("seconds", "told"),
        [(0.4, "just now"), (42, "42 s ago"), (200, "3 min ago"), (7300, "2 h ago"), (-90, "in 1 min")],
    )
    def test_a_time_is_told_relative_to_now(self, seconds: float, told: str) -> None:
        assert ago(NOW - timedelta(seconds=seconds), NOW) == told

    @pytest.mark.parametrize(
        ("value", "written"),
        [
            (None, ""),
            ({}, ""),
            (["é"], '["é"]'),
            (0.25, "0.250000"),
            ("a\tb\n", "a\\tb\\n"),
            (NINE, "2026-03-01T09:00:00.000Z"),
        ],
    )
    def test_a_cell_never_breaks_its_line(self, value: Any, written: str) -> None:
        assert cell(value) == written

    def test_control_characters_are_escaped_except_those_kept(self) -> None:
        assert escaped("a\nb\x07\x9b", keep="\n") == "a\nb\\x07\\x9b"


def test_nothing_piped_holds_an_escape_sequence() -> None:
    lines: Iterable[str] = execution_row_lines([execution(metadata={"key": "\x1b[31mred"})])
    assert "\x1b" not in "".join(lines)
