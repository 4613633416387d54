"""Calls at the same moment in several threads, for tests of rules that hold in any order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["race"]

T = TypeVar("T")


def race(calls: Sequence[Callable[[], T]], *, timeout_seconds: float = 60.0) -> list[T]:
    """Make all calls at once, each in a thread of its own, and return the answers in order, or raise the first error.

    >>> race([lambda: 1, lambda: 2])
    [1, 2]
    """
    gate = threading.Barrier(len(calls))

    def pass_gate(call: Callable[[], T]) -> T:
        gate.wait(timeout_seconds)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        answers = [pool.submit(pass_gate, call) for call in calls]
        return [answer.result(timeout_seconds) for answer in answers]
