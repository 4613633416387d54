"""The twins find where one store drifts: differences that were there, put back into SQLite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from model.test_model import RUNS
from model.test_twins import twin_machine_over
from model.twins import Disagreement, TwinWorld
from spanloom.stores.sqlite import control as sqlite_control
from spanloom.stores.sqlite.transaction import Transaction

pytestmark = [pytest.mark.services, pytest.mark.torture]  # found after dozens of plays, of a second at most


def record_behind_what_was_held(patch: pytest.MonkeyPatch) -> None:
    """What a pause holds still names the record that made it ready."""
    patch.setattr(sqlite_control, "_HOLD_QUEUED", sqlite_control._HOLD_QUEUED.replace("claim_reference = NULL, ", ""))


def hold_without_its_cause(patch: pytest.MonkeyPatch) -> None:
    """The event of a hold has no data."""
    hold: Callable[..., None] = Transaction.hold
    patch.setattr(Transaction, "hold", lambda *args, because=None, **options: hold(*args, **options))


def hold_that_is_a_push(patch: pytest.MonkeyPatch) -> None:
    """A hold raises the push number."""
    hold: Callable[..., None] = Transaction.hold

    def pushing(self: Transaction, run: Any, **options: Any) -> None:
        hold(self, run, **options)
        key = (run.execution_id, run.node_id, run.item)
        self.execute("UPDATE node_runs SET push = push + 1 WHERE execution_id = ? AND node_id = ? AND item = ?", key)

    patch.setattr(Transaction, "hold", pushing)


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(
    "mutate",
    [record_behind_what_was_held, hold_without_its_cause, hold_that_is_a_push],
    ids=lambda mutate: mutate.__name__,
)
def test_a_drift_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    mutate(monkeypatch)
    twins = TwinWorld("memory://", postgres_url)
    runs = settings(RUNS, max_examples=300, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)
    try:
        with pytest.raises(Disagreement):
            run_state_machine_as_test(twin_machine_over(twins), settings=runs)
    finally:
        twins.close()
