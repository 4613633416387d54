"""A result says one thing: completed with data and a route, failed, skipped, or to be tried again later."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from spanloom.engine.handlers.results import NodeResult
from spanloom.engine.store.requests import Outcome


def test_data_alone_completes_and_takes_every_edge() -> None:
    result = NodeResult(data={"a": 1})
    assert (result.outcome, result.data, result.next_nodes) == (Outcome.COMPLETED, {"a": 1}, None)


def test_a_route_names_its_nodes_and_an_empty_one_is_not_none() -> None:
    assert NodeResult(data=1, next_nodes=("b", "c")).next_nodes == ("b", "c")
    assert NodeResult(data=1, next_nodes=()).next_nodes == ()


def test_a_failure_has_a_type_and_a_message() -> None:
    failed = NodeResult.failed("no such card")
    assert (failed.outcome, failed.error_type, failed.error_message) == (Outcome.FAILED, "NodeFailure", "no such card")
    assert NodeResult.failed("no such card", type="CardUnknown").error_type == "CardUnknown"


def test_a_skip_is_a_skip() -> None:
    assert NodeResult.skipped().outcome is Outcome.SKIPPED


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90)], ids=repr)
def test_a_later_retry_has_a_delay_in_seconds(delay: Any) -> None:
    later = NodeResult.retry_after(delay)
    assert (later.outcome, later.delay_seconds) == (Outcome.RETRY, 90.0)


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), timedelta(seconds=-1)], ids=repr)
def test_a_delay_that_is_none_is_refused(delay: Any) -> None:
    with pytest.raises(ValidationError):
        NodeResult.retry_after(delay)


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": Outcome.FAILED, "error_message": "x", "next_nodes": ("b",)},
        {"outcome": Outcome.FAILED},
        {"outcome": Outcome.SKIPPED, "next_nodes": ()},
        {"outcome": Outcome.WAITING},
        {"outcome": Outcome.RELEASED},
        {"next": ("b",)},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NodeResult(**wrong)


def test_a_result_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        NodeResult(data=1).data = 2  # type: ignore[misc]
