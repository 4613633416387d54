"""An exception group is judged and recorded by the exceptions in it."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
import redis
from fakeredis import FakeRedis, FakeServer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from spanloom.engine import (
    ExecutionFailed,
    Node,
    NodeContext,
    NodeTimeout,
    PermanentError,
    RetryPolicy,
    WorkflowBuilder,
    WorkflowEngine,
)
from spanloom.engine.store.requests import Outcome
from spanloom.stores import InMemoryExecutionStore
from spanloom.worker.error_text import main_error, members_of, message_of, type_of
from spanloom.worker.node.outcomes import of_error
from spanloom.worker.slots import Slots
from spanloom.worker.telemetry.node_span import record_error


class CardDeclined(PermanentError): ...


class Unreadable(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


def group(*errors: BaseException, kind: type[BaseExceptionGroup[Any]] = BaseExceptionGroup) -> BaseExceptionGroup[Any]:
    return kind("several", errors)


def nested(error: BaseException, levels: int) -> BaseException:
    for _ in range(levels):
        error = group(error)
    return error


def outcome(error: BaseException, **policy: Any) -> Outcome:
    return of_error(error, Node(id="a", type="t", retry=RetryPolicy(max_attempts=3, **policy)), 1).outcome


def record(error: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(of_error(error, Node(id="a", type="t"), 1).error or "")
    return found


@pytest.mark.parametrize(
    ("error", "policy", "expected"),
    [
        (group(PermanentError("x")), {}, Outcome.FAILED),
        (group(CardDeclined("x")), {}, Outcome.FAILED),
        (group(KeyError(), group(ValueError(), CardDeclined("x"))), {}, Outcome.FAILED),
        (nested(CardDeclined("x"), 2_000), {}, Outcome.FAILED),
        (group(KeyError(), ValueError()), {}, Outcome.RETRY),
        (group(KeyError()), {"retry_on": ["KeyError"]}, Outcome.RETRY),
        (group(KeyError()), {"retry_on": ["LookupError"]}, Outcome.RETRY),
        (group(KeyError()), {"retry_on": ["ValueError"]}, Outcome.FAILED),
        (group(KeyError(), ValueError()), {"retry_on": ["KeyError"]}, Outcome.FAILED),
        (group(KeyError(), group(ValueError())), {"retry_on": ["KeyError", "ValueError"]}, Outcome.RETRY),
        (group(KeyError(), ValueError()), {"retry_on": ["BaseExceptionGroup"]}, Outcome.RETRY),
        (group(KeyError(), group(ValueError())), {"retry_on": ["KeyError", "ExceptionGroup"]}, Outcome.RETRY),
        (group(KeyError(), ValueError()), {"no_retry_on": ["ValueError"]}, Outcome.FAILED),
        (group(KeyError(), ValueError()), {"no_retry_on": ["ExceptionGroup"]}, Outcome.FAILED),
        (group(NodeTimeout("a", 1)), {"no_retry_on": ["spanloom.engine.NodeTimeout"]}, Outcome.FAILED),
        (group(SystemExit(1), KeyboardInterrupt()), {}, Outcome.RETRY),
        (nested(KeyError(), 2_000), {"retry_on": ["KeyError"]}, Outcome.RETRY),
    ],
)
def test_a_group_is_retried_if_all_in_it_would_be(error: BaseException, policy: Any, expected: Outcome) -> None:
    assert outcome(error, **policy) is expected


async def fails(error: Exception) -> None:
    raise error


async def in_a_task_group(*errors: Exception) -> None:
    async with asyncio.TaskGroup() as tasks:
        for error in errors:
            tasks.create_task(fails(error))


@pytest.mark.parametrize(
    ("error", "policy", "calls"),
    [
        (CardDeclined("no funds"), {}, 1),
        (redis.ConnectionError("gone"), {"retry_on": ["redis.ConnectionError"]}, 3),
        (redis.ConnectionError("gone"), {"no_retry_on": redis.RedisError}, 1),
    ],
)
def test_a_worker_repeats_a_task_group_as_its_policy_has_it(error: Exception, policy: Any, calls: int) -> None:
    seen: list[int] = []
    builder = WorkflowBuilder("w")

    @builder.node(retry=RetryPolicy(max_attempts=3, delay=0.01, **policy))
    async def tasks(ctx: NodeContext) -> None:
        seen.append(ctx.attempt)
        await in_a_task_group(error)

    engine = WorkflowEngine(builder, InMemoryExecutionStore(), FakeRedis(server=FakeServer()))
    with engine, engine.start_workers(1), pytest.raises(ExecutionFailed) as caught:
        engine.run(builder, timeout=30)
    assert seen == list(range(1, calls + 1))
    assert caught.value.execution.error["message"] == str(error)


def test_the_record_of_a_task_group_names_the_exception_of_its_task() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(in_a_task_group(CardDeclined("no funds")))
    found = record(caught.value)
    assert (found["type"], found["message"], found["permanent"]) == (f"{__name__}.CardDeclined", "no funds", True)
    assert "unhandled errors in a TaskGroup" in found["traceback"]
    assert "in fails" in found["traceback"]


def test_the_record_of_several_exceptions_names_each() -> None:
    found = record(group(KeyError("a"), group(CardDeclined("no funds"), ValueError("b")), kind=BaseExceptionGroup))
    assert found["type"] == "ExceptionGroup"
    assert found["message"] == (
        f"several (2 sub-exceptions); KeyError: 'a'; {__name__}.CardDeclined: no funds; ValueError: b"
    )


def test_the_record_of_a_huge_group_is_bounded() -> None:
    wide = group(*(ValueError("x" * 10_000) for _ in range(5_000)))
    assert len(record(wide)["message"]) <= 4_000
    deep = nested(ValueError("deep down"), 3_000)
    assert (record(deep)["type"], record(deep)["message"]) == ("ValueError", "deep down")
    assert sum(1 for _ in members_of(group(*(nested(ValueError(), 100) for _ in range(1_000))))) == 10_000


def test_an_exception_that_cannot_be_read_is_recorded_by_its_class() -> None:
    for error in (Unreadable(), group(Unreadable()), group(Unreadable(), KeyError())):
        assert "its message can't be read: SystemExit" in record(error)["message"]


def test_causes_in_a_circle_are_recorded() -> None:
    one, other = KeyError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    one.__context__, other.__context__ = other, one
    assert record(one)["message"] == "'one'"


def test_an_exception_that_denies_its_class_is_recorded() -> None:
    class Liar(Exception):
        @property
        def __class__(self) -> Any:
            raise RuntimeError("no class")

        @property
        def __cause__(self) -> Any:  # type: ignore[override]  # wrong on purpose
            raise RuntimeError("no cause")

    found = record(Liar("x"))
    assert (found["type"], found["message"]) == (f"{__name__}.{Liar.__qualname__}", "x")


class Sealed(ExceptionGroup[Exception]):
    """A group whose own attribute can't be read, so that no traceback of it can be written either."""

    @property
    def exceptions(self) -> Any:  # type: ignore[override]  # wrong on purpose
        raise RuntimeError("sealed")


