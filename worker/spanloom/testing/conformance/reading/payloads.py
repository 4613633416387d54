"""Conformance: payloads come back to the letter, and no two copies share state."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

import pytest

from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, LogLine, Outcome
from spanloom.engine.workflow.definitions import Node, Workflow
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, fan, single

__all__ = ["Aliasing", "Payloads"]

#: JSON texts that decoding, re-encoding or normalising would change.
_TEXTS = {
    "zero": "0",
    "false": "false",
    "empty text": '""',
    "null": "null",
    "empty list": "[]",
    "empty object": "{}",
    "large float": "1e16",
    "negative zero": "-0.0",
    "float": "0.1",
    "whole float": "1.0",
    "large integer": str(2**80),
    "nul": '"\\u0000"',
    "lone surrogate": '"\\ud800"',
    "escaped surrogate pair": '"\\ud83d\\ude00"',
    "emoji": '"😀 ß"',
    "key order": '{"b": 1, "a": 2, "B": 3}',
    "repeated keys": '{"a": 1, "a": 2}',
    "spaces": '{ "a" :  [ 1,2 ] }',
    "quotes": '"it\'s \\"quoted\\" \\\\ %s {} :name $1"',
    "nested": "[" * 50 + "]" * 50,
    "large": json.dumps("x" * 300_000),
}
_EACH_TEXT = pytest.mark.parametrize("text", _TEXTS.values(), ids=_TEXTS.keys())


def _same(found: object, text: str) -> bool:
    """Return whether `found` is the decoded `text`, by type, sign and order too."""
    return repr(found) == repr(json.loads(text))


class Payloads:
    """Inputs, data, errors and telemetry as JSON text: kept to the letter, decoded by reads."""

    @_EACH_TEXT
    def test_an_input_reaches_claims_to_the_letter(self, store: ExecutionStore, driver: StoreDriver, text: str) -> None:
        execution = driver.start(single(), input=text)
        claim = driver.try_claim(execution, "only")
        assert isinstance(claim, Claim)
        assert claim.header.input == text
        found = store.get_execution(execution)
        assert found is not None
        assert _same(found.input, text)

    @_EACH_TEXT
    def test_data_reaches_successors_to_the_letter(self, store: ExecutionStore, driver: StoreDriver, text: str) -> None:
        execution = driver.start(chain(3))
        first = driver.outcome(execution, driver.claim(execution, "n1"), successors=("n2",))
        claimed_at_once = driver.send(first._replace(data=text)).next
        assert claimed_at_once is not None
        assert dict(claimed_at_once.results) == {"n1": text}
        driver.send(driver.outcome(execution, claimed_at_once)._replace(data=text))
        last = driver.claim(execution, "n3")
        assert dict(last.results) == {"n2": text}
        driver.send(driver.outcome(execution, last)._replace(data=text))
        for run in store.get_node_results(execution):
            assert _same(run.data, text)
        found = store.get_execution(execution)
        assert found is not None
        assert _same(found.output, text)

    @_EACH_TEXT
    def test_several_outputs_are_kept_apart(self, store: ExecutionStore, driver: StoreDriver, text: str) -> None:
        execution = driver.start(Workflow(id="two", nodes=(Node(id="a", type="work"), Node(id="b", type="work"))))
        for name in ("a", "b"):
            driver.send(driver.outcome(execution, driver.claim(execution, name))._replace(data=text))
        found = store.get_execution(execution)
        assert found is not None
        assert set(found.output) == {"a", "b"}
        assert _same(found.output["a"], text)
        assert _same(found.output["b"], text)

    @_EACH_TEXT
    def test_errors_logs_and_spans_keep_what_is_in_them(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, text: str
    ) -> None:
        execution = driver.start(single())
        inside = f'{{"value": {text}}}'
        error = f'{{"type": "Boom", "message": "no", "value": {text}}}'
        driver.run(execution, "only", Outcome.FAILED, error=error, logs=[LogLine("info", "m", clock(), inside)])
        (run,) = store.get_node_results(execution)
        assert run.error is not None
        assert _same(run.error["value"], text)
        (line,) = store.get_logs(execution)
        assert _same(line.fields["value"], text)
        found = store.get_execution(execution)
        assert found is not None
        assert found.error is not None
        assert _same(found.error["value"], text)

    @pytest.mark.parametrize("value", ["", "ß ✓ 😀", "it's; drop table executions --", "%", "a\nb", " "])
    def test_metadata_is_kept_and_found_exactly(self, store: ExecutionStore, driver: StoreDriver, value: str) -> None:
        execution = driver.start(single(), metadata={value: value})
        driver.start(single(), metadata={value: value + "."})
        (found,) = store.list_executions(ExecutionFilter(metadata={value: value})).items
        assert (found.id, found.metadata) == (execution, {value: value})

    def test_a_join_holds_many_large_results(self, driver: StoreDriver) -> None:
        execution = driver.start(fan(20))
        driver.run(execution, "split")
        for number in range(1, 21):
            driver.run(execution, f"w{number}", data="x" * 100_000)
        assert {len(text) for text in driver.claim(execution, "join").results.values()} == {100_002}


class Aliasing:
    """A change of an argument, or of a returned value, does not change the store."""

    def test_a_returned_execution_is_a_copy(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single(), {"list": [1]}, metadata={"k": "v"})
        driver.run(execution, "only", data={"list": [2]})
        found = store.get_execution(execution)
        assert found is not None
        found.input["list"].append("changed")
        found.output["list"].append("changed")
        found.metadata["k"] = "changed"
        again = store.get_execution(execution)
        assert again is not None
        assert (again.input, again.output, again.metadata) == ({"list": [1]}, {"list": [2]}, {"k": "v"})

    def test_returned_node_runs_are_copies(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", Outcome.FAILED, error='{"type": "Boom", "message": "no", "more": [1]}')
        for _ in range(2):
            (run,) = store.get_node_results(execution)
            found = store.get_execution(execution)
            assert run.error is not None
            assert found is not None
            assert found.error is not None
            assert run.error["more"] == found.error["more"] == [1]
            run.error["more"].append("changed")
            found.error["more"].append("changed")

    def test_returned_data_is_a_copy(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        driver.run(execution, "n1", data={"list": [1]})
        for _ in range(2):
            (run,) = store.get_node_results(execution, ["n1"])
            assert run.data == {"list": [1]}
            run.data["list"].append("changed")
        assert dict(driver.claim(execution, "n2").results) == {"n1": '{"list": [1]}'}

    def test_lists_return_copies(self, store: ExecutionStore, driver: StoreDriver) -> None:
        driver.start(single(), [1], metadata={"k": "v"})
        for _ in range(2):
            page = store.list_executions()
            assert len(page.items) == 1
            assert (page.items[0].input, page.items[0].metadata) == ([1], {"k": "v"})
            page.items[0].input.append("changed")
            page.items[0].metadata["k"] = "changed"
            page.items.clear()

    def test_what_was_handed_in_may_change_afterwards(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        metadata = {"k": "v"}
        config: dict[str, Any] = {"list": [1]}
        logs = [LogLine("info", "one", clock())]
        store.save_workflow(Workflow(id="w", nodes=(Node(id="only", type="work", config=config),)))
        execution = driver.start("w", metadata=metadata)
        driver.run(execution, "only", logs=logs)
        metadata["k"] = "changed"
        cast(list[Any], config["list"]).append("changed")
        logs.append(LogLine("info", "changed", clock()))
        found = store.get_execution(execution)
        assert found is not None
        assert found.metadata == {"k": "v"}
        assert [line.message for line in store.get_logs(execution)] == ["one"]

    def test_returned_definitions_are_copies(self, store: ExecutionStore) -> None:
        store.save_workflow(Workflow(id="w", nodes=(Node(id="only", type="work", config={"list": [1]}),)))
        for _ in range(2):
            pinned, version = store.get_workflow("w", 1), store.get_workflow_version("w")
            assert pinned is not None
            assert version is not None
            for definition in (pinned, version.definition):
                assert definition.nodes[0].config == {"list": [1]}
                cast(list[Any], definition.nodes[0].config["list"]).append("changed")

    def test_a_saved_definition_does_not_follow_its_author(self, store: ExecutionStore) -> None:
        mine = Workflow(id="w", nodes=(Node(id="only", type="work", config={"list": [1]}),))
        store.save_workflow(mine)
        cast(list[Any], mine.nodes[0].config["list"]).append("changed")
        found = store.get_workflow("w")
        assert found is not None
        assert found.nodes[0].config == {"list": [1]}

    def test_a_claim_is_a_copy(self, driver: StoreDriver) -> None:
        execution = driver.start(chain(2), metadata={"k": "v"})
        driver.run(execution, "n1", data=1)
        for _ in range(2):
            claim = driver.try_claim(execution, "n2")
            assert isinstance(claim, Claim)
            assert (dict(claim.header.metadata), dict(claim.node.results)) == ({"k": "v"}, {"n1": "1"})
            if isinstance(claim.header.metadata, dict) and isinstance(claim.node.results, dict):
                claim.header.metadata["k"] = claim.node.results["n1"] = "changed"
            driver.record(execution, claim.node, Outcome.RELEASED)

    def test_returned_telemetry_is_a_copy(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        store.add_log(execution, LogLine("info", "m", clock(), '{"list": [1]}'))
        for _ in range(2):
            lines, events = store.get_logs(execution), store.get_events(execution)
            assert [line.fields for line in lines] == [{"list": [1]}]
            assert len(events) == 3
            lines[0].fields["list"].append("changed")
            events[0].data["changed"] = True
            lines.clear()
            events.clear()
        assert "changed" not in store.get_events(execution)[0].data

    def test_requests_are_not_changed(self, store: ExecutionStore) -> None:
        store.save_workflow(single())
        wanted = request("single", [1], metadata={"k": "v"})
        copy = dataclasses.replace(wanted, metadata=dict(wanted.metadata))
        store.create_execution(wanted)
        assert wanted == copy
