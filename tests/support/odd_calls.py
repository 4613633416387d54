"""Calls with odd arguments: drawn from a seed, the same over every store, and their outcomes by class."""

from __future__ import annotations

import inspect
import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from spanloom.engine import ExecutionFilter, SpanloomError
from spanloom.engine.store.requests import (
    ControlAction,
    LogLine,
    NodeKey,
    Outcome,
    Priority,
    RecordRequest,
    SpanLine,
    StartRequest,
)
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.workflows import chain, single

__all__ = ["UNKNOWN", "Call", "draw", "of_ids", "outcome"]

UNKNOWN = "019cb2f4-0000-7abc-8def-000000000000"
AWARE = datetime(2026, 1, 1, tzinfo=UTC)
NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - odd
LATEST = datetime.max  # noqa: DTZ901 - odd
EARLIEST = datetime.min.replace(tzinfo=UTC)
A_RECORD: Any = RecordRequest  # of any values
A_LINE: Any = LogLine
A_SPAN: Any = SpanLine
A_START: Any = StartRequest


class Odd:
    """A value of a class that no call takes, with methods that fail."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("not shown")


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(3_000):
        value = [value]
    return value


#: Values that some call refuses; they are never changed.
ODD: Sequence[Any] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    1000,
    1001,
    2**31 - 1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**5000,
    1.5,
    -0.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    1e11,
    1e308,
    "",
    "x",
    "a.b",
    " ",
    "\x00",
    "a\x00b",
    "\udcff",
    "\ud83d",
    "日本\u202e",
    "x" * 3000,
    "[" * 3000,
    "completed",
    "latest",
    "same",
    "high",
    UNKNOWN,
    "W10=",
    "WzEsICJ4Il0=",
    "WyJcdTAwMDAiXQ==",
    "W1tbW1tbW1tb",
    b"",
    b"x",
    b"\xff",
    bytearray(b"x"),
    memoryview(b"x"),
    [],
    [1],
    ["x"],
    ["a", b"b"],
    [None],
    ["\x00"],
    (),
    ("n1",),
    {},
    {"a": 1},
    {1: "a"},
    {"a": "b"},
    {"a": "\udcff"},
    {"\x00": "a"},
    {"a" * 101: "b"},
    set(),
    {"n1"},
    frozenset({1}),
    range(3),
    Odd(),
    object,
    int,
    len,
    Decimal(1),
    uuid.UUID(UNKNOWN),
    1j,
    timedelta(),
    timedelta(seconds=-1),
    timedelta.max,
    timedelta(days=400_000),
    NAIVE,
    AWARE,
    LATEST,
    LATEST.replace(tzinfo=UTC),
    EARLIEST,
    date(2026, 1, 1),
    ExecutionStatus.FAILED,
    ExecutionStatus.RUNNING,
    NodeStatus.SKIPPED,
    Outcome.RETRY,
    Priority.HIGH,
    [ExecutionStatus.FAILED],
    [ExecutionStatus.RUNNING],
    ["completed"],
    ControlAction.PAUSE,
    _deep(),
    ValueError("x"),
    ExecutionFilter(),
    ExecutionFilter.model_construct(workflow_id=7, metadata="a.b"),
    ExecutionFilter().model_copy(update={"created_after": NAIVE}),
    NodeKey(UNKNOWN, "n1"),
    A_LINE("info", "m", NAIVE),
    A_LINE(1, None, "x"),
    A_LINE("info", "a\x00", AWARE),
    A_LINE("info", "m", AWARE, "[]"),
    A_LINE("info", "m", AWARE, "{"),
    A_SPAN("t", "s", None, "n", "k", "ok", 2**63, None),
    A_SPAN("t", b"s", 1, "n", "k", "ok", "1", None),
    A_SPAN("t", "s", None, "n", "k", "ok", 1, None, links="{}"),
    A_SPAN("t", "s", None, "n", "k", "ok", 1, None, attributes="\udcff"),
    A_START(UNKNOWN, "odd", "{"),
    A_START("x", "odd", "1"),
    A_START(UNKNOWN, "odd", "1", version=2**31),
    A_START(UNKNOWN, "odd", "1", idempotency_key="\udce9"),
    A_START(UNKNOWN, "odd", "1", delay_seconds=float("nan")),
    A_RECORD(UNKNOWN, "n1", 0, 0, "", Outcome.RETRY),
    A_RECORD(UNKNOWN, "n1", "0", 0, "", "completed"),
    A_RECORD(UNKNOWN, "n1", 0, 0, "", Outcome.COMPLETED, data="\x00"),
    chain(2),
    single("\x00"),
    single("a" * 300),
)


class Call(NamedTuple):
    """One call: the name of a method, and its arguments as functions of the ids that the target has by then."""

    method: str
    args: tuple[Callable[[Sequence[str]], Any], ...]
    kwargs: Mapping[str, Callable[[Sequence[str]], Any]]

    def __str__(self) -> str:
        return (
            f"{self.method}({', '.join(map(_shown, self.args))} { ({k: _shown(v) for k, v in self.kwargs.items()}) })"
        )


def _shown(make: Callable[[Sequence[str]], Any]) -> str:
    with suppress(Exception):
        return ascii(make(["<id>"]))[:100]
    return "?"


def of_ids(function: Callable[[Sequence[str]], Any]) -> Callable[[Sequence[str]], Any]:
    """Return a function of a target's ids as one that makes a fitting value."""
    function.of_ids = True  # type: ignore[attr-defined]
    return function


def draw(
    methods: Mapping[str, Callable[..., Any]],
    fitting: Mapping[str, Sequence[Any]],
    seed: int,
    *,
    options: Sequence[str] = (),
) -> Iterator[Call]:
    """Draw calls of methods without end. `fitting` are values by the names of parameters, or what `of_ids` returns.

    `options` are the names that go by `**`.
    """
    choose = random.Random(seed)

    def value(name: str) -> Callable[[Sequence[str]], Any]:
        fits = name in fitting and choose.random() < 0.75
        chosen = choose.choice(fitting[name] if fits else ODD)
        return chosen if fits and getattr(chosen, "of_ids", False) else lambda _: chosen

    while True:
        name = choose.choice(sorted(methods))
        args: list[Callable[[Sequence[str]], Any]] = []
        kwargs: dict[str, Callable[[Sequence[str]], Any]] = {}
        for parameter in inspect.signature(methods[name]).parameters.values():
            required = parameter.default is parameter.empty
            if parameter.kind is parameter.VAR_KEYWORD and options and choose.random() < 0.5:
                option = choose.choice(options)
                kwargs.setdefault(option, value(option))
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name == "self":
                continue
            if not required and choose.random() < 0.4:
                continue
            if required and parameter.kind is not parameter.KEYWORD_ONLY:
                args.append(value(parameter.name))
            else:
                kwargs[parameter.name] = value(parameter.name)
        yield Call(name, tuple(args), kwargs)


def outcome(call: Call, target: object, ids: Sequence[str], finish: Callable[[Any], object] = id) -> str:
    """Make a call and return the class of its outcome; any error but Spanloom's own is raised, with the call."""
    args = [make(ids) for make in call.args]
    kwargs = {name: make(ids) for name, make in call.kwargs.items()}
    try:
        finish(getattr(target, call.method)(*args, **kwargs))
    except SpanloomError as error:
        return type(error).__name__
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {ascii(str(error))[:300]} of {call}") from error
    return "done"
