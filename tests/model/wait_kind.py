"""What is to be known of a kind of wait, so that the machine draws it and the model follows it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from spanloom.engine.store.requests import RecordRequest
from spanloom.engine.store.states import WaitKind

if TYPE_CHECKING:
    from model.asks import Held, Wish
    from model.execution import Execution, Run
    from model.model import Model


class Wait:
    """A kind of wait. Each stands in a module of `waits`, which finds it."""

    kind: ClassVar[WaitKind]
    rules: ClassVar[type | None] = None  # of the machine: what ends such a wait, and what else is its own

    def may(self, model: Model, held: Held) -> bool:
        """Whether a claimed run may wait like this now."""
        return True

    def fields(self, wish: Wish, held: Held, model: Model, number: int) -> dict[str, Any]:
        """Return what its record has beside the kind; `number` differs from record to record."""
        return {}

    def begin(self, execution: Execution, run: Run, record: RecordRequest, now: datetime, epoch: int) -> None:
        """Do what the record of such a wait says."""
        raise NotImplementedError
