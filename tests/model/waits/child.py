"""Waits for the end of a child."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

from hypothesis.stateful import rule

from model.asks import PICK, Held, Wish
from model.execution import Execution, Run
from model.model import Model
from model.wait_kind import Wait
from spanloom.engine.store.requests import NodeKey, RecordRequest, StartRequest
from spanloom.engine.store.states import ExecutionStatus, WaitKind


class Waking:
    """The rule that passes the end of an execution on to the run that waits for it, as its engine does."""

    model: Model
    store: Any
    answers: Any
    touched: set[str]
    _execution: Callable[[int], Execution]

    @rule(child=PICK)
    def wake(self, child: int) -> None:
        execution = self._execution(child)
        self.model.wake(execution)
        self.answers.take(self.store.wake_parents([execution.id], epoch=self.model.epoch))
        self.touched.update(self.model.executions)


class Child(Wait):
    """A run that waits for a child has started it; unless its execution runs it is held, to ask again."""

    kind = WaitKind.CHILD
    rules = Waking

    def may(self, model: Model, held: Held) -> bool:
        return not model.full

    def fields(self, wish: Wish, held: Held, model: Model, number: int) -> dict[str, Any]:
        workflows = list(model.workflows)
        known = workflows[wish.items % len(workflows)] if wish.bound > 1 or wish.next else "unknown"
        execution_id = str(uuid.UUID(int=(len(model.executions) << 64) + number))
        child = StartRequest(
            execution_id,
            known,
            "null",
            deadline_seconds=10.0 if wish.handled else None,
            parent=NodeKey(held.execution_id, *held.key),
            parent_fence=held.fence,
            depth=1,
        )
        return {"child": child, "wait_key": execution_id}

    def begin(self, execution: Execution, run: Run, record: RecordRequest, now: datetime, epoch: int) -> None:
        if execution.status is ExecutionStatus.RUNNING:
            run.wait_for(self.kind, record.wait_key, None)  # the model starts the child
        else:
            execution.queue((record.node_id, record.item), epoch)
