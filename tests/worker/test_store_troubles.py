"""What a worker's store does not serve is logged ever more rarely, and shown until it is served again."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from spanloom.engine.errors import StoreUnavailable, Unavailability
from spanloom.worker import store_troubles
from spanloom.worker.store_troubles import StoreTroubles

FULL = StoreUnavailable("the disk is full", reason=Unavailability.RESOURCES)


class Clock:
    """What the troubles take for the monotonic clock."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(store_troubles, "time", clock)
    return clock


def test_a_trouble_is_logged_with_growing_pauses(clock: Clock) -> None:
    troubles = StoreTroubles()
    with capture_logs() as lines:
        for _ in range(480):  # for a minute
            troubles.met("record", FULL, "record_waits_for_store", records=3)
            clock.now += 0.125
        troubles.over("record")
    waits = [line for line in lines if line["event"] == "record_waits_for_store"]
    assert [round(line["seconds"]) for line in waits] == [0, 1, 3, 7, 15, 31]
    assert {(line["reason"], line["error"], line["records"]) for line in waits} == {
        ("resources", "the disk is full", 3)
    }
    assert [(line["operation"], line["seconds"]) for line in lines if line["event"] == "store_serves_again"] == [
        ("record", 60.0)
    ]


def test_a_trouble_is_a_problem_until_it_is_over(clock: Clock) -> None:
    troubles = StoreTroubles()
    assert troubles.problems() == []
    troubles.met("record", FULL, "record_waits_for_store")
    clock.now += 4
    troubles.met("record", FULL, "record_waits_for_store")
    troubles.met("claim", FULL, "claim_put_off", subject=" of job 7")
    assert troubles.problems() == ["record, for 4 s: the disk is full", "claim of job 7, for 0 s: the disk is full"]
    troubles.over("record")
    assert troubles.problems() == ["claim of job 7, for 0 s: the disk is full"]


def test_a_trouble_that_is_not_met_again_is_forgotten(clock: Clock) -> None:
    troubles = StoreTroubles()
    for number in range(100):
        troubles.met("claim", FULL, "claim_put_off", subject=f" of job {number}")
    clock.now += 3600
    assert troubles.problems() == []
    troubles.met("sweep", FULL, "sweep_failed")
    assert len(troubles._open) == 1
