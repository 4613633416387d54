"""A synchronous handler that takes too long gets NodeTimeout, and nobody else ever does."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from spanloom.engine.errors import NodeTimeout
from spanloom.worker.node.timeouts import TimeLimit


@pytest.fixture
def time_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[TimeLimit]:
    monkeypatch.setattr("spanloom.worker.node.timeouts._AGAIN_SECONDS", 0.1)
    made = TimeLimit()
    yield made
    made.close()


def spin(seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_a_call_that_ends_in_time_returns_its_result(time_limit: TimeLimit) -> None:
    assert time_limit.call(lambda: 7, "a", 5) == 7


def test_a_call_that_takes_too_long_raises_with_node_and_seconds(time_limit: TimeLimit) -> None:
    with pytest.raises(NodeTimeout, match=r"'slow'.*0\.05 s") as raised:
        time_limit.call(spin, "slow", 0.05)
    assert (raised.value.node_id, raised.value.seconds) == ("slow", 0.05)


def test_a_timeout_of_the_handlers_own_is_left_alone(time_limit: TimeLimit) -> None:
    def handler() -> None:
        raise NodeTimeout("inner", 1.0)

    with pytest.raises(NodeTimeout, match="'inner'"):
        time_limit.call(handler, "outer", 5)


def test_a_handler_that_swallows_the_timeout_still_timed_out(time_limit: TimeLimit) -> None:
    def stubborn() -> str:
        try:
            spin()
        except NodeTimeout:
            return "went on"
        return "never"

    with pytest.raises(NodeTimeout):
        time_limit.call(stubborn, "stubborn", 0.05)


def test_a_timeout_that_a_finalizer_drops_comes_again(time_limit: TimeLimit, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(what.exc_type))

    class Slow:
        def __del__(self) -> None:
            spin()

    def handler() -> None:
        Slow()
        spin()

    with pytest.raises(NodeTimeout):
        time_limit.call(handler, "a", 0.05)
    assert dropped == [NodeTimeout]


def test_who_cleans_up_after_a_timeout_is_left_to_it(time_limit: TimeLimit) -> None:
    done: list[str] = []

    @contextmanager
    def resource() -> Iterator[None]:
        try:
            yield
        except NodeTimeout:
            spin(0.3)
            done.append("exit")
            raise

    def handler() -> None:
        try:
            with resource():
                spin()
        finally:
            try:
                int("no number")  # an error of its own, while it handles the timeout
            except ValueError:
                spin(0.3)
            done.append("finally")

    with pytest.raises(NodeTimeout):
        time_limit.call(handler, "a", 0.05)
    assert done == ["exit", "finally"]


def test_exceptions_that_are_tied_to_a_ring_do_not_hold_up_the_watch(time_limit: TimeLimit) -> None:
    def handler() -> None:
        swallowed = False
        while True:
            try:
                spin()
            except NodeTimeout:
                if swallowed:
                    raise
                swallowed = True
            if swallowed:
                first, second = ValueError(), KeyError()
                try:
                    raise first
                except ValueError:
                    first.__context__, second.__context__ = second, first
                    spin()

    with pytest.raises(NodeTimeout):
        time_limit.call(handler, "a", 0.05)


def test_one_that_swallows_each_timeout_ends_with_another(time_limit: TimeLimit) -> None:
    swallowed: list[str] = []

    def handler() -> None:
        while len(swallowed) < 2:
            try:
                spin()
            except NodeTimeout:
                swallowed.append("once more")
        spin()

    with pytest.raises(NodeTimeout):
        time_limit.call(handler, "a", 0.05)
    assert len(swallowed) == 2


def test_the_instant_in_which_both_end_hits_nobody_else(time_limit: TimeLimit) -> None:
    # Calls that end just when their time is over: each returns or times out, and what comes after is safe.
    outcomes = {"returned": 0, "timed out": 0}
    for _ in range(300):
        try:
            time_limit.call(lambda: spin(0.002), "edge", 0.002)
            outcomes["returned"] += 1
        except NodeTimeout:
            outcomes["timed out"] += 1
        sum(range(2_000))  # an exception that came too late would hit here
    assert sum(outcomes.values()) == 300


def test_many_threads_are_watched_at_once(time_limit: TimeLimit) -> None:
    results: list[str] = []

    def run(number: int) -> None:
        try:
            quick = number % 2
            time_limit.call(lambda: spin(0.0 if quick else 30.0), f"n{number}", 30 if quick else 0.2)
            results.append("returned")
        except NodeTimeout:
            results.append("timed out")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == ["returned"] * 3 + ["timed out"] * 3


def test_a_time_limit_that_no_clock_can_wait_for_does_not_end_the_watch(time_limit: TimeLimit) -> None:
    def wait_a_little() -> int:
        time.sleep(0.05)  # so that the watchdog waits for this one first
        return 7

    assert time_limit.call(wait_a_little, "a", 1e18) == 7
    with pytest.raises(NodeTimeout):
        time_limit.call(spin, "b", 0.1)
