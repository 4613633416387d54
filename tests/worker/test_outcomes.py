"""What a handler's return or raise means, by its node's policy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spanloom.engine import Node, NodeResult, PermanentError, RetryPolicy, Workflow
from spanloom.engine.errors import LeaseLost
from spanloom.engine.handlers.builtin import LONGEST_SECONDS
from spanloom.engine.store.requests import Outcome
from spanloom.engine.workflow.compiled import plan
from spanloom.worker.node.outcomes import left, of_error, of_load_error, of_result
from spanloom.worker.node.retries import retry_delay

PLAN = plan(Workflow(id="w", nodes=(Node(id="a", type="t"), Node(id="b", type="t", inputs=["a"]))))
NODE = PLAN.nodes["a"]


def result(value: Any) -> Any:
    return left(of_result(value, NODE, "e", 1_000), PLAN, NODE, 0)


def test_plain_data_completes() -> None:
    assert (result({"x": 0}).outcome, result({"x": 0}).data) == (Outcome.COMPLETED, '{"x":0}')
    assert result(None).data == "null"


def test_data_over_the_limit_fails_for_good_with_both_sizes() -> None:
    ending = result("x" * 2_000)

    assert ending.outcome is Outcome.FAILED
    assert "2,002" in json.loads(ending.error)["message"]
    assert "1,000" in json.loads(ending.error)["message"]


def test_a_node_result_routes_skips_fails_or_asks_for_later() -> None:
    assert result(NodeResult(data=1, next_nodes=("b",))).taken == ("b",)
    assert result(NodeResult(data=1, next_nodes=())).taken == ()
    assert result(NodeResult(data=1)).taken is None
    assert result(NodeResult.skipped()).outcome is Outcome.SKIPPED
    failed = result(NodeResult.failed("no stock", type="OutOfStock"))
    assert failed.outcome is Outcome.FAILED
    assert json.loads(failed.error) == {"type": "OutOfStock", "message": "no stock", "permanent": True}
    later = result(NodeResult.retry_after(7))
    assert (later.outcome, later.delay_seconds, later.spends_attempt) == (Outcome.RETRY, 7, False)


def test_routing_to_an_unknown_node_fails_for_good_and_names_the_successors() -> None:
    ending = result(NodeResult(next_nodes=("c",)))

    assert ending.outcome is Outcome.FAILED
    assert "'c'" in json.loads(ending.error)["message"]
    assert "b" in json.loads(ending.error)["message"]


@pytest.mark.parametrize(
    ("error", "attempt", "outcome"),
    [
        (ValueError("x"), 1, Outcome.RETRY),
        (ValueError("x"), 3, Outcome.FAILED),
        (PermanentError("x"), 1, Outcome.FAILED),
        (KeyError("x"), 1, Outcome.FAILED),  # not in retry_on
        (UnicodeError("x"), 1, Outcome.RETRY),  # a ValueError
        (UnicodeEncodeError("ascii", "x", 0, 1, "r"), 1, Outcome.FAILED),  # no_retry_on wins
        (SystemExit(1), 1, Outcome.FAILED),
        (LeaseLost("e", "a", 1), 1, Outcome.FAILED),  # of a claim that is not lost: as any other error
    ],
)
def test_an_exception_is_retried_while_its_class_and_the_attempts_allow(
    error: BaseException, attempt: int, outcome: Outcome
) -> None:
    policy = RetryPolicy(max_attempts=3, retry_on=("ValueError",), no_retry_on=("UnicodeEncodeError",))
    node = Node(id="a", type="t", retry=policy)

    assert of_error(error, node, attempt).outcome is outcome


def test_an_error_tells_its_type_message_and_traceback() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        told = json.loads(of_error(error, NODE, 1).error or "")

    assert told["type"] == "json.decoder.JSONDecodeError"
    assert "Expecting property name" in told["message"]
    assert "test_outcomes.py" in told["traceback"]


def test_backoff_is_fixed_or_exponential_capped_and_shifted_by_jitter() -> None:
    fixed = RetryPolicy(backoff="fixed", delay=2, jitter=0)
    growing = RetryPolicy(backoff="exponential", delay=2, max_delay=10, jitter=0)
    shaken = RetryPolicy(backoff="fixed", delay=10, jitter=0.5)

    assert [retry_delay(fixed, attempt) for attempt in (1, 2, 9)] == [2, 2, 2]
    assert [retry_delay(growing, attempt) for attempt in (1, 2, 3, 4, 999)] == [2, 4, 8, 10, 10]
    assert [retry_delay(shaken, 1, fraction) for fraction in (0.0, 0.5, 0.75)] == [5, 10, 12.5]
    assert all(5 <= retry_delay(shaken, 1) <= 15 for _ in range(100))


def test_a_definition_that_can_not_be_loaded_is_given_back_for_a_while_and_costs_no_attempt() -> None:
    ending = of_load_error(ValueError("format 99"))

    assert (ending.outcome, ending.spends_attempt) == (Outcome.RETRY, False)
    assert ending.delay_seconds >= 1


def test_no_wait_is_longer_than_a_store_can_keep() -> None:
    policy = RetryPolicy(max_attempts=2, delay=1e300, max_delay=1e300, jitter=0)

    assert retry_delay(policy, 1) == LONGEST_SECONDS
    assert result(NodeResult.retry_after(3e11)).delay_seconds == LONGEST_SECONDS


def test_a_failure_that_a_handler_returns_is_told_in_part_if_it_is_long() -> None:
    ending = result(NodeResult.failed("x" * 1_000_000))

    assert ending.outcome is Outcome.FAILED
    assert len(ending.error) < 5_000
