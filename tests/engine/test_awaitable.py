"""Asynchronous forms of blocking methods: what they take, where they run, and what they are called."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest

from spanloom.engine.awaitable import awaitable


class Caller:
    """Something with a blocking method."""

    def call(self, number: int, *, factor: int = 2) -> tuple[int, threading.Thread]:
        """Multiply."""
        if number < 0:
            raise ValueError(number)
        return number * factor, threading.current_thread()

    acall = awaitable(call)


class Overriding(Caller):
    """A subclass that calls otherwise."""

    def call(self, number: int, *, factor: int = 2) -> tuple[int, threading.Thread]:
        return -1, threading.current_thread()


def test_it_takes_and_returns_what_the_method_does_in_another_thread() -> None:
    result, thread = asyncio.run(Caller().acall(3, factor=4))

    assert result == 12
    assert thread is not threading.current_thread()


def test_it_raises_what_the_method_raises() -> None:
    with pytest.raises(ValueError, match="-1"):
        asyncio.run(Caller().acall(-1))


def test_a_subclass_overrides_both_forms_by_the_method() -> None:
    assert asyncio.run(Overriding().acall(3))[0] == -1


def test_it_is_a_coroutine_function_with_a_name_and_a_sentence_of_its_own() -> None:
    assert inspect.iscoroutinefunction(Caller.acall)
    assert (Caller.acall.__name__, Caller.acall.__qualname__) == ("acall", "Caller.acall")
    assert Caller.acall.__doc__ == "Like call(), without blocking the event loop."
    assert list(inspect.signature(Caller().acall).parameters) == ["number", "factor"]
