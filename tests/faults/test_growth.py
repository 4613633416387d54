"""`make soak` names what grows, and only that."""

from __future__ import annotations

import pytest

from chaos.growth import MEASURES, as_text, grown

FLAT = {measure.name: 100_000.0 for measure in MEASURES}


@pytest.mark.parametrize("name", [measure.name for measure in MEASURES])
def test_what_grows_is_named(name: str) -> None:
    samples = [{**FLAT, name: FLAT[name] * (1 + number / 60)} for number in range(60)]

    assert grown(samples) == [name]
    (line,) = [line for line in as_text(samples).splitlines() if line.endswith("GROWS")]
    assert line.startswith(name)


def test_a_peak_and_the_first_part_of_a_run_are_no_growth() -> None:
    samples = [FLAT] * 60
    samples[50] = {name: 10 * value for name, value in FLAT.items()}
    samples[:20] = [{name: value / 10 for name, value in FLAT.items()}] * 20

    assert grown(samples) == []
