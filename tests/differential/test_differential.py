"""Workflows drawn at random, run by real workers over each store, come to what a plain interpreter says they must."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from differential.processes import hurried
from differential.runner import Runner
from differential.workflows import cases

KINDS = ["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.services)]
# The workers' sweepers vary their pauses, in threads of their own, while a case is drawn.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
DRAWN = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    print_blob=True,
)


@pytest.mark.one_store
@pytest.mark.timeout(600)  # of which all but a minute is for making a difference small
@pytest.mark.parametrize("kind", KINDS)
def test_workers_and_reference_agree(running: Runner) -> None:
    @settings(DRAWN, max_examples=40, derandomize=True)
    @given(cases())
    def agrees(case: dict[str, Any]) -> None:
        running.check(case)

    agrees()


@pytest.mark.one_store
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("most", [6, pytest.param(300, marks=[pytest.mark.torture, pytest.mark.timeout(3_600)])])
def test_worker_processes_and_reference_agree(running_processes: Runner, most: int) -> None:
    # A difference is not made small: the workers in threads do that, and what these find needs processes.
    @settings(DRAWN, max_examples=most, derandomize=True, phases=[Phase.generate])
    @given(cases())
    def agrees(case: dict[str, Any]) -> None:
        running_processes.check(hurried(case))

    agrees()


@pytest.mark.torture
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("kind", KINDS)
def test_workers_and_reference_agree_for_long(running: Runner) -> None:
    @settings(DRAWN, max_examples=5_000)
    @given(cases())
    def agrees(case: dict[str, Any]) -> None:
        running.check(case)

    agrees()
