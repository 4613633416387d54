"""What the machine does about retention: it purges families that have ended, and forgets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from model.execution import Execution
from spanloom.engine.store.requests import PurgeResult
from spanloom.engine.store.states import ExecutionStatus

if TYPE_CHECKING:
    from model.answers import Answers
    from model.model import Model
    from spanloom.testing.clock import ManualClock

_ENDED = [status for status in ExecutionStatus if status.ended]


class Purging:
    """The rules of a machine that purge. What someone may still ask about what is gone stays: it must be refused."""

    model: Model
    answers: Answers
    store: Any
    clock: ManualClock

    @precondition(lambda self: any(not one.status.ended for one in self.model.executions.values()))
    @rule(statuses=st.lists(st.sampled_from(_ENDED), min_size=1, max_size=3, unique=True), pause=st.booleans())
    def purge(self, statuses: list[ExecutionStatus], pause: bool) -> None:
        if pause:
            self.clock.advance(0.5)
        families = [self.model.family(one) for one in self.model.executions.values() if one.parent is None]
        gone = [one for family in families if self._over(family, statuses) for one in family]
        purged = self.store.purge_executions(ended_before=self.clock(), statuses=statuses)
        assert purged == PurgeResult(len(gone), 0), f"{purged}, and {len(gone)} were to go"
        for one in gone:
            del self.model.executions[one.id]
            assert self.store.get_execution(one.id) is None
            assert self.store.get_events(one.id) == []
        self.model.forget({one.id for one in gone})
        self.answers.claims = [held for held in self.answers.claims if held.execution_id in self.model.executions]

    def _over(self, family: list[Execution], statuses: list[ExecutionStatus]) -> bool:
        now = self.clock()
        ended = all(one.status.ended and one.ended_at is not None and one.ended_at < now for one in family)
        return ended and family[0].status in statuses
