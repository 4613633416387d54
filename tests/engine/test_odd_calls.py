"""Odd arguments of the engine, handles, builders and registries: refused by name, before anything is done."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from spanloom.engine import (
    ConfigurationError,
    ExecutionFilter,
    ExecutionHandle,
    ExecutionStore,
    InvalidArgument,
    NodeRegistry,
    Settings,
    SpanloomError,
    WaitTimeout,
    WorkflowBuilder,
    WorkflowEngine,
    load_workflow,
)
from spanloom.engine.operations.start_options import StartOptions
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores import InMemoryExecutionStore, PostgresExecutionStore, SqliteExecutionStore, open_store
from spanloom.testing.workflows import chain, single
from support.odd_calls import ODD, UNKNOWN, Call, draw, of_ids, outcome

LEFT_OUT = {"open", "close", "aclose", "push", "start_workers"}
METHODS = {
    name: method
    for name, method in inspect.getmembers(WorkflowEngine, inspect.isfunction)
    if not name.startswith("_") and name not in LEFT_OUT
}
HANDLE = {
    name: method for name, method in inspect.getmembers(ExecutionHandle, inspect.isfunction) if not name.startswith("_")
}
#: None, an hour or for ever would be waited for.
SHORT = [0, 0.0, timedelta(), 0.001]
WAITING = ("run", "arun", "wait", "await_execution", "result", "aresult")

FITTING: dict[str, Sequence[Any]] = {
    "execution_id": [of_ids(lambda ids: ids[0]), of_ids(lambda ids: ids[1]), UNKNOWN, "x"],
    "workflow_id": ["chain", "unknown"],
    "workflow": ["chain", "unknown", chain(2), single()],
    "data": [1, None, {"a": 1}],
    "items": [[1, 2], []],
    "version": [1, None, "same", "latest"],
    "priority": ["high", "normal"],
    "delay": [0, timedelta(seconds=1), None],
    "deadline": [5, None],
    "idempotency_key": ["k", None],
    "key_ttl": [5, None],
    "metadata": [{"a": "b"}, None],
    "connection": [None],
    "timeout": SHORT,
    "after": [None],
    "expected_revision": [0, 1, None],
    "expected_version": [0, 1, None],
    "change_notes": ["n"],
    "created_by": ["n"],
    "status": ["cancelled", "failed", "completed", ExecutionStatus.PAUSED],
    "error": ["e", None],
    "node_id": ["n1", "x"],
    "item": [0, 1],
    "next_nodes": [None, ["n2"]],
    "from_node": [None, "n1", ["n1"]],
    "wanted": [ExecutionFilter(workflow_id="chain"), ExecutionFilter(metadata={"a": "b"})],
    "limit": [1, None],
    "older_than": [0, timedelta(days=1)],
    "statuses": [["completed"], [ExecutionStatus.FAILED]],
}


def finished(made: Any) -> None:
    """Await what is a coroutine, and close what is a stream."""
    if inspect.iscoroutine(made):
        asyncio.run(made)
    elif hasattr(made, "aclose"):
        asyncio.run(made.aclose())
    elif hasattr(made, "close"):
        made.close()


@pytest.fixture
def engines(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[list[WorkflowEngine]]:
    stores: list[ExecutionStore] = [
        InMemoryExecutionStore(),
        SqliteExecutionStore(tmp_path / "odd.db", synchronous="normal"),
        PostgresExecutionStore(postgres_url, pool_size=2),
    ]
    registry = NodeRegistry()
    registry.register("noop", lambda data: data)
    engines = [
        WorkflowEngine(registry, store, redis_url, settings=Settings(namespace=f"odd{number}"))
        for number, store in enumerate(stores)
    ]
    for engine, store in zip(engines, stores, strict=True):
        store.migrate()
        engine.open()
    yield engines
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(
    ("seed", "calls"),
    [(1, 400), pytest.param(2, 10_000, marks=[pytest.mark.torture, pytest.mark.timeout(1800)])],
    ids=["few", "many"],
)
def test_every_engine_answers_odd_arguments_alike_and_with_our_errors(
    engines: list[WorkflowEngine], seed: int, calls: int
) -> None:
    ids = []
    for engine in engines:
        for workflow in (chain(2), single()):
            engine.store.save_workflow(workflow)
        ids.append([engine.enqueue_workflow("chain"), engine.enqueue_workflow("single")])
    handles = [engine.start("chain") for engine in engines]
    seen: Counter[str] = Counter()
    both = METHODS | {f"handle.{name}": method for name, method in HANDLE.items()}
    for call in islice(draw(both, FITTING, seed, options=list(StartOptions.__annotations__)), calls):
        name = call.method.removeprefix("handle.")
        if (name in WAITING and _waits(call)) or (name == "replay_executions" and _is_endless(call)):
            continue
        targets: Sequence[Any] = handles if call.method != name else engines
        answers = [
            outcome(call._replace(method=name), target, of, finished) for target, of in zip(targets, ids, strict=True)
        ]
        assert len(set(answers)) == 1, f"{answers} of {call}"
        seen[answers[0]] += 1
    assert seen["InvalidArgument"] > calls / 10
    assert seen["done"] > calls / 20


def _waits(call: Call) -> bool:
    """Return whether a call would wait for long."""
    timeout = call.kwargs.get("timeout", lambda _: None)([])
    if isinstance(timeout, timedelta):
        return timeout > timedelta(seconds=0.1)
    return timeout is None or (type(timeout) in (int, float) and timeout > 0.1)


def _is_endless(call: Call) -> bool:
    """Return whether a call would replay all that has ended, with the replays of earlier calls."""
    limit = call.kwargs.get("limit", lambda _: None)([])
    return limit is None or (type(limit) is int and 2 < limit < 2**31)


OPTIONS = [
    {"timeout": "1"},
    {"timeout": float("nan")},
    {"timeout": -1},
    {"timeout": timedelta(seconds=-1)},
    {"timeout": True},
    {"delay": "1"},
    {"metadata": "a.b"},
    {"idempotency_key": "\udce9"},
    {"version": 2**31},
    {"dealy": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=ascii)
def test_a_wrong_option_of_a_run_is_refused_before_the_start(options: dict[str, Any], redis_url: str) -> None:
    with WorkflowEngine(NodeRegistry(), InMemoryExecutionStore(), redis_url) as engine:
        engine.store.save_workflow(single())
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            engine.run("single", **options)
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            asyncio.run(engine.arun("single", **options))
        assert engine.store.get_execution_count() == 0


def test_a_timeout_is_seconds_or_a_timedelta(redis_url: str) -> None:
    with WorkflowEngine(NodeRegistry(), InMemoryExecutionStore(), redis_url) as engine:
        engine.store.save_workflow(single())
        handle = engine.start("single")
        for timeout in (timedelta(milliseconds=1), 0.001, 0):
            with pytest.raises(WaitTimeout):
                handle.result(timeout)
            with pytest.raises(WaitTimeout):
                asyncio.run(handle.aresult(timeout=timeout))
            with pytest.raises(WaitTimeout):
                list(handle.events(timeout=timeout))
        with pytest.raises(InvalidArgument, match=r"timeout must be seconds or a timedelta, .*, not '1'"):
            handle.result("1")  # type: ignore[arg-type]


BUILDS: dict[str, Callable[..., object]] = {
    "builder": WorkflowBuilder,
    "node": lambda **arguments: WorkflowBuilder("w").node(**arguments)(lambda data: data),
    "function": lambda function: WorkflowBuilder("w").node(function),
    "add": lambda id="a", type="t", **arguments: WorkflowBuilder("w").add(id, type, **arguments),
    "delay": lambda id="a", seconds=None, **arguments: WorkflowBuilder("w").delay(id, seconds, **arguments),
    "child": lambda id="a", workflow="w", **arguments: WorkflowBuilder("w").child(id, workflow, **arguments),
    "when": lambda expression: WorkflowBuilder("w").input.when(expression),
    "register": lambda type="t", function=len, config=None: NodeRegistry().register(type, function, config),
    "handler": lambda type: NodeRegistry().handler(type),
    "engine": lambda workflows=(), store="memory://", **more: WorkflowEngine(workflows, store, **more),
    "open_store": open_store,
    "load": lambda path: load_workflow(path),
    "sqlite": lambda path: SqliteExecutionStore(path),
    "postgres": lambda url="postgresql://h/d", **more: PostgresExecutionStore(url, **more),
    "filter": ExecutionFilter,
}
PARAMETERS = {
    "builder": ("id", "input", "name"),
    "node": (
        "id",
        "config",
        "inputs",
        "mapping",
        "map",
        "continue_on_fail",
        "max_attempts",
        "retry",
        "timeout",
        "queue",
    ),
    "function": ("function",),
    "add": ("id", "type", "config", "inputs", "retry"),
    "delay": ("id", "seconds", "until", "expression"),
    "child": ("id", "workflow", "version", "output"),
    "when": ("expression",),
    "register": ("type", "function", "config"),
    "handler": ("type",),
    "engine": ("workflows", "store", "redis", "cache", "settings"),
    "open_store": ("url", "namespace"),
    "load": ("path",),
    "sqlite": ("path",),
    "postgres": ("url", "namespace", "pool_size", "prepare", "accelerated"),
    "filter": tuple(ExecutionFilter.model_fields),
}


@pytest.mark.parametrize(("name", "parameter"), [(name, each) for name in BUILDS for each in PARAMETERS[name]])
def test_what_is_built_of_an_odd_value_is_refused_by_our_errors(name: str, parameter: str) -> None:
    fitting = {"builder": {"id": "a"}, "open_store": {"url": "memory://"}}.get(name, {})
    for odd in ODD:
        try:
            BUILDS[name](**(fitting | {parameter: odd}))
        except SpanloomError:
            continue
        except Exception as error:
            raise AssertionError(f"{name}({parameter}=…) raises {type(error).__name__}") from error
