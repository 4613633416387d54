"""Conformance: payloads are read by their size, and large inputs of a join do not come with its claim."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spanloom.engine.limits import MAX_CLAIM_BYTES
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LEFT_OUT, NodeClaim, Outcome, SpanLine
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import fan, graph, single

__all__ = ["ClaimSizes", "Sizes"]

_HALF = "x" * (MAX_CLAIM_BYTES // 2 - 2)  # as JSON, half of what a claim takes


def _texts(**data: Any) -> dict[str, str]:
    return {node_id: json.dumps(value) for node_id, value in data.items()}


class ClaimSizes:
    """The inputs that come with a claim, and those that are read apart."""

    @pytest.mark.parametrize("at_once", [False, True], ids=["claimed", "work first"])
    @pytest.mark.parametrize("more", [0, 1], ids=["at the bound", "over it"])
    def test_inputs_over_the_bound_are_left_out_of_a_claim(
        self, store: ExecutionStore, driver: StoreDriver, more: int, at_once: bool
    ) -> None:
        execution = driver.start(graph("join", {"a": [], "b": [], "both": ["a", "b"]}))
        data = _texts(a=_HALF, b=_HALF + "x" * more)
        driver.send(driver.outcome(execution, driver.claim(execution, "a"))._replace(data=data["a"], span="1" * 16))
        last = driver.outcome(execution, driver.claim(execution, "b"), successors=("both",) if at_once else ())
        recorded = driver.send(last._replace(data=data["b"]))

        found = recorded.next if at_once else driver.claim(execution, "both")

        assert isinstance(found, NodeClaim)
        assert dict(found.results) == ({"a": LEFT_OUT, "b": LEFT_OUT} if more else data)
        assert dict(found.parent_spans) == {"a": "1" * 16}
        assert store.get_data_size(execution, ["a", "b"]) == MAX_CLAIM_BYTES + more
        assert store.get_data(execution, ["a", "b"]) == data

    def test_inputs_whose_edge_is_not_taken_are_not_among_those_left_out(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("join", {"a": [], "b": [], "c": [], "join": ["a", "b", "c"]}))
        for name in ("a", "b"):
            record = driver.outcome(execution, driver.claim(execution, name))
            driver.send(record._replace(data=json.dumps(_HALF + name)))
        driver.run(execution, "c", Outcome.SKIPPED)

        assert dict(driver.claim(execution, "join").results) == {"a": LEFT_OUT, "b": LEFT_OUT}

    def test_one_large_input_is_left_out_as_well(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("pair", {"a": [], "b": ["a"], "c": []}))
        text = json.dumps(_HALF * 3)
        driver.send(driver.outcome(execution, driver.claim(execution, "a"))._replace(data=text))

        assert dict(driver.claim(execution, "b").results) == {"a": LEFT_OUT}
        assert store.get_data(execution, ["a"]) == {"a": text}


class Sizes:
    """The sizes of payloads, and reads with a limit on their sum."""

    def test_the_data_of_nodes_and_of_items_is_summed_apart(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("two", {"each": [], "other": []}))
        driver.fan_out(execution, "each", ["a", "b", "c"])
        for item in (1, 2):
            node = driver.claim(execution, "each", item)
            driver.send(driver.outcome(execution, node)._replace(data=json.dumps("x" * 100 * item)))
        driver.run(execution, "other", data=[1, 2])

        assert store.get_data_size(execution, ["each"], items=True) == 304
        assert store.get_data_size(execution, ["each", "other"]) == len(json.dumps([1, 2]))
        assert store.get_data_size(execution, []) == 0
        assert store.get_data_size("unknown", ["each"]) == 0
        assert store.get_data("unknown", ["each"]) == {}

    @pytest.mark.parametrize(("limit", "known"), [(None, "abc"), (212, "abc"), (211, "ab"), (62, "ab"), (0, "")])
    def test_node_results_are_read_with_the_data_that_fits(
        self, store: ExecutionStore, driver: StoreDriver, limit: int | None, known: str
    ) -> None:
        execution = driver.start(graph("four", {"c": [], "b": [], "a": [], "open": []}))
        sizes = {"a": 12, "b": 50, "c": 150}
        for name, size in sizes.items():
            driver.run(execution, name, data=name * (size - 2))

        runs = {run.node_id: run for run in store.get_node_results(execution, data_limit=limit)}

        assert {name: run.data_size for name, run in runs.items()} == {**sizes, "open": None}
        assert "".join(name for name, run in runs.items() if run.data is not None) == known
        assert all(runs[name].data == name * (sizes[name] - 2) for name in known)
        some = store.get_node_results(execution, ["b"], data_limit=limit)
        assert [run.data_size for run in some] == [50]

    @pytest.mark.parametrize("limit", [None, 8, 7])
    def test_an_output_is_read_if_it_fits(self, store: ExecutionStore, driver: StoreDriver, limit: int | None) -> None:
        execution = driver.start(graph("two", {"a": [], "b": []}))
        driver.run(execution, "a", data="aa")
        driver.run(execution, "b", data="bb")

        found = store.get_execution(execution, data_limit=limit)

        assert found is not None
        assert found.output_size == 8
        assert found.output == (None if limit == 7 else {"a": "aa", "b": "bb"})
        assert found.output_left_out is (limit == 7)

    def test_an_output_of_null_is_not_left_out(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        driver.run(execution, "only")

        found = store.get_execution(execution, data_limit=1_000)

        assert found is not None
        assert (found.output, found.output_left_out) == (None, False)

    @pytest.mark.parametrize(("limit", "known"), [(None, [1, 2, 3]), (10, [1, 2]), (0, [])])
    def test_lists_have_the_inputs_that_fit(
        self, store: ExecutionStore, driver: StoreDriver, limit: int | None, known: list[int]
    ) -> None:
        inputs = {driver.start(fan(1), "x" * number): number for number in (3, 2, 1)}

        page = store.list_executions(ExecutionFilter(workflow_id="fan"), data_limit=limit)

        assert {one.id: one.input_size for one in page.items} == {key: size + 2 for key, size in inputs.items()}
        assert sorted(len(one.input) for one in page.items if one.input is not None) == known

    @pytest.mark.parametrize(("limit", "known"), [(None, 2), (1, 1), (0, 0)])
    def test_children_have_the_inputs_that_fit(
        self, store: ExecutionStore, driver: StoreDriver, limit: int | None, known: int
    ) -> None:
        store.save_workflow(single("child"))
        execution = driver.start(graph("two", {"a": [], "b": []}))
        for node_id, data in (("a", 1), ("b", "long")):
            driver.start_child(execution, node_id, "child", data)

        children = store.get_child_executions(execution, data_limit=limit)

        assert sorted(child.input_size or 0 for child in children) == [1, 6]
        assert sum(child.input is not None for child in children) == known

    @pytest.mark.parametrize("page", [1, 2, 3, 7, 100])
    def test_spans_are_read_in_pages(self, store: ExecutionStore, driver: StoreDriver, page: int) -> None:
        execution = driver.start(single())
        times = [5, 5, 5, 1, 9, 5, 3]
        spans = [
            SpanLine("a" * 32, f"{number:016x}", None, "s", "internal", "ok", start, start + 1)
            for number, start in enumerate(times)
        ]
        driver.run(execution, "only", spans=spans)

        whole = store.get_trace(execution)

        assert [(span.start_ns, int(span.span_id, 16)) for span in whole] == sorted(
            (start, number) for number, start in enumerate(times)
        )
        assert list(store.iter_trace(execution, page=page)) == whole
        assert store.get_trace(execution, limit=page) == whole[:page]
        assert store.get_trace(execution, after=whole[2], limit=page) == whole[3 : 3 + page]

    def test_no_execution_has_more_pairs_of_metadata_than_can_be_given(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        driver.start(single(), metadata={"k0": "v"})
        wanted = ExecutionFilter(metadata={f"k{number}": "v" for number in range(2_000)})

        assert store.list_executions(wanted).items == []
        assert store.get_execution_count(wanted) == 0
