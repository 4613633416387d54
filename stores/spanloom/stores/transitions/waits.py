"""The kinds of waits: one rule for each, that records, retries and the sweep read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from spanloom.engine.store.states import WaitKind

__all__ = ["WAITS", "WaitRule"]


class WaitRule(NamedTuple):
    """How runs of one kind of wait are recorded, woken and retried."""

    timed: bool  # whether it is due after a time, and then woken by the sweep
    starts: bool  # whether the wait itself starts something, which it may not unless the execution is running
    kept: bool  # whether the run keeps, until its next record, what woke it
    on_retry: Literal["anew", "child", "items"]  # how a failed run that had waited so is started by a retry


WAITS: Mapping[WaitKind, WaitRule] = {
    WaitKind.RETRY: WaitRule(timed=True, starts=False, kept=False, on_retry="anew"),
    WaitKind.TIMER: WaitRule(timed=True, starts=False, kept=True, on_retry="anew"),
    WaitKind.CHILD: WaitRule(timed=False, starts=True, kept=True, on_retry="child"),
    WaitKind.ITEMS: WaitRule(timed=False, starts=True, kept=True, on_retry="items"),
}
