"""Waits for the ends of items."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from model.asks import Held, Wish
from model.execution import Execution, Run
from model.model import Model
from model.wait_kind import Wait
from spanloom.engine.store.requests import FanOut, RecordRequest
from spanloom.engine.store.states import ExecutionStatus, WaitKind


class Items(Wait):
    """A run that waits for items has started the first of them; unless its execution runs it is held, to ask again."""

    kind = WaitKind.ITEMS

    def may(self, model: Model, held: Held) -> bool:
        return not held.key[1]

    def fields(self, wish: Wish, held: Held, model: Model, number: int) -> dict[str, Any]:
        data = tuple(json.dumps(f"{held.key[0]} {at}") for at in range(wish.items))
        return {"fan_out": FanOut(data, wish.bound, wish.bound - 1)}

    def begin(self, execution: Execution, run: Run, record: RecordRequest, now: datetime, epoch: int) -> None:
        asked, node = record.fan_out, record.node_id
        assert asked is not None
        if execution.status is not ExecutionStatus.RUNNING:
            execution.queue((node, 0), epoch)
            return
        run.wait_for(self.kind, record.wait_key, None)
        run.fan_out = (len(asked.items), asked.max_concurrency, asked.tolerated_failures, record.wait_key)
        execution.forget_items(node)
        execution.items.update({(node, number): data for number, data in enumerate(asked.items, 1)})
        for number in range(1, min(asked.max_concurrency, len(asked.items)) + 1):
            execution.start_item((node, number), epoch)
