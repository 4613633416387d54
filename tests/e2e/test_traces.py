"""Behaviour 36: one execution is one trace, across engine, workers, retries and children, whatever dies."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.support.harness import System, worker_processes
from e2e.support.receivers import PROTOCOLS, GrpcReceiver, HttpReceiver, attributes_of, otlp_receiver
from e2e.support.traces import CONSUMER, INTERNAL, PRODUCER, Trace, whole_trace
from spanloom.engine.store.models import Execution

in_processes = pytest.mark.stores(
    "sqlite", "postgres", why="a store in memory has no worker processes that set up an exporter"
)

SECRET = "a-secret-that-no-trace-tells"


@pytest.fixture(params=PROTOCOLS)
def receiver(request: pytest.FixtureRequest) -> Iterator[HttpReceiver | GrpcReceiver]:
    with otlp_receiver(request.param) as made:
        yield made


@pytest.fixture
def one_receiver() -> Iterator[HttpReceiver]:
    with otlp_receiver("http/protobuf") as made:
        yield made


@pytest.fixture
def shared(idle_system: System) -> System:
    """A system whose workers are processes of their own; each test starts them as it needs them."""
    return idle_system


def export_to(monkeypatch: pytest.MonkeyPatch, receiver: HttpReceiver | GrpcReceiver, delay: str = "100") -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", receiver.protocol)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", delay)


def trace_id_of(execution: Execution) -> str:
    return str(execution.trace_parent).split("-")[1]


def family(system: System) -> str:
    """A workflow with a join, a retry, a child with a grandchild, a map and a delay."""
    grandchild = system.register({"id": "leaf", "type": "echo"}, name="grandchild")
    child = system.register(
        {"id": "begin", "type": "echo"},
        {"id": "deeper", "type": "workflow", "config": {"workflow": grandchild}, "inputs": ["begin"]},
        name="child",
    )
    return system.register(
        {"id": "first", "type": "telling", "retry": {"max_attempts": 2, "delay": 0.01}},
        {"id": "left", "type": "echo", "inputs": ["first"]},
        {"id": "right", "type": "aecho", "inputs": ["first"]},
        {"id": "join", "type": "collect", "inputs": ["left", "right"]},
        {"id": "call", "type": "workflow", "config": {"workflow": child}, "inputs": ["join"]},
        {"id": "each", "type": "echo", "map": {"over": "[`1`, `2`, `3`]"}, "inputs": ["call"]},
        {"id": "pause", "type": "delay", "config": {"seconds": 0.05}, "inputs": ["each"]},
        name="family",
    )


def check_family(trace: Trace, workflow_id: str) -> None:
    (root,) = trace.roots
    assert (root.name, root.kind) == (workflow_id, INTERNAL)
    assert trace.not_nested() == []
    nodes = {span.name for span in trace.spans.values() if span.kind == CONSUMER and trace.above(span) is root}
    assert nodes == {f"run {node}" for node in ("first", "left", "right", "join", "call", "each", "pause")}

    failed, again = trace.named("run first")
    assert (failed.status.code, again.status.code) == (2, 0)
    assert trace.linked(again) == [("attempt", "run first")]
    assert again.links[0].span_id == failed.span_id
    assert trace.linked(trace.one("run join")) == [("parent", "run left"), ("parent", "run right")]

    child = next(span for span in trace.spans.values() if span.name.startswith("child-"))
    grandchild = next(span for span in trace.spans.values() if span.name.startswith("grandchild-"))
    assert trace.above(child) is trace.one("run call")
    assert trace.above(grandchild) is trace.one("run deeper")
    assert trace.above(trace.one("run leaf")) is grandchild
    for below in (child, grandchild):
        (marker,) = trace.named(f"enqueue {below.name}")
        assert (marker.kind, trace.above(marker)) == (PRODUCER, below)

    *items, node = sorted(trace.named("run each"), key=lambda span: span.end_time_unix_nano)
    assert [attributes_of(item)["spanloom.node.item"] for item in items] != [0] * 3
    assert trace.linked(node) == [*[("item", "run each")] * 3, ("parent", "run call")]


@in_processes
def test_an_execution_with_its_children_is_one_trace(
    shared: System, receiver: HttpReceiver | GrpcReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, receiver)
    workflow_id = family(shared)
    with worker_processes(2, shared.store_url, shared.redis_url):
        execution = shared.run(workflow_id, {"token": SECRET})
    trace = whole_trace(receiver, trace_id_of(execution))

    check_family(trace, workflow_id)
    told = [*trace.spans.values()]
    assert SECRET not in str(told)
    assert {attributes_of(span).get("spanloom.worker") for span in told if span.kind == CONSUMER} <= {
        one["service.instance.id"] for one in receiver.resources["traces"]
    }


@in_processes
def test_what_is_exported_is_what_the_store_keeps(
    shared: System, one_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, one_receiver)
    workflow_id = family(shared)
    with worker_processes(2, shared.store_url, shared.redis_url):
        execution = shared.run(workflow_id)
    trace = whole_trace(one_receiver, trace_id_of(execution))

    store, kept, ids = shared.engine.store, {}, [execution.id]
    for execution_id in ids:
        kept |= {span.span_id: span for span in store.get_trace(execution_id)}
        ids += [child.id for child in store.get_child_executions(execution_id)]
    assert set(kept) == {
        span_id for span_id, span in trace.spans.items() if span.kind == CONSUMER or _below(trace, span)
    }
    for span_id, span in trace.spans.items():
        if (stored := kept.get(span_id)) is None:
            continue
        assert (span.name, span.parent_span_id.hex()) == (stored.name, stored.parent_span_id)
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (stored.start_ns, stored.end_ns)
        assert {0: "unset", 1: "ok", 2: "error"}[span.status.code] == stored.status
        assert [link.span_id.hex() for link in span.links] == [link["span_id"] for link in stored.links]
        assert stored.attributes.items() <= attributes_of(span).items()
    for execution_id in ids:
        found = store.get_execution(execution_id)
        assert found is not None
        assert found.ended_at is not None
        own = trace.spans[str(found.trace_parent).split("-")[2]]
        assert own.parent_span_id.hex() == (found.caller_span_id or "")
        assert abs(own.start_time_unix_nano / 1e9 - found.created_at.timestamp()) < 1e-6
        assert abs(own.end_time_unix_nano / 1e9 - found.ended_at.timestamp()) < 1e-6


def _below(trace: Trace, span: Any) -> bool:
    """Whether a handler opened this span: below a node's, or below another of the kind."""
    while span.parent_span_id:
        span = trace.above(span)
        if span.kind == CONSUMER:
            return not any(name in span.name for name in ("run call", "run deeper"))
    return False


