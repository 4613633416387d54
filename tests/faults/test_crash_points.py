"""Behaviours 26 and 27: a process crashes before or after any step that it makes, and nothing is lost.

The steps are not listed here: a play without a crash notes each that it passes, and each of those is armed in turn.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from faults.crash_plays import Plays
from faults.crash_system import Arm, Played
from faults.port_steps import NOT_PASSED, PASSED, methods
from spanloom.engine.store.port import ExecutionStore, SpanExports

WHEN_LONG = {"add_logs"}  #: called only while a node runs for long
WHEN_SEEN = methods(SpanExports)  #: called only if an SDK has cause
#: The boundaries between which something is durable, with the roles that come to them in every play.
BOUNDARIES = {
    "store.create_executions": ("engine",),
    "store.claim": ("worker",),
    "caller.call": ("worker",),
    "store.record": ("worker",),
    "store.wake_parents": ("worker",),
    "store.sweep": ("sweep",),
    "queue.push": ("engine", "worker", "sweep"),
}
#: What a play comes to only if it is made to: Redis is found empty, a job comes as its worker is told to stop.
MET_ON_PURPOSE = {"sweep.store.raise_epoch": "emptied", "worker.inbox.requeue": "stop"}
#: Steps at which two processes crash, one after the other.
TWICE = ("worker.inbox.fetch", "worker.store.claim", "worker.caller.call", "worker.store.record", "sweep.store.sweep")
#: These may be met elsewhere too, by chance.
BY_CHANCE = {step.rpartition(".")[2] for step in MET_ON_PURPOSE}
SIDES = ("before", "after")


def telling(kind: str, passed: dict[str, int]) -> list[Arm]:
    """Return a crash at one side of each second boundary, in the midst of a play; the other store has the others.

    What comes after one boundary is what comes before the next one: all of them are for torture.
    """
    steps = [f"{role}.{step}" for step, roles in BOUNDARIES.items() for role in roles]
    turn = kind == "postgres"
    arms = []
    for number, step in enumerate(steps[turn::2]):
        point = f"{step}.{SIDES[(number + turn) % 2]}"
        arms.append(Arm(point, passing=1 if _is_swept(point) else min(3, passed[point])))
    return arms + on_purpose()[turn::2]


def _is_swept(point: str) -> bool:
    """Whether it depends on how long a play takes how often it comes to this point."""
    return point.startswith("sweep.")


def on_purpose() -> list[Arm]:
    """Return a crash at each side of what a play comes to only if it is made to."""
    return [Arm(f"{step}.{side}", meets=meets) for step, meets in MET_ON_PURPOSE.items() for side in SIDES]


@pytest.fixture(scope="module")
def healthy(plays: Plays) -> Played:
    """A play without a crash."""
    (played,) = plays.play([Arm()])
    return played


def test_the_points_of_a_play_cover_the_port_and_the_queue(healthy: Played) -> None:
    assert _told([healthy]) == []
    steps = {point.rpartition(".")[0] for point in healthy.passed}
    for role, names in PASSED.items():
        assert {f"{role}.store.{name}" for name in names} <= steps
    assert {"engine.queue.push", "worker.queue.push", "sweep.queue.push", "sweep.queue.heads"} <= steps
    assert {"worker.inbox.fetch", "worker.caller.load", "worker.caller.call"} <= steps
    called = {name for _, part, name in (step.split(".") for step in steps) if part == "store"}
    left_out = set().union(WHEN_LONG, WHEN_SEEN, *NOT_PASSED.values())
    assert called - left_out == methods(ExecutionStore) - left_out


@pytest.mark.timeout(300)  # it keeps a machine busy that may have more to do
def test_a_crash_at_a_boundary_loses_nothing(plays: Plays, healthy: Played) -> None:
    assert _told(plays.play(telling(plays.kind, healthy.passed))) == []


@pytest.mark.torture
def test_a_crash_at_any_point_loses_nothing(plays: Plays) -> None:
    noted = [played.passed for played in plays.play([Arm()] * 4)]
    points = sorted(set().union(*noted))
    assert len(points) > 90
    arms = [Arm(point) for point in points]
    arms += [
        Arm(point, passing) for point in points for passing in range(2, min(one.get(point, 0) for one in noted) + 1)
    ]
    arms += [Arm(f"{step}.{side}", times=2) for step in TWICE for side in SIDES]
    arms += on_purpose()

    played = plays.play(arms)

    missed = [one for one in played if not one.crashed and not one.arm.meets and _is_met_by_chance(one.arm)]
    wrong = [*_told(one for one in played if one not in missed), *(said for one in missed for said in one.wrong)]
    print(
        f"{len(points)} points, {len(arms)} crashes, {len(wrong)} wrong, never met: {[str(one.arm) for one in missed]}"
    )
    assert wrong == []


def _is_met_by_chance(arm: Arm) -> bool:
    return arm.point.split(".")[2] in BY_CHANCE or (_is_swept(arm.point) and arm.passing > 1)


@pytest.mark.torture  # it tests the tests
@pytest.mark.parametrize("plays", ["sqlite"], indirect=True)
def test_a_play_notices_what_a_crash_brings_to_light(plays: Plays) -> None:
    no_recovery = Arm("worker.queue.push.before", broken="sweep", seconds=4.0)  # a sweep that finds no lost job
    no_keys = Arm("engine.queue.push.after", passing=5, broken="start")  # a start that knows no idempotency key

    *healthy, lost, doubled = plays.play([Arm(broken="sweep"), Arm(broken="start"), no_recovery, no_keys])

    assert _told(healthy) == []
    assert lost.crashed
    assert "not in time" in _told([lost])[0]
    assert doubled.crashed
    assert "started twice" in _told([doubled])[0]


@pytest.mark.parametrize("plays", ["sqlite"], indirect=True)
def test_a_play_notices_a_key_that_differs_between_calls(plays: Plays) -> None:
    (played,) = plays.play([Arm(broken="key")])

    assert "effects that had a key happened again" in _told([played])[0]


def _told(plays: Iterable[Played]) -> list[str]:
    """Say what is wrong with each play, among that a crash that did not happen."""
    return [f"{played.arm}: {'; '.join(wrong)}" for played in plays if (wrong := _wrong(played))]


def _wrong(played: Played) -> list[str]:
    wanted = [played.arm.point] * played.arm.times if played.arm.point else []
    wrong = list(played.wrong)
    if played.crashed != wanted or len(played.died) != len(wanted):
        wrong.append(f"it crashed at {played.crashed}, and {played.died} died, in place of {wanted}")
    return wrong
