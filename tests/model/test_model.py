"""An engine that is given commands at random keeps to a small model of the store port, step by step, on every store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from model.machine import machine_over
from model.waits import WAITS
from model.world import World
from spanloom.engine.store.states import WaitKind

KINDS = ["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.services)]
_QUICKER = {"sqlite": "?synchronous=normal"}  # no power cut is played here
RUNS = settings(
    deadline=None,
    database=None,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    print_blob=True,
)


@pytest.fixture
def world(kind: str, request: pytest.FixtureRequest) -> Iterator[World]:
    """An empty store of this kind, for one run of the machine after the other."""
    made = World("memory://" if kind == "memory" else request.getfixturevalue(f"{kind}_url") + _QUICKER.get(kind, ""))
    yield made
    made.close()


def test_every_kind_of_wait_is_played() -> None:
    assert list(WAITS) == [kind for kind in WaitKind if kind is not WaitKind.RETRY]  # which is an outcome of its own


@pytest.mark.timeout(600)  # of which most is for making a difference small
@pytest.mark.parametrize("kind", KINDS)
def test_a_store_and_the_model_agree(world: World) -> None:
    run_state_machine_as_test(machine_over(world), settings=settings(RUNS, max_examples=25))


@pytest.mark.torture
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("kind", KINDS)
def test_a_store_and_the_model_agree_for_long(world: World) -> None:
    run_state_machine_as_test(machine_over(world), settings=settings(RUNS, max_examples=5_000))
