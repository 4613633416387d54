"""Conformance: texts that identify are kept exactly or refused by name; lines and names of spans may be repaired."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spanloom.engine.errors import PayloadRejected
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LogLine, NodeLines, Outcome, SpanLine, StartResult
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, single

__all__ = ["Identities", "RepairedTexts"]

_ODD = ["caf\udce9", "\ud83d", "a\x00b"]
_NAMED = [
    ("workflow id", lambda odd: {"workflow_id": odd}),
    ("idempotency key", lambda odd: {"idempotency_key": odd}),
    ("metadata key", lambda odd: {"metadata": {"fine": "1", odd: "2"}}),
    ("metadata value of 'file'", lambda odd: {"metadata": {"file": odd}}),
]


class Identities:
    """What executions, workflows, nodes and workers are found by."""

    @pytest.mark.parametrize("odd", _ODD)
    @pytest.mark.parametrize(("what", "fields"), _NAMED, ids=[what for what, _ in _NAMED])
    def test_a_start_by_what_can_not_be_kept_exactly_is_refused_alone(
        self, store: ExecutionStore, clock: ManualClock, what: str, fields: Any, odd: str
    ) -> None:
        store.save_workflow(single())
        given = {"workflow_id": "single", **fields(odd)}
        bad = request(given.pop("workflow_id"), **given)
        before, refused, after = store.create_executions([request("single"), bad, request("single")], now=clock())
        assert isinstance(before, StartResult)
        assert isinstance(after, StartResult)
        assert isinstance(refused, PayloadRejected)
        assert f"the {what} {odd!r} contains" in str(refused)
        assert store.get_execution(bad.execution_id) is None
        assert store.get_execution_count() == 2

    def test_two_keys_that_differ_in_what_can_not_be_kept_start_nothing(
        self, store: ExecutionStore, clock: ManualClock
    ) -> None:
        store.save_workflow(single())
        keys = ["caf\udce9", "caf\udce8", "caf\ufffd", "café", "cafe\u0301"]
        answers = store.create_executions([request("single", idempotency_key=key) for key in keys], now=clock())
        assert [type(answer) for answer in answers] == [PayloadRejected] * 2 + [StartResult] * 3
        started = [answer for answer in answers if isinstance(answer, StartResult)]
        assert len({answer.execution_id for answer in started}) == 3
        assert all(answer.created for answer in started)

    @pytest.mark.parametrize("odd", _ODD)
    def test_a_child_of_an_inexact_name_is_refused_and_its_parent_goes_on(
        self, store: ExecutionStore, driver: StoreDriver, odd: str
    ) -> None:
        parent = driver.start(chain(1, "parent"))
        store.save_workflow(single("child"))
        node = driver.claim(parent, "n1")
        with pytest.raises(PayloadRejected, match=r"the idempotency key .* contains"):
            driver.send(driver.waiting_for_child(parent, node, request("child", idempotency_key=odd)))
        assert store.get_child_executions(parent) == []
        assert driver.record(parent, node).recorded

    @pytest.mark.parametrize("odd", _ODD)
    def test_reads_and_writes_by_what_no_store_holds_are_refused_by_name(
        self, store: ExecutionStore, driver: StoreDriver, odd: str
    ) -> None:
        execution = driver.start(single())
        by_metadata = ExecutionFilter(metadata={"file": odd})
        calls: list[tuple[str, Any]] = [
            ("workflow id", lambda: store.get_workflow(odd)),
            ("workflow id", lambda: store.get_workflow_version(odd, 1)),
            ("workflow id", lambda: store.list_workflow_versions(odd)),
            ("workflow id", lambda: store.deactivate_workflow(odd)),
            ("workflow id", lambda: store.activate_workflow(odd)),
            ("workflow id", lambda: store.list_executions(ExecutionFilter(workflow_id=odd))),
            ("workflow id", lambda: store.get_execution_count(ExecutionFilter(workflow_id=odd))),
            ("metadata value of 'file'", lambda: store.list_executions(by_metadata)),
            ("metadata key", lambda: store.get_execution_count(ExecutionFilter(metadata={odd: "1"}))),
            ("change notes", lambda: store.save_workflow(chain(2, "noted"), change_notes=odd)),
            ("name in created_by", lambda: store.save_workflow(chain(2, "noted"), created_by=odd)),
            ("node id", lambda: store.get_node_results(execution, ["only", odd])),
            ("node id", lambda: store.get_attempts(execution, odd)),
            ("node id", lambda: store.get_logs(execution, node_id=odd)),
            ("worker id", lambda: store.renew_lease(odd, lease_seconds=1)),
            ("worker id", lambda: store.list_claims(odd)),
            ("worker id", lambda: store.unregister_worker(odd)),
            ("worker id", lambda: store.ack_exports(odd)),
            ("worker id", lambda: store.claim_exports(odd)),
            ("worker id", lambda: store.release_exports(driver.worker_id, odd)),
            ("id of a span", lambda: store.update_span(execution, odd, end_ns=1, status="ok")),
            ("run id of Redis", lambda: store.raise_epoch(0, odd)),
        ]
        for what, call in calls:
            with pytest.raises(PayloadRejected) as refused:
                call()
            assert f"the {what} {odd!r} contains" in str(refused.value)
        assert store.get_workflow("noted") is None

    @pytest.mark.parametrize("odd", _ODD)
    def test_ids_that_no_execution_can_have_are_unknown(self, store: ExecutionStore, odd: str) -> None:
        assert store.get_execution(odd) is None
        assert store.get_logs(odd) == []
        assert store.get_events(odd) == []


class RepairedTexts:
    """Lines and names of spans: each is repaired by itself, and nothing beside it changes."""

    def test_odd_characters_cost_a_line_those_characters_only(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        early = [LogLine("odd \udcff", "early \x00 and \udce9", clock(), '{"kept": "\\u0000\\ud800"}')]
        store.add_logs([NodeLines(execution, "only", 0, node.fence, early)])
        span = SpanLine("a" * 32, "b" * 16, None, "read caf\udce9", "internal", "ok", 1, 2, "only", 0, 1)
        lines = [LogLine("info", "zero \x00", clock()), LogLine("info", "whole 😀é", clock())]
        data = {"file": "caf\udce9\x00"}
        driver.record(execution, node, data=data, logs=lines, spans=[span])

        found = store.get_logs(execution)
        assert [line.message for line in found] == ["early \ufffd and \ufffd", "zero \ufffd", "whole 😀é"]
        assert found[0].level == "odd \ufffd"
        assert found[0].fields == {"kept": "\x00\ud800"}
        assert [span.name for span in store.get_trace(execution)] == ["read caf\ufffd"]
        assert [run.data for run in store.get_node_results(execution)] == [data]

    def test_an_error_with_odd_characters_is_kept_exactly(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        error = {"type": "FileNotFoundError", "message": "no caf\udce9.txt\x00"}
        driver.record(execution, node, Outcome.FAILED, error=json.dumps(error))
        found = store.get_execution(execution)
        assert found is not None
        assert found.error is not None
        assert found.error["message"] == "no caf\udce9.txt\x00"
