"""Two kinds of store that are given the same commands answer the same and hold the same, row by row."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from model.execution import Execution
from model.machine import Machine
from model.test_model import RUNS
from model.twins import HOT, PAIRS, Disagreement, TwinWorld, plain
from model.world import open_rows
from spanloom.engine.errors import SpanloomError
from spanloom.engine.store.requests import ControlAction, Outcome, RecordRequest, Replay, StartRequest
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.store.transitions import Control

pytestmark = pytest.mark.services

CHECKED_EVERY = 10  # steps: what differs stays different, mostly, and is seen at the end


class TwinMachine(Machine):
    """The model's machine over two stores at once: their answers are compared, their rows at times and at the end."""

    store: Any

    def _sweep(self, heads: dict[str, datetime | None], limit: int) -> None:
        super()._sweep(heads, 500)  # which of the rows that are due come first is each store's choice

    @invariant()
    def agrees(self) -> None:
        """Compare the two with each other; that the one in memory agrees with the model is tested by itself."""
        self.answers.look(open_rows(self.store.first))
        self.touched = set()
        self.steps += 1
        if self.steps % CHECKED_EVERY == 0:
            self.store.check(HOT)

    def teardown(self) -> None:
        """Do at last what the model does not know of, wherever the play has come to; then compare everything."""
        if self.model.executions:
            self.store.check(HOT)
            for number, execution in enumerate(list(self.model.executions.values())):
                self._replay(execution)
                self._by_hand(execution, number + self.steps)
            self.store.check()
            self._control_together()

    def _control_together(self) -> None:
        """Control all executions in one step in the first store, and one after the other in the second."""
        every = [str(uuid.UUID(int=7)), *self.model.executions]  # parents come before their children
        parents = [one for one in every if (known := self.model.executions.get(one)) is None or known.parent is None]
        for action, ids in [
            (ControlAction.RETRY, parents),  # after its parent's retry a child's is refused if it comes by itself
            (ControlAction.PAUSE, every),
            (ControlAction.RESUME, every),
            (ControlAction.ACKNOWLEDGE, every),
            (ControlAction.CANCEL, every),
        ]:
            options: dict[str, Any] = {"epoch": self.model.epoch, "now": self.clock()}
            together = self.store.first.control_executions(action, ids, **options)
            each = Control.control_executions(self.store.second, action, ids, **options)
            for execution_id, mine, other in zip(ids, together, each, strict=True):
                if plain(mine) != plain(other):
                    raise Disagreement(f"{action} of {execution_id} among {ids}\n       {mine}\n   and {other}")
        self.store.check(HOT)

    def _by_hand(self, execution: Execution, number: int) -> None:
        outcomes = (Outcome.COMPLETED, Outcome.FAILED, Outcome.SKIPPED)
        error = json.dumps({"type": "Boom", "message": "by hand"})
        for node in execution.inputs:
            number += 1
            outcome = outcomes[number % 3]
            failed = error if outcome is Outcome.FAILED else None
            with suppress(SpanloomError):
                self.store.update_node_result(RecordRequest(execution.id, node, 0, 0, "", outcome, error=failed))
        with suppress(SpanloomError):
            self.store.fail_execution(execution.id, error)
        with suppress(SpanloomError):
            self.store.acknowledge_execution(execution.id)

    def _replay(self, execution: Execution) -> None:
        """Carry all that has arrived, but for the last node: what no taken edge leads to is among it."""
        carried: list[str] = []
        *nodes, last = execution.inputs
        for node in nodes:
            if execution.arrived(node) and all(parent in carried for parent in execution.inputs[node]):
                carried.append(node)
        if execution.arrived(last) and execution.runs[last, 0].status is NodeStatus.SKIPPED:
            return
        new = str(uuid.uuid5(uuid.UUID(execution.id), "replay"))
        with suppress(SpanloomError):
            asked = StartRequest(new, execution.workflow.id, "null", replay=Replay(execution.id, carried))
            self.store.create_execution(asked, epoch=self.model.epoch)


def twin_machine_over(world: TwinWorld) -> type[TwinMachine]:
    """Return the machine that drives these two stores."""
    return type("DrivenTwins", (TwinMachine,), {"world": world})


@pytest.mark.timeout(600)  # of which most is for making a difference small
@pytest.mark.parametrize("twins", PAIRS, indirect=True)
def test_two_stores_agree(twins: TwinWorld) -> None:
    run_state_machine_as_test(twin_machine_over(twins), settings=settings(RUNS, max_examples=8))


@pytest.mark.torture
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("twins", PAIRS, indirect=True)
def test_two_stores_agree_for_long(twins: TwinWorld) -> None:
    run_state_machine_as_test(twin_machine_over(twins), settings=settings(RUNS, max_examples=5_000))
