"""A context holds what a handler may know, decodes data when asked, and passes the rest on to its worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from spanloom.engine.handlers.context import NodeContext


class Runtime:
    """A worker's side that keeps what it was asked for."""

    def __init__(self) -> None:
        self.log: Any = object()
        self.cancelled = False
        self.beats = 0
        self.spans: list[tuple[str, Mapping[str, Any]]] = []

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Any]) -> Iterator[str]:
        self.spans.append((name, attributes))
        yield "the span"

    def heartbeat(self) -> None:
        self.beats += 1


def context(runtime: Runtime | None = None, **fields: Any) -> NodeContext:
    known = {"execution_id": "e1", "workflow_id": "w", "version": 2, "node_id": "n"}
    return NodeContext(**known, runtime=runtime or Runtime(), **fields)


def test_data_is_decoded_when_it_is_asked_for() -> None:
    ctx = context(input_json="not JSON", results_json={"a": "not JSON"})
    for name in ("input", "results"):
        with pytest.raises(ValueError, match="Expecting value"):
            getattr(ctx, name)


def test_data_is_decoded_once_for_one_context_and_shared_with_no_other() -> None:
    given: dict[str, Any] = {"input_json": '{"a": []}', "results_json": {"p": "[1]"}}
    ctx, other = context(**given), context(**given)
    ctx.input["a"].append(1)
    ctx.results["p"].append(2)
    assert (ctx.input, ctx.results) == ({"a": [1]}, {"p": [1, 2]})
    assert (other.input, other.results) == ({"a": []}, {"p": [1]})


def test_what_is_left_out_is_empty() -> None:
    ctx = context()
    assert (ctx.input, ctx.results, ctx.config, ctx.metadata, ctx.state) == (None, {}, {}, {}, None)
    assert (ctx.item, ctx.attempt, ctx.depth, ctx.parent_execution_id) == (0, 1, 0, None)


def test_the_idempotency_key_is_the_same_for_every_attempt_and_another_for_every_node_run() -> None:
    first = context(attempt=1)
    assert first.idempotency_key == "e1:n:0"
    assert context(attempt=2).idempotency_key == first.idempotency_key
    assert context(item=3).idempotency_key == "e1:n:3"


def test_the_worker_supplies_log_spans_heartbeat_and_cancellation() -> None:
    runtime = Runtime()
    ctx = context(runtime)

    assert ctx.log is runtime.log
    with ctx.span("fetch", name="taken", url="x") as span:
        assert span == "the span"
    assert runtime.spans == [("fetch", {"name": "taken", "url": "x"})]
    ctx.heartbeat()
    assert runtime.beats == 1
    assert not ctx.cancelled
    runtime.cancelled = True
    assert ctx.cancelled


def test_a_misspelt_attribute_is_an_error() -> None:
    with pytest.raises(AttributeError):
        context().stat = 1  # type: ignore[attr-defined]
    assert repr(context(attempt=2)) == "<NodeContext of node 'n' of execution e1, attempt 2>"
