"""Behaviour 35: the lines of a node, whatever they were written with, while it runs and however it ends."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.support.harness import System, WorkerProcess, worker_processes
from e2e.support.harness import system as new_system
from spanloom.engine.store.models import LogRecord
from spanloom.testing.servers import PostgresServer
from spanloom.testing.servers import postgres_server as new_postgres_server

in_processes = pytest.mark.stores("sqlite", "postgres", why="a store in memory has no worker processes")

KINDS = {
    "sync": {"type": "says"},
    "timed": {"type": "says", "timeout": 90},
    "async": {"type": "asays"},
    "atimed": {"type": "asays", "timeout": 90},
}


def until(condition: Callable[[], Any], timeout: float = 60) -> Any:
    give_up, pause = time.monotonic() + timeout, threading.Event()
    while not (found := condition()):
        assert time.monotonic() < give_up
        pause.wait(0.05)
    return found


def lines(system: System, execution_id: str, node_id: str | None = None, item: int = 0) -> list[LogRecord]:
    found = system.engine.store.get_logs(execution_id, node_id=node_id)
    return [line for line in found if line.item == item]


def told(system: System, execution_id: str, node_id: str, item: int = 0) -> list[str]:
    return [line.message for line in lines(system, execution_id, node_id, item)]


def said(system: System, *what: str) -> list[str]:
    """What a handler's lines are; structlog's own are heard only where the worker has configured it."""
    ways = ("log", "library") if system.kind == "memory" else ("log", "library", "structlog")
    return [f"{one}: {way}" for one in what for way in ways]


def test_the_lines_of_long_nodes_show_while_they_run_and_each_is_kept_once(system: System) -> None:
    nodes = [{"id": kind, "config": {"gates": [f"{kind}1", f"{kind}2"]}, **node} for kind, node in KINDS.items()]
    execution_id = system.engine.enqueue_workflow(system.register(*nodes))
    for kind in KINDS:
        system.arrived(f"{kind}1")
    for kind in KINDS:
        until(lambda kind=kind: told(system, execution_id, kind) == said(system, f"{kind}1"))
    assert set(system.statuses(execution_id).values()) == {"running"}

    for kind in KINDS:
        system.open_gate(f"{kind}1")
        system.arrived(f"{kind}2")
        system.open_gate(f"{kind}2")
    system.engine.wait(execution_id, timeout=60)

    for kind in KINDS:
        assert told(system, execution_id, kind) == said(system, f"{kind}1", f"{kind}2", "last")
        spans = [span for span in system.engine.store.get_trace(execution_id) if span.node_id == kind]
        (own,) = (span for span in spans if span.name.startswith("run "))
        inner = {span.span_id for span in spans if span.name == "inner"}
        found = lines(system, execution_id, kind)
        assert {line.trace_id for line in found} == {own.trace_id}
        assert {line.span_id for line in found if line.message.endswith(": log")} == {own.span_id}
        assert {line.span_id for line in found if line.message.endswith(": library")} == inner
        library = [line for line in found if line.message.endswith(": library")]
        assert [line.fields for line in library[-1:]] == [{"said": "last", "logger": "some.library"}]
        assert {line.level for line in library} == {"warning"}


def test_each_item_and_each_attempt_keeps_its_lines_and_a_failure_tells_as_much_as_a_success(system: System) -> None:
    name = f"items-{system.kind}"
    fails = {"id": "f", "type": "says", "config": {"gates": [], "succeeds_at": 9}, "continue_on_fail": True}
    workflow_id = system.register(
        {
            "id": "m",
            "type": "says",
            "map": {"over": "input"},
            "config": {"gates": [name], "succeeds_at": 2},
            "retry": {"max_attempts": 2, "delay": 0.01},
        },
        {**fails, "retry": {"max_attempts": 1}},
    )
    execution_id = system.engine.enqueue_workflow(workflow_id, [0, 1])
    for item in (1, 2):
        system.arrived(f"{name}-{item}")
    for item in (1, 2):  # of the first attempt, which is long
        until(lambda item=item: told(system, execution_id, "m", item) == said(system, f"{name}-{item}"))
        system.open_gate(f"{name}-{item}", times=2)
    system.engine.wait(execution_id, timeout=60)

    for item in (1, 2):
        second = said(system, f"{name}-{item}", "last")
        first = [*second, "ConnectionError: attempt 1"]
        found = lines(system, execution_id, "m", item)
        assert [line.message for line in found] == first + second
        assert [line.attempt for line in found] == [1] * len(first) + [2] * len(second)
    assert told(system, execution_id, "f") == [*said(system, "last"), "ConnectionError: attempt 1"]
    failures = [line for line in system.engine.store.get_logs(execution_id) if line.message.startswith("Connection")]
    assert all('raise ConnectionError(f"attempt' in line.fields["exception"] for line in failures)
    assert [line.level for line in failures if line.node_id == "f"] == ["error"]
    assert [line.level for line in failures if line.node_id == "m"] == ["warning"] * 2


@pytest.fixture
def processes(idle_system: System) -> System:
    return idle_system


@in_processes
def test_what_a_worker_writes_within_a_node_carries_its_ids(processes: System) -> None:
    system = processes
    fails = {"id": "a", "type": "says", "config": {"gates": [], "succeeds_at": 9}, "continue_on_fail": True}
    workflow_id = system.register(
        {**fails, "retry": {"max_attempts": 1}},
        {"id": "m", "type": "asays", "map": {"over": "input"}, "config": {"gates": []}, "timeout": 60},
    )
    with worker_processes(1, system.store_url, system.redis_url) as (worker,):
        execution_id = system.engine.enqueue_workflow(workflow_id, [5])
        system.settled(execution_id)
        until(lambda: worker.events("attempt_failed"))
    spans = {
        (span.node_id, span.item, span.name.partition(" ")[0]): span.span_id
        for span in system.engine.store.get_trace(execution_id)
    }
    written = [json.loads(line) for line in worker.lines]
    of_nodes = [line for line in written if "node_id" in line]

    assert {line["execution_id"] for line in of_nodes} == {execution_id}
    assert {line["trace_id"] for line in of_nodes} == {system.engine.store.get_trace(execution_id)[0].trace_id}
    assert all("item" not in line for line in of_nodes if line["node_id"] == "a")
    ids = [(line["event"], line["node_id"], line.get("item", 0), line["attempt"], line["span_id"]) for line in of_nodes]
    assert sorted(ids) == sorted(
        [
            *(
                (f"last: {way}", node, item, 1, spans[node, item, "inner" if way == "library" else "run"])
                for way in ("log", "library", "structlog")
                for node, item in (("a", 0), ("m", 1))
            ),
            ("attempt_failed", "a", 0, 1, spans["a", 0, "run"]),
        ]
    )
    assert not [line for line in written if "node_id" not in line and "trace_id" in line]


@in_processes
def test_a_killed_node_keeps_what_it_had_said(processes: System) -> None:
    system = processes
    workflow_id = system.register({"id": "a", "type": "says", "config": {"gates": ["killed"]}})
    victim = WorkerProcess(system.store_url, system.redis_url, "--lease", "1s")
    try:
        victim.wait_ready()
        execution_id = system.engine.enqueue_workflow(workflow_id)
        system.arrived("killed")
        until(lambda: told(system, execution_id, "a") == said(system, "killed"))
    finally:
        victim.send(signal.SIGKILL)
        victim.wait()
    with worker_processes(1, system.store_url, system.redis_url, "--lease", "1s"):
        system.arrived("killed")
        system.open_gate("killed", times=2)
        assert system.engine.wait(execution_id, timeout=60).output == "a"

    assert told(system, execution_id, "a") == said(system, "killed", "killed", "last")


@pytest.fixture
def outage(redis_url: str, tmp_path: Path) -> Iterator[tuple[System, PostgresServer, WorkerProcess]]:
    """A worker on a Postgres of its own."""
    from spanloom.stores import open_store

    with new_postgres_server() as server:
        store = open_store(server.url)
        store.migrate()
        store.close()
        with (
            new_system("postgres", server.url, redis_url, workers=0) as made,
            worker_processes(1, made.store_url, made.redis_url) as (worker,),
        ):
            yield made, server, worker


@pytest.mark.services
def test_a_store_that_is_away_for_a_while_loses_no_line_and_doubles_none(
    outage: tuple[System, PostgresServer, WorkerProcess],
) -> None:
    system, server, worker = outage
    gates = ["before", "during", "after"]
    workflow_id = system.register(
        {"id": "long", "type": "says", "config": {"gates": gates}},
        {"id": "ends", "type": "asays", "config": {"gates": ["before-it", "ends-in-it"]}},
    )
    execution_id = system.engine.enqueue_workflow(workflow_id)
    for gate in ("before", "before-it"):
        system.arrived(gate)
    until(lambda: told(system, execution_id, "long") and told(system, execution_id, "ends"))

    server.stop()
    for gate, following in (("before", "during"), ("before-it", "ends-in-it")):
        system.open_gate(gate)
        system.arrived(following)
    until(lambda: worker.events("lines_wait_for_store"))
    system.open_gate("ends-in-it")  # this one ends while the store is away, with lines of which nobody knows
    system.open_gate("during")
    system.arrived("after")
    server.start()
    until(lambda: told(system, execution_id, "long") == said(system, *gates))
    system.open_gate("after")

    system.engine.wait(execution_id, timeout=60)
    assert told(system, execution_id, "long") == said(system, *gates, "last")
    assert told(system, execution_id, "ends") == said(system, "before-it", "ends-in-it", "last")


@in_processes
def test_what_handlers_print_is_kept_if_that_is_wanted(processes: System) -> None:
    system = processes
    loud = [{"id": f"p{number}", "type": "aprints"} for number in range(3)]
    workflow_id = system.register({"id": "a", "type": "prints"}, *loud)
    with worker_processes(1, system.store_url, system.redis_url, "--capture-output") as (worker,):
        execution_id = system.run(workflow_id).id

    printed = [(line.level, line.message) for line in lines(system, execution_id, "a")]
    assert printed == [
        ("info", "one line"),
        ("info", "two"),
        ("info", "lines in pieces"),
        ("warning", "logged"),
        ("warning", "to stderr"),
        ("info", "no end"),
    ]
    for node in loud:
        assert told(system, execution_id, node["id"]) == [f"{node['id']} {number}" for number in range(20)]
    assert Counter(worker.lines)["to stderr"] == 1
    with worker_processes(1, system.store_url, system.redis_url):
        unwanted = system.run(workflow_id).id
    assert [line.message for line in lines(system, unwanted)] == ["logged"]
