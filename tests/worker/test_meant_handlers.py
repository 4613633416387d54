"""The handler that was meant runs: behind decorators, with what it returns awaited, and its types written as JSON."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from fakeredis import FakeRedis, FakeServer
from pydantic import BaseModel, SecretStr

from spanloom.engine import NodeContext, NodeRegistry, NodeResult, PayloadRejected, WorkflowBuilder, WorkflowEngine
from spanloom.engine.errors import ExecutionFailed
from spanloom.stores import InMemoryExecutionStore
from support.case_ids import case_id

DAY = date(2026, 1, 2)


class Runs:
    """Workflows of one node, or of builders, run by a worker of this process."""

    def __init__(self) -> None:
        self.registry = NodeRegistry()
        self.redis = FakeRedis(server=FakeServer())

    def run(self, builders: WorkflowBuilder[Any] | list[WorkflowBuilder[Any]], data: Any = None) -> Any:
        first = builders[0] if isinstance(builders, list) else builders
        engine = WorkflowEngine(builders, InMemoryExecutionStore(), self.redis)
        with engine, engine.start_workers(1, concurrency=2):
            return engine.run(first, data, timeout=30)

    def node(self, function: Callable[..., Any], data: Any = None, **options: Any) -> Any:
        builder = WorkflowBuilder("w")
        builder.node(id="n", **options)(function)
        return self.run(builder, data)

    def failure(self, function: Callable[..., Any], data: Any = None, **options: Any) -> dict[str, Any]:
        with pytest.raises(ExecutionFailed) as caught:
            self.node(function, data, **options)
        error: dict[str, Any] = caught.value.execution.error
        return error


@pytest.fixture
def runs() -> Runs:
    return Runs()


async def greet(data: str) -> str:
    await asyncio.sleep(0)
    return f"hello {data}"


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def by_position(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any) -> Any:
        return function(*args)

    return inner


class Counted:
    """A decorator that is a class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def returns_it(data: str) -> Awaitable[str]:
    return greet(data)


async def returns_it_from_a_coroutine(data: str) -> Any:
    return greet(data)


class Later:
    def __init__(self, data: str) -> None:
        self.data = data

    def __await__(self) -> Iterator[Any]:
        yield from asyncio.sleep(0).__await__()
        return f"hello {self.data}"


@pytest.mark.parametrize(
    "handler",
    [
        greet,
        plainly(greet),
        by_position(greet),
        Counted(greet),
        plainly(by_position(greet)),
        functools.partial(plainly(greet)),
        returns_it,
        returns_it_from_a_coroutine,
        lambda data: greet(data),
        lambda data: Later(data),
    ],
)
def test_what_a_handler_returns_to_be_awaited_is_awaited(runs: Runs, handler: Callable[..., Any]) -> None:
    assert runs.node(handler, "you") == "hello you"
    assert runs.node(handler, "you", timeout=20) == "hello you"


def test_a_timeout_counts_the_call_and_what_is_awaited_after_it(runs: Runs) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    @functools.wraps(never)
    def first_blocks(*args: Any) -> Any:
        time.sleep(0.05)
        return never()

    error = runs.failure(first_blocks, timeout=0.2)
    assert error["type"] == "NodeTimeout"
    assert "its timeout of 0.2 s" in error["message"]


def test_the_loop_awaits_and_the_slots_thread_calls(runs: Runs) -> None:
    threads: list[str] = []

    async def inner() -> None:
        threads.append(threading.current_thread().name)

    def outer(ctx: NodeContext) -> Any:
        threads.append(threading.current_thread().name)
        return inner()

    runs.node(outer)
    assert len(set(threads)) == 2


# ---- results, by what the handler says that it returns ----


class Colour(Enum):
    RED = "red"


@dataclass
class Line:
    sku: str
    day: date = DAY


class Pair(NamedTuple):
    number: int
    day: date


class Held(BaseModel):
    day: date


def made(value: Any, annotation: Any) -> Callable[..., Any]:
    def make() -> Any:
        return value

    make.__annotations__["return"] = annotation
    return make


@pytest.mark.parametrize(
    ("value", "annotation", "output"),
    [
        (DAY, date, "2026-01-02"),
        (DAY, "date", "2026-01-02"),
        (UUID(int=7), UUID, str(UUID(int=7))),
        (Decimal("1.50"), Decimal, "1.50"),
        (timedelta(minutes=1), timedelta, "PT1M"),
        (Colour.RED, Colour, "red"),
        ({7}, set[int], [7]),
        (b"tea", bytes, "tea"),
        ({1: "a"}, dict[int, str], {"1": "a"}),
        (Pair(1, DAY), Pair, [1, "2026-01-02"]),
        ([Held(day=DAY), DAY], list[Held | date], [{"day": "2026-01-02"}, "2026-01-02"]),
        (NodeResult(data=DAY), NodeResult | date, "2026-01-02"),
        (DAY, Awaitable[date], "2026-01-02"),
        (None, None, None),
        (Line("tea"), None, {"sku": "tea", "day": "2026-01-02"}),
        ({"lines": [Line("tea")]}, None, {"lines": [{"sku": "tea", "day": "2026-01-02"}]}),
    ],
    ids=case_id,
)
def test_a_result_is_written_by_its_annotation(runs: Runs, value: Any, annotation: Any, output: Any) -> None:
    assert runs.node(made(value, annotation)) == output


