"""What a handler's return or raise means: the closed set of outcomes, decided by its node's retry policy."""

from __future__ import annotations

import json
import random
import traceback
from dataclasses import dataclass
from typing import Any

from spanloom.engine.definitions import Node, RetryPolicy
from spanloom.engine.errors import LeaseLost, PayloadRejected, PermanentError
from spanloom.engine.graph import Plan
from spanloom.engine.payload import encode
from spanloom.engine.records import Outcome
from spanloom.engine.results import NodeResult

__all__ = ["Ending", "message_of", "of_error", "of_load_error", "of_refusal", "of_result", "retry_delay"]

_MAX_MESSAGE = 4_000
_MAX_TRACEBACK = 16_000
_LOAD_AGAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, in the words of the store port."""

    outcome: Outcome
    data: str | None = None
    error: str | None = None
    taken: tuple[str, ...] | None = None
    delay_seconds: float = 0.0
    spends_attempt: bool = True


def of_result(result: Any, node: Node, plan: Plan, execution_id: str, limit: int) -> Ending:
    """Classify what a handler returned. Data that JSON can't carry, or an unknown id to route to, is a failure."""
    data = result.data if isinstance(result, NodeResult) else result
    try:
        text = encode(data, f"the result of node {node.id!r} ({node.type}) of execution {execution_id}", limit)
    except PayloadRejected as error:
        return Ending(Outcome.FAILED, error=_describe(error, permanent=True))
    if not isinstance(result, NodeResult):
        return Ending(Outcome.COMPLETED, data=text)
    if result.outcome is Outcome.FAILED:
        failure = {"type": result.error_type, "message": result.error_message, "permanent": True}
        return Ending(Outcome.FAILED, error=json.dumps(failure))
    if result.outcome is Outcome.RETRY:
        return Ending(Outcome.RETRY, delay_seconds=result.delay_seconds, spends_attempt=False)
    if result.outcome is Outcome.SKIPPED:
        return Ending(Outcome.SKIPPED, data=text)
    if result.next_nodes is not None and (unknown := set(result.next_nodes) - set(plan.successors[node.id])):
        wrong = PermanentError(
            f"node {node.id!r} routed to {', '.join(map(repr, sorted(unknown)))}, which it does not lead to "
            f"(its successors: {', '.join(plan.successors[node.id]) or 'none'})"
        )
        return Ending(Outcome.FAILED, error=_describe(wrong, permanent=True))
    return Ending(Outcome.COMPLETED, data=text, taken=result.next_nodes)


def of_error(error: BaseException, node: Node, attempt: int) -> Ending:
    """Classify what a handler raised: retried while its policy says so and attempts are left, else failed for good."""
    if isinstance(error, LeaseLost):
        return Ending(Outcome.RELEASED)
    permanent = isinstance(error, PermanentError) or not _retries(node.retry, error)
    described = _describe(error, permanent=permanent)
    if permanent or attempt >= node.retry.max_attempts:
        return Ending(Outcome.FAILED, error=described)
    return Ending(Outcome.RETRY, error=described, delay_seconds=retry_delay(node.retry, attempt))


def of_load_error(error: BaseException) -> Ending:
    """Give the run back, for a while: this worker can't load its definition, a newer one may. Costs no attempt."""
    described = _describe(error, permanent=False)
    return Ending(Outcome.RETRY, error=described, delay_seconds=_LOAD_AGAIN_SECONDS, spends_attempt=False)


def of_refusal(error: BaseException) -> Ending:
    """Fail a node whose outcome the store refused to keep: it would refuse it again."""
    return Ending(Outcome.FAILED, error=_describe(error, permanent=True))


def retry_delay(policy: RetryPolicy, attempt: int, fraction: float | None = None) -> float:
    """Return the seconds before the retry after `attempt` (from 1); `fraction` in [0, 1) replaces the random one."""
    growth = 2.0 ** min(attempt - 1, 64) if policy.backoff == "exponential" else 1.0
    delay = min(policy.delay * growth, policy.max_delay)
    shift = random.random() if fraction is None else fraction  # noqa: S311  no secret
    return delay * (1 + policy.jitter * (2 * shift - 1))


def _retries(policy: RetryPolicy, error: BaseException) -> bool:
    names = {name for kind in type(error).__mro__ for name in (kind.__qualname__, _full_name(kind))}
    return not names.intersection(policy.no_retry_on) and (
        not policy.retry_on or bool(names.intersection(policy.retry_on))
    )


def message_of(error: BaseException) -> str:
    """Return what an exception says; one whose own `__str__` fails must not take its node with it."""
    try:
        return str(error)
    except Exception as failed:
        return f"(its message can't be read: {type(failed).__name__})"


def _describe(error: BaseException, *, permanent: bool) -> str:
    lines = "".join(traceback.format_exception(error, limit=-50))
    return json.dumps(
        {
            "type": _full_name(type(error)),
            "message": message_of(error)[:_MAX_MESSAGE],
            "traceback": lines[-_MAX_TRACEBACK:],
            "permanent": permanent,
        }
    )


def _full_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
