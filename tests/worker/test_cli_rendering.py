"""What the command draws and writes, from fixed read models: golden text, for a terminal and for a pipe."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from spanloom.cli.rendering import (
    Items,
    Snapshot,
    attempt_lines,
    attempts_text,
    execution_lines,
    execution_row_lines,
    execution_tree,
    executions_table,
    items_lines,
    items_table,
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
from spanloom.cli.rendering.layout import lay_out
from spanloom.cli.rendering.values import ago, cell, duration, instant, printable
from spanloom.engine.definitions import Input, Node, Workflow
from spanloom.engine.records import WorkerLease
from spanloom.engine.states import ExecutionStatus, NodeStatus
from spanloom.engine.views import (
    Attempt,
    Execution,
    LogRecord,
    NodeRun,
    SpanRecord,
    StoreStats,
    WorkflowSummary,
    WorkflowVersion,
)
from spanloom.testing.workflows import after_any_end, after_failure, chain, fan, graph, single

NINE = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
NOW = NINE + timedelta(minutes=5)
ID = "019cb2f4-1111-7abc-8def-0123456789ab"
CHILD_ID = "019cb2f4-2222-7abc-8def-ba9876543210"
TRACE_ID, ROOT_SPAN = "a" * 32, "b" * 16


def drawn(renderable: RenderableType, width: int = 100) -> list[str]:
    screen = Console(file=io.StringIO(), width=width, color_system=None)
    screen.print(renderable)
    assert isinstance(screen.file, io.StringIO)
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


def text(block: str) -> list[str]:
    return [line[8:] for line in block.splitlines()[1:-1]]


def at(seconds: float) -> datetime:
    return NINE + timedelta(seconds=seconds)


def execution(**changes: Any) -> Execution:
    fields: dict[str, Any] = {
        "id": ID,
        "workflow_id": "orders",
        "version": 3,
        "status": "completed",
        "revision": 0,
        "priority": "normal",
        "input": None,
        "metadata": {"customer": "17"},
        "trace_parent": f"00-{TRACE_ID}-{ROOT_SPAN}-01",
        "created_at": NINE,
        "started_at": NINE,
        "ended_at": at(3.2),
    }
    return Execution(**fields | changes)


def run(node_id: str, status: str, start: float | None = None, end: float | None = None, **changes: Any) -> NodeRun:
    return NodeRun(
        execution_id=ID,
        node_id=node_id,
        node_type="work",
        status=NodeStatus(status),
        started_at=None if start is None else at(start),
        ended_at=None if end is None else at(end),
        worker_id="w1" if start is not None else None,
        **changes,
    )


def span(
    name: str, start: float, end: float | None, number: int, parent: str | None = ROOT_SPAN, **changes: Any
) -> SpanRecord:
    fields: dict[str, Any] = {
        "execution_id": ID,
        "trace_id": TRACE_ID,
        "span_id": f"{number:016x}",
        "parent_span_id": parent,
        "node_id": name,
        "name": name,
        "kind": "consumer",
        "status": "ok",
        "start_ns": int(at(start).timestamp() * 1000) * 1_000_000,
        "end_ns": None if end is None else int(at(end).timestamp() * 1000) * 1_000_000,
    }
    return SpanRecord(**fields | changes)


def outline(workflow: Workflow, **options: Any) -> list[str]:
    return [row.guides + (row.node.id if row.node else f"… {len(row.folded)}") for row in lay_out(workflow, **options)]


class TestLayout:
    def test_a_sequence_goes_straight_down(self) -> None:
        assert outline(chain(3)) == ["n1", "n2", "n3"]

    def test_a_fan_out_nests_and_its_join_comes_back_out(self) -> None:
        assert outline(fan(3)) == ["split", "├─ w1", "├─ w2", "└─ w3", "join"]

    def test_a_branch_of_several_nodes_stays_below_its_corner(self) -> None:
        inputs = {"a": [], "b": ["a"], "b2": ["b"], "x": ["b2"], "y": ["b2"], "c": ["a"], "end": ["x", "y", "c"]}
        assert outline(graph("w", inputs)) == [
            "a",
            "├─ b",
            "│  b2",
            "│  ├─ x",
            "│  └─ y",
            "└─ c",
            "end",
        ]

    def test_several_entry_nodes_are_branches_of_the_execution(self) -> None:
        assert outline(graph("w", {"a": [], "b": [], "join": ["a", "b"]})) == ["├─ a", "└─ b", "join"]

    def test_nodes_written_in_any_order_are_placed_after_their_inputs(self) -> None:
        assert outline(graph("w", {"c": ["b"], "b": ["a"], "a": []})) == ["a", "b", "c"]

    def test_quiet_branches_beyond_the_fold_share_a_row_and_the_others_stay(self) -> None:
        rows = outline(fan(10), fold=3, quiet=lambda node_id: node_id != "w9")
        assert rows == ["split", "├─ w1", "├─ w2", "├─ w9", "└─ … 7", "join"]

    def test_a_chain_of_ten_thousand_nodes_needs_no_recursion(self) -> None:
        assert len(lay_out(chain(10_000))) == 10_000


class TestTree:
    @pytest.fixture
    def snapshot(self) -> Snapshot:
        branches = [f"p{number}" for number in range(1, 5)]
        workflow = graph(
            "orders", {"scan": [], **{name: ["scan"] for name in branches}, "merge": branches, "mail": ["merge"]}
        )
        runs = (
            run("scan", "completed", 0, 0.4),
            run("p1", "completed", 0.5, 0.512),
            run("p2", "completed", 0.5, 2.5, attempt=3),
            run("p3", "failed", 0.5, 0.6, error={"type": "ValueError", "message": "no\tprice\x1b[31m"}),
            run("p4", "waiting", 0.5, None, wait_kind="retry", due_at=NOW + timedelta(seconds=7), losses=1),
        )
        failed = execution(
            status="failed", priority="high", error={"type": "ValueError", "message": "no price", "node_id": "p3"}
        )
        return Snapshot(failed, workflow, runs, NOW)

    def test_a_terminal_gets_header_and_tree(self, snapshot: Snapshot) -> None:
        assert drawn(execution_tree(snapshot)) == text(f"""
        orders v3  ✗ failed in 3.20 s
        {ID}  created 5 min ago, 2026-03-01T09:00:00.000Z  priority high
        customer=17
        ValueError: no price at node p3

        scan   ✓ completed    400 ms  w1
        ├─ p1  ✓ completed     12 ms  w1
        ├─ p2  ✓ completed    2.00 s  attempt 3  w1
        ├─ p3  ✗ failed       100 ms  w1  ValueError: no\\tprice\\x1b[31m
        └─ p4  ◔ waiting    5 m 00 s  1 lost  retry in 7 s  w1
        merge    not run              ← 4 nodes
        mail     not run
        """)

    def test_guides_and_worker_are_dim_and_names_are_not(self, snapshot: Snapshot) -> None:
        screen = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
        screen.print(execution_tree(snapshot))
        assert isinstance(screen.file, io.StringIO)
        assert "\x1b[90m├─ \x1b[0mp1  \x1b[32m✓ completed\x1b[0m     12 ms  \x1b[90mw1" in screen.file.getvalue()

    def test_a_narrow_terminal_cuts_the_notes_and_keeps_the_rest(self, snapshot: Snapshot) -> None:
        assert "├─ p3  ✗ failed       100 ms  w1  Value…" in drawn(execution_tree(snapshot), width=40)

    def test_a_pipe_gets_every_node_on_a_line_of_its_own(self, snapshot: Snapshot) -> None:
        assert list(execution_lines(snapshot)) == [
            f"id\t{ID}",
            "workflow\torders",
            "version\t3",
            "status\tfailed",
            "revision\t0",
            "priority\thigh",
            "created_at\t2026-03-01T09:00:00.000Z",
            "started_at\t2026-03-01T09:00:00.000Z",
            "ended_at\t2026-03-01T09:00:03.200Z",
            "seconds\t3.200000",
            "parent\t",
            "parent_node\t",
            'metadata\t{"customer": "17"}',
            "error\tValueError: no price",
            "",
            "scan\tcompleted\t1\t0.400000\t2026-03-01T09:00:00.000Z\tw1\t\t",
            "  p1\tcompleted\t1\t0.012000\t2026-03-01T09:00:00.500Z\tw1\t\t",
            "  p2\tcompleted\t3\t2.000000\t2026-03-01T09:00:00.500Z\tw1\t\t",
            "  p3\tfailed\t1\t0.100000\t2026-03-01T09:00:00.500Z\tw1\tValueError: no\\tprice\\x1b[31m\t",
            "  p4\twaiting\t1\t\t2026-03-01T09:00:00.500Z\tw1\t\tretry until 2026-03-01T09:05:07.000Z",
            "merge\tnot run\t\t\t\t\t\t← p1, p2, p3, p4",
            "mail\tnot run\t\t\t\t\t\t",
        ]

    def test_what_is_uneventful_is_folded_and_counted_by_state(self) -> None:
        runs = [run("split", "completed", 0, 0.1), *(run(f"w{n}", "completed", 0.1, 0.2) for n in range(1, 19))]
        runs[7] = run("w7", "running", 0.1)
        snapshot = Snapshot(execution(status="running", ended_at=None), fan(20), tuple(runs), at(1.1))
        lines = drawn(execution_tree(snapshot, fold=3))
        assert lines[3:] == text("""
        split                         ✓ completed    100 ms  w1
        ├─ w1                         ✓ completed    100 ms  w1
        ├─ w2                         ✓ completed    100 ms  w1
        ├─ w7                         ● running      1.00 s  w1
        └─ … 15 completed, 2 pending
        join                          · pending              ← 20 nodes
        """)

    def test_children_hang_below_the_node_that_started_them(self) -> None:
        child = execution(id=CHILD_ID, workflow_id="mail", version=1, parent_execution_id=ID, parent_node_id="send")
        below = Snapshot(child, chain(2), (run("n1", "completed", 1, 2), run("n2", "completed", 2, 3)), NOW)
        runs = (run("send", "completed", 0, 3), run("done", "completed", 3, 3.2))
        parent = Snapshot(
            execution(), graph("orders", {"send": [], "done": ["send"]}), runs, NOW, {("send", 0): (below,)}
        )
        assert drawn(execution_tree(parent))[3:] == text(f"""
        send                                            ✓ completed    3.00 s  w1
        ↳ mail v1 {CHILD_ID}  ✓ completed    3.20 s
          n1                                            ✓ completed    1.00 s  w1
          n2                                            ✓ completed    1.00 s  w1
        done                                            ✓ completed    200 ms  w1
        """)
        assert [child["execution"]["id"] for child in parent.document()["children"]] == [CHILD_ID]

    def test_a_family_hangs_together_and_its_top_names_the_parent(self) -> None:
        above = execution(id=CHILD_ID, workflow_id="shop", version=1, status="running", ended_at=None)
        own = execution(parent_execution_id=CHILD_ID, parent_node_id="each", parent_item=3, revision=2)
        grandchild = execution(id=CHILD_ID, workflow_id="mail", version=1, parent_execution_id=ID)
        below = Snapshot(execution(id=CHILD_ID, workflow_id="pack"), single(), (run("only", "completed", 0, 1),), NOW)
        below = replace(below, children={("only", 0): (Snapshot(grandchild, None, (), NOW),)})
        family = Snapshot(own, single(), (run("only", "completed", 0, 1),), NOW, {("only", 0): (below,)}, parent=above)
        lines = drawn(execution_tree(family), width=120)
        assert lines[:3] == [
            f"↳ child of shop v1 {CHILD_ID} at node each[3]  ● running",
            "orders v3  ✓ completed in 3.20 s",
            f"{ID}  created 5 min ago, 2026-03-01T09:00:00.000Z  revision 2  customer=17",
        ]
        assert [line.partition(" ✓")[0].rstrip() for line in lines[4:]] == [
            "only",
            f"↳ pack v3 {CHILD_ID}",
            "  only",
            f"  ↳ mail v1 {CHILD_ID}",
        ]
        assert lines[-1].endswith("its nodes: spanloom show 76543210")
        piped = list(execution_lines(family))
        assert (f"parent\t{CHILD_ID}" in piped, "parent_node\teach[3]" in piped) == (True, True)
        (child,) = family.document()["children"]
        assert (child["children"][0]["nodes"], child["children"][0]["children"]) == (None, None)

    def test_a_mapped_node_has_one_line_that_counts_its_items(self) -> None:
        items = [run("n1", "completed", 0, 1, item=number) for number in range(1, 9_001)]
        items += [run("n1", "running", 0, item=9_001), run("n1", "failed", 0, 1, item=9_002)]
        runs = (run("n1", "waiting", 0, wait_kind="items"), *items)
        snapshot = Snapshot(execution(status="running", ended_at=None), chain(2), runs, NOW, totals={"n1": 10_000})
        counts = "9,000/10,000 completed, 1 running, 1 failed"
        assert drawn(execution_tree(snapshot))[3:] == text(f"""
        n1  ◔ waiting    5 m 00 s  {counts}  w1
        n2  · pending
        """)
        assert [line.split("\t")[0::7] for line in list(execution_lines(snapshot))[15:]] == [["n1", counts], ["n2", ""]]

    def test_while_the_number_of_items_is_unknown_no_total_is_made_up(self) -> None:
        snapshot = Snapshot(execution(), chain(1), (run("n1", "failed", 0, 1), run("n1", "failed", 0, 1, item=1)), NOW)
        assert drawn(execution_tree(snapshot))[-1].endswith("0 completed, 1 failed  w1")


class TestRouting:
    def tree(self, inputs: dict[str, list[str | Input]], *runs: NodeRun) -> list[str]:
        return drawn(execution_tree(Snapshot(execution(), graph("w", inputs), runs, NOW)), width=120)[3:]

    def test_the_head_of_a_skipped_branch_says_who_did_not_take_it(self) -> None:
        paid = Input(node="check", when="total > `100`")
        lines = self.tree(
            {"check": [], "review": [paid], "ask": ["review"], "ship": ["check"]},
            run("check", "completed", 0, 1, taken=("ship",)),
            run("review", "skipped"),
            run("ask", "skipped"),
            run("ship", "completed", 1, 2),
        )
        assert lines == text("""
        check      ✓ completed    1.00 s  w1
        ├─ review  ↷ skipped              ← check if total > `100`  not taken by check
        │  ask     ↷ skipped
        └─ ship    ✓ completed    1.00 s  w1
        """)

    def test_without_a_record_of_the_edges_their_kind_tells(self) -> None:
        lines = self.tree(
            {"try": [], "mend": [after_failure("try")], "tidy": [after_any_end("try")]},
            run("try", "completed", 0, 1),
            run("mend", "skipped"),
            run("tidy", "completed", 1, 2),
        )
        assert lines == text("""
        try      ✓ completed    1.00 s  w1
        ├─ mend  ↷ skipped              ← try on failure  not taken by try
        └─ tidy  ✓ completed    1.00 s  ← try in any case  w1
        """)

    def test_what_its_handler_skipped_was_taken(self) -> None:
        lines = self.tree({"only": []}, run("only", "skipped", 0, 1))
        assert lines == ["only  ↷ skipped      1.00 s  w1"]

    def test_a_failure_that_was_handled_says_where_it_led(self) -> None:
        error = {"type": "ValueError", "message": "no"}
        lines = self.tree(
            {"try": [], "mend": [after_failure("try")]},
            run("try", "failed", 0, 1, error=error, data={"error": error}, taken=("mend",)),
            run("mend", "completed", 1, 2),
        )
        assert lines[0] == "try   ✗ failed       1.00 s  w1  handled, went on to mend  ValueError: no"

    def test_a_failure_that_is_left_as_data_is_handled_too(self) -> None:
        lines = self.tree({"only": []}, run("only", "failed", 0, 1, data={"error": {}}, taken=()))
        assert lines == ["only  ✗ failed       1.00 s  w1  handled"]

    def test_a_long_condition_is_cut_for_a_terminal_only(self) -> None:
        condition = "items[?price > `100`].name | contains(@, 'something rather long')"
        inputs = {"a": [], "b": [Input(node="a", when=condition)]}
        snapshot = Snapshot(execution(), graph("w", inputs), (), NOW)
        assert f"← a if {condition[:39]}…" in drawn(execution_tree(snapshot), width=120)[-1]
        assert list(execution_lines(snapshot))[-1].endswith(f"← a if {condition}")


class TestWaiting:
    @pytest.mark.parametrize(
        ("wait", "told", "piped"),
        [
            ({"wait_kind": "retry", "due_at": NOW + timedelta(seconds=7)}, "retry in 7 s", "retry until {due}"),
            ({"wait_kind": "timer", "due_at": NOW + timedelta(hours=2)}, "timer in 2 h, at {due}", "timer until {due}"),
            ({"wait_kind": "timer", "due_at": NOW - timedelta(seconds=5)}, "timer due 5 s ago", "timer until {due}"),
            ({"wait_kind": "child", "wait_key": CHILD_ID}, f"for child {CHILD_ID}", f"for child {CHILD_ID}"),
        ],
    )
    def test_a_waiting_node_says_for_what_and_until_when(self, wait: dict[str, Any], told: str, piped: str) -> None:
        snapshot = Snapshot(
            execution(status="running", ended_at=None), single(), (run("only", "waiting", 0, **wait),), NOW
        )
        due = instant(wait.get("due_at"))
        assert drawn(execution_tree(snapshot))[-1] == f"only  ◔ waiting    5 m 00 s  {told.format(due=due)}  w1"
        assert list(execution_lines(snapshot))[-1].split("\t")[-1] == piped.format(due=due)

    def test_when_a_queued_node_is_looked_at_again_is_nobodys_concern(self) -> None:
        queued = run("only", "queued", 0, due_at=NOW, wait_kind="timer")
        snapshot = Snapshot(execution(status="running", ended_at=None), single(), (queued,), NOW)
        assert drawn(execution_tree(snapshot))[-1] == "only  ○ queued               w1"


class TestItems:
    def test_items_are_listed_with_what_they_wait_for_and_their_children(self) -> None:
        runs = [
            run("each", "completed", 0, 1, item=1),
            run("each", "waiting", 0, item=2, wait_kind="child", wait_key=CHILD_ID),
            run("each", "failed", 0, 1, item=3, attempt=2, error={"type": "ValueError", "message": "a\nb"}),
        ]
        child = execution(id=CHILD_ID, workflow_id="mail", version=1, status="running", ended_at=None)
        items = Items(ID, "each", runs, {2: [child]})
        assert drawn(items_table(items, NOW), width=140) == text(f"""
        items of each: 1 completed, 1 waiting, 1 failed

        1  ✓ completed    1.00 s  w1
        2  ◔ waiting    5 m 00 s  for child {CHILD_ID}  w1  ↳ mail v1 {CHILD_ID} running
        3  ✗ failed       1.00 s  attempt 2  w1  ValueError: a\\nb
        """)
        rows = [line.split("\t") for line in items_lines(items)]
        assert [row[:3] for row in rows] == [["1", "completed", "1"], ["2", "waiting", "1"], ["3", "failed", "2"]]
        assert rows[1][7] == f"for child {CHILD_ID}; ↳ mail v1 {CHILD_ID} running"
        assert rows[2][6:] == ["ValueError: a\\nb", ""]
        document = items.document()
        assert ([one["item"] for one in document["items"]], document["children"][0]["id"]) == ([1, 2, 3], CHILD_ID)

    def test_a_node_whose_items_have_not_begun_says_so(self) -> None:
        assert drawn(items_table(Items(ID, "each", [], {}), NOW))[0] == "no item has begun"


class TestAttempts:
    @pytest.fixture
    def attempts(self) -> list[Attempt]:
        error = {"type": "shop.OutOfStock", "message": "none\x1b[2J", "traceback": 'File "shop.py", line 7\n  take()\n'}
        return [
            Attempt(attempt=1, worker_id="w1", started_at=NINE, ended_at=at(1), ended_as="retrying", error=error),
            Attempt(attempt=2, worker_id="w2", started_at=at(3)),
        ]

    def test_a_terminal_gets_each_with_its_error_and_traceback(self, attempts: list[Attempt]) -> None:
        assert drawn(attempts_text(attempts, NOW)) == text("""
        #1  ↻ retrying  1.00 s  2026-03-01T09:00:00.000Z  w1
            OutOfStock: none\\x1b[2J
            File "shop.py", line 7
              take()
        #2  ● running  4 m 57 s  2026-03-01T09:00:03.000Z  w2
        """)

    def test_a_pipe_gets_one_line_each(self, attempts: list[Attempt]) -> None:
        first, second = (line.split("\t") for line in attempt_lines(attempts))
        nine = "2026-03-01T09:00:0"
        assert first[:6] == ["1", "retrying", "1.000000", f"{nine}0.000Z", f"{nine}1.000Z", "w1"]
        assert first[6:] == ["OutOfStock: none\\x1b[2J", 'File "shop.py", line 7\\n  take()\\n']
        assert second == ["2", "running", "", f"{nine}3.000Z", "", "w2", "", ""]

    def test_a_node_that_was_not_started_says_so(self) -> None:
        assert drawn(attempts_text([], NOW)) == ["it has not been started"]


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
            parent_execution_id=ID, parent_node_id="send", parent_item=0, ended_at=at(3),
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
        assert printable("a\nb\x07\x9b", keep="\n") == "a\nb\\x07\\x9b"


def test_nothing_piped_holds_an_escape_sequence() -> None:
    lines: Iterable[str] = execution_row_lines([execution(metadata={"key": "\x1b[31mred"})])
    assert "\x1b" not in "".join(lines)
