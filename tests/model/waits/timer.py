"""Waits for a time."""

from __future__ import annotations

from datetime import datetime, timedelta

from model.execution import Execution, Run
from model.wait_kind import Wait
from spanloom.engine.store.requests import RecordRequest
from spanloom.engine.store.states import WaitKind


class Timer(Wait):
    """A run that waits for a time is due then, in whatever execution."""

    kind = WaitKind.TIMER

    def begin(self, execution: Execution, run: Run, record: RecordRequest, now: datetime, epoch: int) -> None:
        due = record.due_at or now + timedelta(seconds=record.delay_seconds)
        run.wait_for(self.kind, record.wait_key, due)
