"""The model finds what is broken: mutants of the store, each told from the healthy one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from model.machine import machine_over
from model.test_model import RUNS
from model.world import World
from spanloom.engine.errors import SpanloomError
from spanloom.engine.store.requests import Refusal
from spanloom.stores.sqlite import claims, ends, retry, sweep, transitions

MOST_EXAMPLES = 300


def lost_arrival(patch: pytest.MonkeyPatch) -> None:
    """What a run that was claimed more than once sends to a join does not arrive."""
    arrive: Callable[..., None] = ends._Flow._arrive

    def dropping(self: Any, edge: Any, taken: bool) -> None:
        if edge.target_inputs == 1 or self._run.fence == self._run.first_fence + 1:
            arrive(self, edge, taken)

    patch.setattr(ends._Flow, "_arrive", dropping)


def claim_without_a_lease(patch: pytest.MonkeyPatch) -> None:
    """A worker whose lease has lapsed may claim."""
    patch.setattr(transitions, "may_claim", lambda turn, worker_id: True)


def retry_under_the_same_fence(patch: pytest.MonkeyPatch) -> None:
    """A run that a retry starts anew is claimed under the fence of its last claim again."""
    add: Callable[..., None] = retry._Retry._add

    def adding(self: Any, member: Any, one: Any, edge: Any, wait: Any, status: Any, fence: int, push: int) -> None:
        add(self, member, one, edge, wait, status, one.fence - 1, push)

    patch.setattr(retry._Retry, "_add", adding)


def loss_that_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A run that lost its worker is queued again as if it had been given back."""
    patch.setattr(sweep._Sweep, "lost_run", lambda self, run: self._requeue(run, "lost_worker"))


def second_claim(patch: pytest.MonkeyPatch) -> None:
    """A run that is running is given to whoever asks for it, too."""
    claim: Callable[..., Any] = claims.claim

    def giving(turn: Any, key: Any, worker_id: str, token: str | None) -> Any:
        answer = claim(turn, key, worker_id, token)
        if answer is not Refusal.TAKEN:
            return answer
        turn.execute("UPDATE node_runs SET status = 'queued' WHERE execution_id = ? AND node_id = ? AND item = ?", key)
        return claim(turn, key, worker_id, token)

    patch.setattr(transitions, "claim", giving)


_LATE = pytest.mark.torture  # found after dozens of runs
MUTANTS = [
    lost_arrival,
    second_claim,
    pytest.param(claim_without_a_lease, marks=_LATE),
    pytest.param(loss_that_is_not_counted, marks=_LATE),
    pytest.param(retry_under_the_same_fence, marks=_LATE),
]


def _first_difference(world: World, examples: int) -> str | None:
    """Run the machine so often, or until it fails; say how."""
    runs = settings(RUNS, max_examples=examples, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)
    try:
        run_state_machine_as_test(machine_over(world), settings=runs)
    except (AssertionError, LookupError, SpanloomError) as error:  # as the machine may find, or stumble upon
        return repr(error)
    return None


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_a_mutant_is_told_from_the_model(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert _first_difference(World("memory://"), MOST_EXAMPLES) is not None
