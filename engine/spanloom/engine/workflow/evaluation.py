"""The budget of evaluations: the steps, the time and the memory that the expressions of one node may take together."""

from __future__ import annotations

import time
from collections.abc import Callable

from spanloom.engine.errors import ExpressionFailed
from spanloom.engine.limits import (
    MAX_EXPRESSION_BYTES,
    MAX_EXPRESSION_SECONDS,
    MAX_EXPRESSION_STEPS,
    MAX_EXPRESSIONS_SECONDS,
    MAX_EXPRESSIONS_STEPS,
)
from spanloom.engine.wording import size_text

__all__ = ["EvaluationBudget"]

_LOOK = 1_024  # steps between two reads of the clock


class EvaluationBudget:
    """The bounds of each evaluation, and of the sum of those that share this value.

    Evaluations spend from it before each step. One thread uses it at a time.
    """

    __slots__ = ("_all_until", "_bytes", "_check", "_given", "_steps", "_until", "left", "mark")

    def __init__(self, check: Callable[[], object] | None = None) -> None:
        """Call `check` before each evaluation, and every 1,024 steps: it raises to end the evaluation early."""
        self.left = self.mark = 0  #: the steps left of this evaluation, and those left when `look` is due
        self._check = check
        self._steps = MAX_EXPRESSIONS_STEPS
        self._given = 0
        self._all_until = self._until = 0.0
        self._bytes = 0

    def begin(self) -> None:
        """Begin an evaluation, after the end of the one before."""
        now = time.monotonic()
        if self._all_until == 0.0:
            self._all_until = now + MAX_EXPRESSIONS_SECONDS
        self._steps -= self._given - self.left
        self.left = self._given = min(self._steps, MAX_EXPRESSION_STEPS)
        self.mark = self.left - _LOOK
        self._until = min(self._all_until, now + MAX_EXPRESSION_SECONDS)
        self._bytes = 0
        if self._check is not None:
            self._check()

    def spend(self, steps: int) -> None:
        """Take steps. Raises ExpressionFailed if too few are left or the time is up, or the error of `check`."""
        self.left -= steps
        if self.left < self.mark:
            self.look()

    def look(self) -> None:
        """Check the steps and the time, and call `check`."""
        if self.left < 0:
            if self._given == MAX_EXPRESSION_STEPS:
                raise ExpressionFailed(f"takes more than {MAX_EXPRESSION_STEPS:,} steps")
            raise ExpressionFailed(f"takes, with those before it, more than {MAX_EXPRESSIONS_STEPS:,} steps")
        self.mark = max(self.left - _LOOK, 0)
        if time.monotonic() > self._until:
            if self._until < self._all_until:
                raise ExpressionFailed(f"takes longer than {MAX_EXPRESSION_SECONDS:g} s")
            raise ExpressionFailed(f"takes, with those before it, longer than {MAX_EXPRESSIONS_SECONDS:g} s")
        if self._check is not None:
            self._check()

    def create(self, size: int) -> None:
        """Take memory for a value that is about to be made. Raises ExpressionFailed if too little is left."""
        self._bytes += size
        if self._bytes > MAX_EXPRESSION_BYTES:
            raise ExpressionFailed(f"makes more than {size_text(MAX_EXPRESSION_BYTES)}")
        self.spend(size // 64)

    def pass_through(self, size: int) -> None:
        """Take the steps of one operation on values of `size` bytes together, written out as JSON."""
        if size > MAX_EXPRESSION_BYTES:
            raise ExpressionFailed(f"goes through more than {size_text(MAX_EXPRESSION_BYTES)}")
        self.spend(size // 32)