@pytest.mark.parametrize(
    ("receiver", "how"),
    [("http/protobuf", "killed at its end"), ("grpc", "killed in the middle")],
    indirect=["receiver"],
)
@in_processes
def test_what_a_killed_worker_had_recorded_comes_from_the_store(
    shared: System, receiver: HttpReceiver | GrpcReceiver, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    export_to(monkeypatch, receiver, delay="3600000")  # nothing leaves a worker by itself
    workflow_id = shared.register(
        {"id": "a", "type": "telling", "retry": {"max_attempts": 2, "delay": 0.01}},
        {"id": "g", "type": "gate", "config": {"gate": f"trace-{how}"}, "inputs": ["a"]},
        {"id": "z", "type": "echo", "inputs": ["g"]},
    )
    with worker_processes(1, shared.store_url, shared.redis_url, "--lease", "2s") as (doomed,):
        execution_id = shared.engine.enqueue_workflow(workflow_id)
        shared.arrived(f"trace-{how}")
        if how == "killed at its end":
            shared.open_gate(f"trace-{how}")
            shared.engine.wait(execution_id, timeout=30)
        doomed.send(signal.SIGKILL)
        with pytest.raises(AssertionError):
            assert doomed.wait() == 0
        shared.open_gate(f"trace-{how}", 2)
        with worker_processes(1, shared.store_url, shared.redis_url, "--lease", "2s"):
            execution = shared.engine.wait(execution_id, timeout=60)
            trace = whole_trace(receiver, trace_id_of(execution), lambda trace: len(trace.named("run a")) == 2, 60)

    assert trace.roots[0].name == workflow_id
    assert len(trace.named("run g")) == len(trace.named("run z")) == 1
    assert trace.not_nested() == []
    stored = {span.span_id for span in shared.engine.store.get_trace(execution_id)}
    assert stored <= set(trace.spans)


@in_processes
def test_a_flush_in_the_middle_leaves_one_trace(
    shared: System, receiver: HttpReceiver | GrpcReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, receiver)
    workflow_id = shared.register(
        {"id": "a", "type": "gate", "config": {"gate": "flushed"}},
        {"id": "b", "type": "echo", "inputs": ["a"]},
        {"id": "c", "type": "delay", "config": {"seconds": 0.2}, "inputs": ["b"]},
    )
    with worker_processes(2, shared.store_url, shared.redis_url):
        execution_id = shared.engine.enqueue_workflow(workflow_id)
        shared.arrived("flushed")
        shared.redis.flushall()
        shared.open_gate("flushed")
        execution = shared.engine.wait(execution_id, timeout=60)
    trace = whole_trace(receiver, trace_id_of(execution))

    assert [len(trace.named(f"run {node}")) for node in "abc"] == [1, 1, 1]
    assert trace.not_nested() == []


@in_processes
def test_a_join_of_500_links_to_all_of_them(
    shared: System, one_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, one_receiver)
    names = [f"n{number}" for number in range(500)]
    nodes = [{"id": name, "type": "plain"} for name in names]
    workflow_id = shared.register(*nodes, {"id": "join", "type": "count", "inputs": names})
    with worker_processes(2, shared.store_url, shared.redis_url):
        execution = shared.run(workflow_id)
    trace = whole_trace(one_receiver, trace_id_of(execution), lambda trace: bool(trace.named("run join")))

    join = trace.one("run join")
    assert len(join.links) == len({link.span_id for link in join.links}) == 500
    assert "spanloom.links.left_out" not in attributes_of(join)


@pytest.mark.parametrize("sampler", ["always_off", "parentbased_traceidratio"])
@in_processes
def test_what_is_not_sampled_is_stored_and_not_exported(
    shared: System, one_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    export_to(monkeypatch, one_receiver)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    with worker_processes(2, shared.store_url, shared.redis_url):
        execution = shared.run(family(shared))

    assert len(shared.engine.store.get_trace(execution.id)) > 10
    assert one_receiver.spans == []


@in_processes
def test_half_of_the_traces_are_exported_whole_by_every_worker(
    shared: System, one_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, one_receiver)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    workflow_id = shared.register(
        {"id": "a", "type": "echo"}, *({"id": name, "type": "echo", "inputs": ["a"]} for name in "bcde")
    )
    with worker_processes(2, shared.store_url, shared.redis_url):
        started = shared.engine.enqueue_workflows(workflow_id, range(40))
        ended = [shared.engine.wait(execution_id, timeout=60) for execution_id in started]

    found = [len(Trace(one_receiver.spans_of(trace_id_of(execution))).spans) for execution in ended]
    assert set(found) == {0, 6}


@in_processes
def test_a_callers_decision_is_honoured(
    shared: System, one_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry import trace as otel
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    export_to(monkeypatch, one_receiver)
    workflow_id = shared.register({"id": "a", "type": "echo"})
    executions = []
    with worker_processes(1, shared.store_url, shared.redis_url):
        for flags in (0, 1):
            context = SpanContext(0xABC0 + flags, 0xDEF, is_remote=True, trace_flags=TraceFlags(flags))
            with otel.use_span(NonRecordingSpan(context)):
                executions.append(shared.run(workflow_id))
    exported = one_receiver.wait_spans(trace_id_of(executions[1]), 2)

    assert one_receiver.spans_of(trace_id_of(executions[0])) == []
    own = next(span for span in exported if span.name == workflow_id)
    assert own.parent_span_id.hex() == f"{0xDEF:016x}"


@in_processes
def test_a_failed_execution_says_so_in_its_own_span(
    shared: System, one_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, one_receiver)
    workflow_id = shared.register({"id": "a", "type": "boom"}, {"id": "b", "type": "echo", "inputs": ["a"]})
    with worker_processes(1, shared.store_url, shared.redis_url):
        execution = shared.run(workflow_id, {"boom": True})
    trace = whole_trace(one_receiver, trace_id_of(execution))

    (root,) = trace.roots
    error = json.loads(json.dumps(execution.error))
    assert root.status.code == 2
    assert attributes_of(root)["error.type"] == attributes_of(trace.one("run a"))["error.type"] == error["type"]
    assert attributes_of(root)["spanloom.execution.status"] == "failed"


def documented() -> dict[str, set[str]]:
    """The attributes of each span in docs/observability.md, by how its name begins; "" is the execution's own."""
    text = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    spans = [row for row in rows if len(row) == 4 and row[1] in ("internal", "producer", "consumer")]
    return {row[0].split("`")[1].split("{")[0]: set(re.findall(r"`([^`]+)`", row[3])) for row in spans}


@in_processes
def test_spans_have_the_attributes_that_are_documented_and_no_others(
    shared: System, one_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(monkeypatch, one_receiver)
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "2")
    failing = shared.register({"id": "a", "type": "boom"})
    with worker_processes(2, shared.store_url, shared.redis_url):
        executions = [shared.run(family(shared)), shared.run(failing, {"boom": True})]
        traces = [whole_trace(one_receiver, trace_id_of(execution)) for execution in executions]

    emitted: dict[str, set[str]] = {begin: set() for begin in documented()}
    for span in (span for trace in traces for span in trace.spans.values()):
        begin = next((one for one in ("enqueue ", "run ") if span.name.startswith(one)), "")
        if begin or attributes_of(span).keys() & {"spanloom.execution.status"}:
            emitted[begin] |= attributes_of(span).keys()
    assert emitted == documented()
    each = next(span for span in traces[0].named("run each") if "spanloom.links.left_out" in attributes_of(span))
    assert (len(each.links), attributes_of(each)["spanloom.links.left_out"]) == (2, 2)  # of a parent and three items
