"""Texts that describe are shortened, with a mark of how much was left out; others are refused above their bounds."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from spanloom.cli.rendering import family
from spanloom.cli.rendering.family import Family
from spanloom.engine import (
    ConfigurationError,
    Execution,
    Node,
    NodeContext,
    NodeRegistry,
    NodeResult,
    Workflow,
    WorkflowEngine,
)
from spanloom.engine.limits import (
    MAX_ATTEMPT_CHARACTERS,
    MAX_ERROR_CHARACTERS,
    MAX_LINE_CHARACTERS,
    MAX_METADATA_KEY,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE,
    MAX_NAME,
    MAX_NOTES,
    MAX_SPAN_NAME,
    MAX_TRACEBACK_CHARACTERS,
    end_of,
    shortened,
)
from spanloom.engine.store.requests import SpanLine
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single
from spanloom.worker.error_text import message_of, traceback_of
from spanloom.worker.telemetry.log_buffer import as_json

LARGE = "x" * 5_000_000
Handler = Callable[[NodeContext], Any]


@pytest.fixture
def engine() -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()
    registry.register("call", lambda ctx: HANDLERS[ctx.config["name"]](ctx))
    made = WorkflowEngine(registry, InMemoryExecutionStore(), FakeRedis(server=FakeServer()))
    with made, made.start_workers(1, concurrency=1):
        yield made


def raising(_: NodeContext) -> None:
    raise ValueError(LARGE)


def raising_from(_: NodeContext) -> None:
    raise type("E" * 100_000, (Exception,), {})(LARGE) from KeyError(LARGE)


def failing(_: NodeContext) -> NodeResult:
    return NodeResult.failed(LARGE, type=LARGE)


def logging(ctx: NodeContext) -> None:
    for _ in range(3):
        ctx.log.info(LARGE[:50_000], field=LARGE[:50_000], other=[LARGE[:50_000]] * 10)


def tracing(ctx: NodeContext) -> None:
    for _ in range(50):
        with ctx.span(LARGE, attribute=LARGE):
            pass


def talking(ctx: NodeContext) -> None:
    for _ in range(1_800):
        ctx.log.info(LARGE[: MAX_LINE_CHARACTERS - 100])
        with ctx.span("s", attribute=LARGE[: MAX_LINE_CHARACTERS - 100]):
            pass


HANDLERS: dict[str, Handler] = {
    made.__name__: made for made in (raising, raising_from, failing, logging, tracing, talking)
}


def ran(engine: WorkflowEngine, name: str) -> Execution:
    engine.register_workflow(Workflow(id=name, nodes=[Node(id="a", type="call", config={"name": name})]))
    return engine.wait(engine.enqueue_workflow(name, None), timeout=60)


@pytest.mark.parametrize("name", ["raising", "raising_from", "failing"])
def test_the_error_of_a_node_is_stored_shortened(engine: WorkflowEngine, name: str) -> None:
    execution = ran(engine, name)

    (run,) = engine.store.get_node_results(execution.id)
    assert run.error is not None
    assert len(run.error["type"]) <= MAX_NAME
    assert len(run.error["message"]) <= MAX_ERROR_CHARACTERS
    assert run.error["message"].endswith("characters left out)")
    assert len(run.error.get("traceback", "")) < MAX_TRACEBACK_CHARACTERS + 100
    if name != "failing":
        assert f"in {name}" in run.error["traceback"], "the frames are lost behind a long message"
    events = engine.store.get_events(execution.id)
    assert len(json.dumps([event.model_dump(mode="json") for event in events])) < 50_000
    lines = engine.store.get_logs(execution.id)
    assert all(len(line.message) <= MAX_LINE_CHARACTERS for line in lines)


def test_lines_and_their_fields_are_stored_shortened(engine: WorkflowEngine) -> None:
    execution = ran(engine, "logging")

    lines = engine.store.get_logs(execution.id)
    assert len(lines) == 3
    assert {len(line.message) for line in lines} == {MAX_LINE_CHARACTERS}
    assert lines[0].message.endswith("characters left out)")
    assert lines[0].fields["left_out"] == ["field", "other"]
    assert lines[0].fields["bytes"] > 200_000


def test_names_and_attributes_of_spans_are_stored_shortened(engine: WorkflowEngine) -> None:
    execution = ran(engine, "tracing")

    spans = [span for span in engine.store.get_trace(execution.id) if span.kind == "internal"]
    assert len(spans) == 50
    assert {len(span.name) for span in spans} == {MAX_SPAN_NAME}
    assert all(span.attributes["left_out"] == ["attribute"] for span in spans)


def test_the_lines_and_the_spans_of_an_attempt_have_a_bound_together(engine: WorkflowEngine) -> None:
    execution = ran(engine, "talking")

    spans = engine.store.get_trace(execution.id)
    assert (
        MAX_ATTEMPT_CHARACTERS < sum(len(json.dumps(span.attributes)) for span in spans) < 1.1 * MAX_ATTEMPT_CHARACTERS
    )
    last = engine.store.get_logs(execution.id, after=max(line.id for line in all_lines(engine, execution.id)) - 1)[-1]
    assert last.message.endswith("more lines or spans of this attempt were not kept")


def all_lines(engine: WorkflowEngine, execution_id: str) -> list[Any]:
    found: list[Any] = []
    while page := engine.store.get_logs(execution_id, after=found[-1].id if found else 0):
        found += page
    return found


def test_a_field_that_is_far_too_large_is_not_written_as_json() -> None:
    fields = {"rows": [list(range(1_000))] * 10_000}
    tracemalloc.start()
    try:
        text = as_json(fields)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert json.loads(text)["left_out"] == ["rows"]
    assert most < 10_000_000


def test_a_field_that_holds_itself_becomes_text_and_one_of_shared_parts_is_left_out() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    shared: Any = "x"
    for _ in range(40):
        shared = [shared, shared]

    assert json.loads(as_json({"circle": circle, "n": 1})) == {"circle": "[1, [...]]", "n": "1"}
    assert json.loads(as_json({"shared": shared, "n": 1}))["left_out"] == ["shared", "n"]


@pytest.mark.parametrize("size", [39, 40, 41, 60, 99, 100, 101, 1_000, 9_999, 10_000, 100_000])
def test_a_text_is_shortened_to_its_bound_and_tells_how_much(size: int) -> None:
    text = shortened("x" * size, 40)

    kept = text.count("x")
    assert len(text) <= 40
    assert text == "x" * size if size <= 40 else f"({size - kept:,} characters left out)" in text
    assert end_of("ab" * size, 2 * size) == "ab" * size
    assert end_of("ab" * size, 4) == f"({2 * size - 4:,} characters left out) …abab"


def test_the_last_frames_of_a_traceback_are_kept() -> None:
    def deeper(levels: int) -> None:
        if levels == 0:
            raise ValueError(LARGE)
        deeper(levels - 1)

    with pytest.raises(ValueError, match="x") as caught:
        deeper(300)
    text = traceback_of(caught.value, size=3_000)
    assert text.startswith("(")
    assert text.rstrip().endswith("characters left out)")
    assert len(text) < 3_100
    assert len(message_of(caught.value)) == MAX_ERROR_CHARACTERS


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({f"k{n}": "v" for n in range(100_000)}, f"100,000 pairs, more than {MAX_METADATA_PAIRS}"),
        ({f"k{n}": "v" for n in range(MAX_METADATA_PAIRS + 1)}, "65 pairs"),
        ({"k" * (MAX_METADATA_KEY + 1): "v"}, f"keys of at most {MAX_METADATA_KEY}"),
        ({"k": "v" * (MAX_METADATA_VALUE + 1)}, f"values of {MAX_METADATA_VALUE}"),
    ],
)
def test_metadata_has_bounds(engine: WorkflowEngine, metadata: dict[str, str], told: str) -> None:
    engine.register_workflow(Workflow(id="w", nodes=[Node(id="a", type="call", config={"name": "tracing"})]))

    for start in (engine.enqueue_workflow, engine.start):
        with pytest.raises(ConfigurationError, match=told):
            start("w", None, metadata=metadata)
    with pytest.raises(ConfigurationError, match=told):
        engine.enqueue_workflows("w", [1, 2], metadata=metadata)


def test_notes_and_authors_have_bounds(engine: WorkflowEngine) -> None:
    workflow = Workflow(id="w", nodes=[Node(id="a", type="call")])

    with pytest.raises(ConfigurationError, match="change_notes has 10,001 characters, more than 10,000"):
        engine.register_workflow(workflow, change_notes="x" * (MAX_NOTES + 1))
    with pytest.raises(ConfigurationError, match="created_by has 1,001 characters"):
        engine.register_workflow(workflow, created_by="x" * (MAX_NAME + 1))
    with pytest.raises(ConfigurationError) as caught:
        engine.enqueue_workflow("w", None, priority=LARGE)
    assert len(str(caught.value)) < 2 * MAX_NAME


def test_the_spans_that_a_trace_draws_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "SPANS", 5)
    store = InMemoryExecutionStore()
    driver = StoreDriver(store)
    found: list[Family] = []
    for count in (5, 6):
        execution_id = driver.start(single())
        lines = [SpanLine("a" * 32, f"{n:016x}", None, "s", "internal", "ok", n, n) for n in range(count)]
        driver.run(execution_id, "only", spans=lines)
        execution = store.get_execution(execution_id)
        assert execution is not None
        found.append(family.read_family(store, execution))

    assert [(len(one.spans), one.whole) for one in found] == [(5, True), (5, False)]
