"""The model finds what is broken: mutants of the store, each told from the healthy one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from model.machine import machine_over
from model.test_model import RUNS
from model.world import World
from spanloom.engine.errors import SpanloomError
from spanloom.engine.store.requests import NodeKey
from spanloom.engine.store.states import NodeStatus
from spanloom.stores.schema import FENCES_A_REVISION
from spanloom.stores.sqlite.transaction import SqliteTransaction
from spanloom.stores.transitions import port, retry_execution, sweep
from spanloom.stores.transitions.arrivals import Arrival, Propagation, requeue
from spanloom.stores.transitions.rows import ExecutionRow, ResultRow, RunRow

pytestmark = pytest.mark.torture  # it tests the tests

MOST_EXAMPLES = 600


def lost_arrival(patch: pytest.MonkeyPatch) -> None:
    """What a run that was claimed more than once sends to a join does not arrive."""
    settle: Callable[..., None] = Propagation.settle

    def dropping(self: Propagation, arrivals: Sequence[Arrival]) -> None:
        settle(self, [one for one in arrivals if one.edge.target_inputs == 1 or _is_first_claim(one.reference)])

    patch.setattr(Propagation, "settle", dropping)


def claim_without_a_lease(patch: pytest.MonkeyPatch) -> None:
    """A worker whose lease has lapsed may claim."""
    claim_all: Callable[..., Any] = port.claim

    def claiming(tx: Any, *given: Any) -> Any:
        tx.is_live = lambda worker_id: True
        return claim_all(tx, *given)

    patch.setattr(port, "claim", claiming)


def retry_under_the_same_fence(patch: pytest.MonkeyPatch) -> None:
    """A run that a retry starts anew is claimed under the fence of its last claim again."""
    start_anew: Callable[..., None] = retry_execution._Retry._start_anew

    def starting(self: Any, execution: ExecutionRow, result: ResultRow, *given: Any) -> None:
        start_anew(self, execution._replace(revision=0), result._replace(fence=result.fence - 1), *given)

    patch.setattr(retry_execution._Retry, "_start_anew", starting)


def loss_that_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A run that lost its worker is queued again as if it had been given back."""
    patch.setattr(sweep, "requeue", lambda *given, losses=0, **options: requeue(*given, **options))


def second_claim(patch: pytest.MonkeyPatch) -> None:
    """A run that is running is given to whoever asks for it, too."""
    lock_runs: Callable[..., dict[NodeKey, RunRow]] = SqliteTransaction.lock_runs

    def locking(self: Any, keys: Any, *, status: NodeStatus | None = None, **options: Any) -> dict[NodeKey, RunRow]:
        runs = lock_runs(self, keys, **options)
        if status is None:
            return runs
        return {
            key: run._replace(status=status.value)
            for key, run in runs.items()
            if run.status in (status, NodeStatus.RUNNING)
        }

    patch.setattr(SqliteTransaction, "lock_runs", locking)


def _is_first_claim(reference: str) -> bool:
    return int(reference.rpartition("/")[2]) % FENCES_A_REVISION == 1


MUTANTS = [
    lost_arrival,
    second_claim,
    claim_without_a_lease,
    loss_that_is_not_counted,
    retry_under_the_same_fence,
]


def _first_difference(world: World, examples: int) -> str | None:
    """Run the machine so often, or until it fails; say how."""
    runs = settings(RUNS, max_examples=examples, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)
    try:
        run_state_machine_as_test(machine_over(world), settings=runs)
    except (AssertionError, LookupError, SpanloomError) as error:  # as the machine may find, or stumble upon
        return repr(error)
    return None


@pytest.mark.timeout(600)  # by the number of runs until it is found
@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_a_mutant_is_told_from_the_model(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert _first_difference(World("memory://"), MOST_EXAMPLES) is not None