@pytest.mark.parametrize(
    ("value", "annotation", "sentence"),
    [
        (DAY, Any, "$ is a datetime.date; "),
        (DAY, str, "$ is a datetime.date; "),
        (DAY, "Missing", "$ is a datetime.date; "),
        ({1: "a"}, dict[str, str], "$ is a dict with a key of type int; "),
        (b"\xff", bytes, "'utf-8' codec can't decode"),
        (SecretStr("xyzzy"), SecretStr, "would not be read back from JSON as it is: $ differs"),
        (iter([1]), Any, "$ is a list_iterator; "),
    ],
    ids=case_id,
)
def test_a_result_that_its_annotation_does_not_cover_is_refused(
    runs: Runs, value: Any, annotation: Any, sentence: str
) -> None:
    error = runs.failure(made(value, annotation), max_attempts=3)
    assert error["type"] == "PayloadRejected"
    assert sentence in error["message"]
    assert "xyzzy" not in error["message"]


def test_typed_data_goes_from_node_to_node_to_child_and_to_the_elements_of_a_map(runs: Runs) -> None:
    parent = WorkflowBuilder("parent", input=list[Line])
    child = WorkflowBuilder("child", input=dict[int, Line])

    @parent.node
    def numbered(lines: list[Line]) -> dict[int, Line]:
        return dict(enumerate(lines))

    below = parent.child("below", child, inputs=numbered)

    @parent.node(map=below)
    def day(line: Line) -> date:
        return line.day + timedelta(days=1)

    @child.node
    def lines(data: dict[int, Line]) -> list[Line]:
        return [data[number] for number in sorted(data)]

    assert runs.run([parent, child], [Line("a"), Line("b", date(2020, 2, 28))]) == ["2026-01-03", "2020-02-29"]


def test_data_that_does_not_fit_a_child_fails_its_node_for_good(runs: Runs) -> None:
    parent, child = WorkflowBuilder("parent"), WorkflowBuilder("child", input=date)
    parent.child("below", child, max_attempts=3)
    child.node(lambda data: None, id="n")  # type: ignore[call-overload]

    engine = WorkflowEngine([parent, child], InMemoryExecutionStore(), runs.redis)
    with engine, engine.start_workers(1):
        with pytest.raises(ExecutionFailed) as caught:
            engine.run(parent, "no day", timeout=30)
        (run,) = engine.store.get_node_results(caught.value.execution.id)
    assert run.attempt == 1
    assert run.error is not None
    assert run.error["type"] == "PayloadRejected"
    assert run.error["message"].startswith("the input of workflow 'child' does not fit: Input should be a valid date")


@contextmanager
def clients(url: str = "default", *, size: int = 1) -> Iterator[dict[str, Any]]:
    yield {"value": (url, size)}


@contextmanager
def clients_of(engine: WorkflowEngine | None = None, size: int = 1) -> Iterator[dict[str, Any]]:
    yield {"value": (engine is not None, size)}


@pytest.mark.parametrize(
    ("lifespan", "value"),
    [
        (clients, ("default", 1)),
        (functools.partial(clients, size=2), ("default", 2)),
        (functools.partial(clients, url="other"), ("other", 1)),
        (functools.partial(clients, "other"), ("other", 1)),
        (clients_of, (True, 1)),
        (functools.partial(clients_of, size=2), (True, 2)),
        (plainly(clients_of), (True, 1)),
    ],
)
def test_a_lifespan_gets_the_engine_only_where_it_has_a_place_for_it(runs: Runs, lifespan: Any, value: Any) -> None:
    builder = WorkflowBuilder("w")

    @builder.node
    def state(ctx: NodeContext) -> Any:
        return ctx.state.value

    engine = WorkflowEngine(builder, InMemoryExecutionStore(), runs.redis, lifespan=lifespan)
    with engine, engine.start_workers(1):
        assert engine.run(builder, timeout=30) == list(value)


def test_a_replay_starts_with_what_was_stored(runs: Runs) -> None:
    class Login(BaseModel):
        user: str
        password: SecretStr

    builder = WorkflowBuilder("w", input=Login)

    @builder.node
    def length(data: Any) -> int:
        return len(data["password"])

    engine = WorkflowEngine(builder, InMemoryExecutionStore(), runs.redis)
    with engine, engine.start_workers(1):
        handle = engine.start(builder, {"user": "a", "password": "xyz"})
        assert handle.result(timeout=30) == 3
        replayed = engine.replay_execution(handle.id)
        assert engine.wait(replayed, timeout=30).output == 3
        with pytest.raises(PayloadRejected):
            engine.start(builder, Login(user="a", password=SecretStr("xyz")))