class Mute(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class MuteFile(Mute, OSError): ...


def hostile() -> list[BaseException]:
    group_of_two = Sealed("two", [KeyError("a"), ValueError("b")])
    return [group_of_two, Mute("mute"), MuteFile(2, "mute"), Unreadable(), nested(ValueError(), 3_000)]


def test_a_worker_goes_on_after_exceptions_whose_own_methods_fail() -> None:
    errors = hostile()
    builder = WorkflowBuilder("w", input=int)

    @builder.node(max_attempts=2, retry=RetryPolicy(delay=0.01, retry_on=("KeyError", "ValueError", "Mute")))
    def fails(number: int) -> None:
        raise errors[number]

    found: list[str] = []
    engine = WorkflowEngine(builder, InMemoryExecutionStore(), FakeRedis(server=FakeServer()))
    with engine, engine.start_workers(1, concurrency=1):
        for number in range(len(errors)):
            with pytest.raises(ExecutionFailed) as caught:
                engine.run(builder, number, timeout=30)
            found.append(str(caught.value.execution.error["type"]).rpartition(".")[2])
    assert found == ["Sealed", "Mute", "MuteFile", "Unreadable", "ValueError"]


def test_a_slot_outlives_an_exception_that_cannot_be_logged() -> None:
    slots = Slots(1, "test")
    done = threading.Event()

    def fails() -> None:
        raise Sealed("one", [ValueError("b")])

    try:
        slots.submit(fails)
        slots.submit(done.set)
        assert done.wait(30)
    finally:
        slots.close()


def test_a_span_of_an_exception_whose_own_methods_fail_is_exported() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for error in [*hostile(), group(CardDeclined("no funds"))]:
        span = provider.get_tracer("test").start_span("run")
        record_error(span, error)
        span.end()
    types = [span.events[0].attributes["exception.type"] for span in exporter.get_finished_spans()]  # type: ignore[index]
    assert types == [
        *(f"{__name__}.{name}" for name in ("Sealed", "Mute", "MuteFile", "Unreadable")),
        "ValueError",
        f"{__name__}.CardDeclined",
    ]


def test_a_group_of_one_counts_as_that_one() -> None:
    error = ValueError("x")
    assert main_error(nested(error, 3)) is error
    assert main_error(error) is error
    assert (type_of(nested(error, 2)), message_of(nested(error, 2))) == ("ValueError", "x")
    both = group(error, KeyError())
    assert main_error(group(both)) is both
