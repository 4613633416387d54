"""The twins find where two forms of a store drift: differences that were there, put back into one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from model.test_model import RUNS
from model.test_twins import twin_machine_over
from model.twins import FUNCTIONS_AND_PYTHON, MEMORY_AND_POSTGRES, Disagreement, TwinWorld
from spanloom.stores.sqlite.transaction import SqliteTransaction
from spanloom.stores.transitions import arrivals, record, sweep
from spanloom.stores.transitions.arrivals import Propagation
from spanloom.stores.transitions.waits import rules

pytestmark = [pytest.mark.services, pytest.mark.torture]  # found after dozens of plays, of a second at most


def pause_behind_what_was_held(patch: pytest.MonkeyPatch) -> None:
    """In one dialect what a pause, or a failure, holds still names the record that made it ready."""
    move_runs: Callable[..., Any] = SqliteTransaction.move_runs

    def moving(self: SqliteTransaction, where: Any, to: Any, **columns: Any) -> Any:
        columns.pop("claim_reference", None)
        return move_runs(self, where, to, **columns)

    patch.setattr(SqliteTransaction, "move_runs", moving)


def failure_behind_what_was_held(patch: pytest.MonkeyPatch) -> None:
    """What a record that fails its execution holds still names the record that made it ready."""

    def failing(tx: Any, *given: Any) -> Any:
        move_runs = tx.move_runs

        def moving(where: Any, to: Any, *, claim_reference: Any, **columns: Any) -> Any:
            return move_runs(where, to, **columns)

        tx.move_runs = moving
        try:
            return arrivals.fail(tx, *given)
        finally:
            del tx.move_runs

    patch.setattr(record, "fail", failing)


def hold_without_its_cause(patch: pytest.MonkeyPatch) -> None:
    """The event of a hold has no data."""
    hold: Callable[..., Any] = rules._hold
    patch.setattr(rules, "_hold", lambda tx, run, kept, told: hold(tx, run, kept, None))


def hold_that_is_a_push(patch: pytest.MonkeyPatch) -> None:
    """A hold raises the push number."""
    hold: Callable[..., Any] = rules._hold

    def pushing(tx: Any, run: Any, kept: Any, told: Any) -> Any:
        return hold(tx, run, kept._replace(push=kept.push + 1), told)

    patch.setattr(rules, "_hold", pushing)


def history_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """What is skipped stands behind what became ready."""

    def settle(self: Any, arriving: Any) -> None:
        ready: list[Any] = []
        while arriving:
            arriving = self._round(arriving, ready)
        self._place(sorted(ready))
        self._tx.add_events(sorted(self._skipped))

    patch.setattr(Propagation, "settle", settle)


def loss_that_forgets_what_woke(patch: pytest.MonkeyPatch) -> None:
    """What a sweep queues again forgets which child, timer or items had woken it."""
    requeue: Callable[..., Any] = sweep.requeue

    def forgetting(tx: Any, run: Any, *given: Any, **options: Any) -> Any:
        new = requeue(tx, run, *given, **options)
        forgotten = new._replace(wait_kind=None, wait_key=None)
        tx.update_runs([(new, forgotten)])
        return forgotten

    patch.setattr(sweep, "requeue", forgetting)


MUTANTS = [
    (pause_behind_what_was_held, MEMORY_AND_POSTGRES),
    (failure_behind_what_was_held, MEMORY_AND_POSTGRES),
    (hold_without_its_cause, MEMORY_AND_POSTGRES),
    (hold_that_is_a_push, FUNCTIONS_AND_PYTHON),
    (history_out_of_order, FUNCTIONS_AND_PYTHON),
    (loss_that_forgets_what_woke, FUNCTIONS_AND_PYTHON),
]


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(
    ("mutate", "twins"), MUTANTS, indirect=["twins"], ids=[mutate.__name__ for mutate, _ in MUTANTS]
)
def test_a_drift_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], twins: TwinWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    runs = settings(RUNS, max_examples=1500, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)
    with pytest.raises(Disagreement):
        run_state_machine_as_test(twin_machine_over(twins), settings=runs)
