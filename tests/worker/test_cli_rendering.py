"""What `spanloom show` draws and writes, from fixed read models: golden text, for a terminal and for a pipe."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from spanloom.cli.rendering import (
    Items,
    Snapshot,
    attempt_lines,
    attempts_text,
    execution_lines,
    execution_tree,
    items_lines,
    items_table,
)
from spanloom.cli.rendering.layout import lay_out
from spanloom.cli.rendering.values import instant
from spanloom.engine.store.models import Attempt, NodeRun
from spanloom.engine.workflow.definitions import Input, Workflow
from spanloom.testing.workflows import after_any_end, chain, fan, graph, route_failure, single
from support.read_models import CHILD_ID, ID, NINE, NOW, at, drawn, execution, run, text


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
            run("p4", "waiting", 0.5, None, wait_kind="retry", due_at=NOW + timedelta(seconds=7), recovery_attempts=1),
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
            "deadline_seconds\t",
            "created_at\t2026-03-01T09:00:00.000Z",
            "started_at\t2026-03-01T09:00:00.000Z",
            "ended_at\t2026-03-01T09:00:03.200Z",
            "acknowledged_at\t",
            "seconds\t3.200000",
            "parent\t",
            "parent_node\t",
            "replay_of\t",
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

    def test_a_replay_a_deadline_and_an_acknowledgement_are_told_at_the_top(self) -> None:
        replayed = execution(
            status="failed", replay_of=CHILD_ID, deadline_seconds=90.0, acknowledged_at=NOW - timedelta(minutes=2)
        )
        snapshot = Snapshot(replayed, single(), (run("only", "failed", 0, 1),), NOW)
        assert drawn(execution_tree(snapshot), width=120)[:3] == [
            f"↻ replay of {CHILD_ID}",
            "orders v3  ✗ failed in 3.20 s, acknowledged 2 min ago",
            f"{ID}  created 5 min ago, 2026-03-01T09:00:00.000Z  deadline 1 m 30 s  customer=17",
        ]
        piped = dict(line.split("\t", 1) for line in list(execution_lines(snapshot)) if line.count("\t") == 1)
        assert (piped["replay_of"], piped["deadline_seconds"]) == (CHILD_ID, "90.000000")
        assert piped["acknowledged_at"] == "2026-03-01T09:03:00.000Z"

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
        assert [child["execution"].id for child in parent.document()["children"]] == [CHILD_ID]

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
        assert [line.split("\t")[0::7] for line in list(execution_lines(snapshot))[18:]] == [["n1", counts], ["n2", ""]]

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
            {"try": [], "mend": [route_failure("try")], "tidy": [after_any_end("try")]},
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
            {"try": [], "mend": [route_failure("try")]},
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
        assert ([one.item for one in document["items"]], document["children"][0].id) == ([1, 2, 3], CHILD_ID)

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
