"""The table of metrics: named as OpenTelemetry asks for, and bounded in what it tells apart."""

from __future__ import annotations

import re

import pytest

from spanloom.engine.telemetry.metrics import METRICS, Kind, Metric

UNBOUNDED = {"spanloom.execution.id", "spanloom.node.id", "messaging.message.id", "spanloom.worker"}
NAMES = {metric.name for metric in METRICS}


def test_names_are_unique() -> None:
    assert len(NAMES) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_and_measured_as_opentelemetry_asks_for(metric: Metric) -> None:
    assert re.fullmatch(r"spanloom(\.[a-z]+(_[a-z]+)*)+", metric.name)
    assert not metric.name.endswith((".total", ".count", ".seconds"))  # Prometheus adds these
    assert not any(other.startswith(f"{metric.name}.") for other in NAMES)  # a name is no namespace as well
    assert metric.unit == "s" or re.fullmatch(r"\{[a-z]+\}", metric.unit)
    assert metric.description.endswith(".")
    assert not UNBOUNDED & set(metric.attributes)
    assert (metric.bounds is not None) == (metric.kind is Kind.HISTOGRAM)
    if metric.bounds is not None:
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert metric.unit == "s"
