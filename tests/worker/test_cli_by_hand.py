"""`spanloom fail` and `spanloom node`: what an operator ends in place of a worker, or of time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spanloom.cli.exit_codes import DONE, FAILED, MISTAKE
from spanloom.engine import ExecutionStore
from spanloom.engine.store.models import Execution, NodeRun
from spanloom.engine.store.requests import Claim, FanOut, NodeKey, Outcome, RecordRequest, StartRequest
from spanloom.engine.store.states import WaitKind
from spanloom.engine.workflow.definitions import MapOver, Node, Workflow
from spanloom.testing.workflows import graph
from support.cli import NEWER, OLDER, Control, at, in_terminal

pytestmark = pytest.mark.usefixtures("clean_environment")

THIRD = "019cb2f4-4444-7abc-8def-000000000001"


def read(store: ExecutionStore, execution_id: str) -> Execution:
    found = store.get_execution(execution_id)
    assert found is not None
    return found


def node_statuses(store: ExecutionStore, execution_id: str) -> dict[str, str]:
    return {run.node_id: run.status.value for run in store.get_node_results(execution_id)}


class TestFailing:
    def test_it_fails_with_the_reason_that_was_given_and_can_be_retried(
        self, control: Control, store: ExecutionStore
    ) -> None:
        assert control("fail", NEWER, "--error", "wrong customer") == (DONE, [[NEWER, "failed", "done", "1"]], "")
        failed = read(store, NEWER)
        assert failed.error is not None
        assert (failed.status, failed.error["message"]) == ("failed", "wrong customer")
        assert node_statuses(store, NEWER) == {"only": "held"}
        assert control("retry", NEWER)[0] == DONE

    def test_of_several_each_has_its_line_or_its_sentence(self, control: Control, store: ExecutionStore) -> None:
        store.create_executions([StartRequest(THIRD, "mail", "null")])
        store.cancel_execution(THIRD)
        code, lines, complaints = control("fail", OLDER, NEWER, THIRD, "--error", "enough")
        assert (code, [line[:3] for line in lines]) == (
            FAILED,
            [[OLDER, "failed", "already"], [NEWER, "failed", "done"]],
        )
        assert complaints == f"spanloom: execution {THIRD} is cancelled and can't become failed\n"

    def test_without_a_reason_or_of_another_revision_it_is_left(self, control: Control, store: ExecutionStore) -> None:
        assert control("fail", NEWER)[0] == MISTAKE
        assert control("fail", NEWER, "--error", "x", "--expected-revision", "4")[0] == FAILED
        assert read(store, NEWER).status == "running"


class TestEnding:
    def test_a_node_is_completed_with_data_and_the_execution_with_it(
        self, control: Control, store: ExecutionStore
    ) -> None:
        ended = control("node", "complete", NEWER[-8:], "only", "--data", '{"by": "ada"}')
        assert ended == (DONE, [[NEWER, "only", "0", "completed", "completed"]], "")
        assert read(store, NEWER).output == {"by": "ada"}

    def test_without_data_it_is_completed_with_null(self, control: Control, store: ExecutionStore) -> None:
        code, ((line,),), _ = control("node", "complete", NEWER, "only", "--json")
        document = json.loads(line)
        assert (code, document["status"], document["data"]) == (DONE, "completed", None)
        assert set(document) == set(NodeRun.model_fields)

    def test_data_may_come_from_a_file(self, control: Control, store: ExecutionStore, tmp_path: Path) -> None:
        (tmp_path / "answer.json").write_text("[1, 2]")
        assert control("node", "complete", NEWER, "only", "--data", "@answer.json")[0] == DONE
        assert read(store, NEWER).output == [1, 2]

    def test_a_node_is_failed_with_a_reason(self, control: Control, store: ExecutionStore) -> None:
        ended = control("node", "fail", NEWER, "only", "--error", "no answer")
        assert ended == (DONE, [[NEWER, "only", "0", "failed", "failed"]], "")
        failed = read(store, NEWER)
        assert failed.error is not None
        assert (failed.error["node_id"], failed.error["message"]) == ("only", "no answer")

    def test_a_node_is_skipped(self, control: Control, store: ExecutionStore) -> None:
        code, lines, _ = control("node", "skip", NEWER, "only")
        assert (code, lines) == (DONE, [[NEWER, "only", "0", "skipped", "completed"]])

    def test_it_leads_to_the_successors_that_are_named(self, control: Control, store: ExecutionStore) -> None:
        store.save_workflow(graph("choice", {"ask": [], "yes": ["ask"], "no": ["ask"], "never": ["ask"]}))
        store.create_executions([StartRequest(THIRD, "choice", "null")])
        code, lines, _ = control("node", "complete", THIRD, "ask", "--data", "7", "--next", "yes", "--next", "no")
        assert (code, lines) == (DONE, [[THIRD, "ask", "0", "completed", "running"]])
        assert node_statuses(store, THIRD) == {"ask": "completed", "yes": "queued", "no": "queued", "never": "skipped"}

    def test_an_item_of_a_mapped_node_is_ended_by_its_number(self, control: Control, store: ExecutionStore) -> None:
        each = Node(id="each", type="work", map=MapOver(over="input", max_concurrency=2))
        store.save_workflow(Workflow(id="many", nodes=(each,)))
        store.create_executions([StartRequest(THIRD, "many", "[1, 2]")])
        (claim,) = store.claim([NodeKey(THIRD, "each")], worker_id="w1", now=at(5))
        assert isinstance(claim, Claim)
        fan_out = FanOut(["1", "2"], max_concurrency=2, tolerated_failures=0)
        record = RecordRequest(
            THIRD, "each", 0, claim.node.fence, "w1", Outcome.WAITING, wait_kind=WaitKind.ITEMS, fan_out=fan_out
        )
        store.record([record], now=at(6))
        code, lines, _ = control("node", "complete", THIRD, "each:2", "--data", "20")
        assert (code, lines) == (DONE, [[THIRD, "each", "2", "completed", "running"]])
        runs = {run.item: (run.status.value, run.data) for run in store.get_node_results(THIRD)}
        assert (runs[1], runs[2]) == (("queued", None), ("completed", 20))

    @pytest.mark.parametrize(("node", "said"), [("n1", "completed"), ("n2", "failed")])
    def test_a_node_that_has_ended_is_refused(
        self, control: Control, store: ExecutionStore, node: str, said: str
    ) -> None:
        code, lines, complaints = control("node", "skip", OLDER, node)
        assert (code, lines) == (FAILED, [])
        assert said in complaints
        assert "can't become skipped" in complaints

    def test_a_node_that_a_live_worker_runs_is_refused(self, control: Control, store: ExecutionStore) -> None:
        store.claim([NodeKey(NEWER, "only")], worker_id="w1", now=at(4))
        assert control("node", "complete", NEWER, "only")[0] == FAILED
        assert read(store, NEWER).status == "running"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["complete", "onyl"], "no node 'onyl' (did you mean 'only'?)"),
            (["fail", "only"], "Missing option '--error'"),
            (["fail", "only", "--error", "x", "--data", "1"], "No such option"),
            (["skip", "only", "--next", "b"], "No such option"),
            (["end", "only"], "No such command 'end'"),
            (["complete", "only", "--next", "b"], "'b'"),
            (["skip", "only:0"], "write NODE, or NODE:ITEM with an item from 1"),
            (["complete", "only", "--data", "{"], "the JSON is not valid"),
        ],
    )
    def test_a_mistake_is_told_and_changes_nothing(
        self, control: Control, store: ExecutionStore, arguments: list[str], said: str
    ) -> None:
        code, lines, complaints = control("node", arguments[0], NEWER, *arguments[1:])
        assert (code, lines) == (MISTAKE, [])
        assert said in complaints
        assert read(store, NEWER).status == "running"

    def test_a_terminal_gets_a_sentence(self, store: ExecutionStore, sqlite_url: str, redis_url: str) -> None:
        shown = in_terminal(["node", "complete", NEWER, "only", "--store", sqlite_url, "--redis", redis_url])
        assert shown.strip() == f"mail v1 {NEWER}  only completed; the execution is completed"
