"""A node's retry policy applied: whether an error is retried, and after how long."""

from __future__ import annotations

import random

from spanloom.engine.handlers.builtin import LONGEST_SECONDS
from spanloom.engine.workflow.definitions import RetryPolicy
from spanloom.worker.error_text import full_name

__all__ = ["is_retried", "retry_delay"]


def retry_delay(policy: RetryPolicy, attempt: int, fraction: float | None = None) -> float:
    """Return the seconds before the retry after `attempt` (from 1); `fraction` in [0, 1) replaces the random one."""
    growth = 2.0 ** min(attempt - 1, 64) if policy.backoff == "exponential" else 1.0
    delay = min(policy.delay * growth, policy.max_delay, LONGEST_SECONDS)
    shift = random.random() if fraction is None else fraction  # noqa: S311  no secret
    return delay * (1 + policy.jitter * (2 * shift - 1))


def is_retried(policy: RetryPolicy, error: BaseException) -> bool:
    """Return whether a policy retries an error, by the names of its type and of the bases of that."""
    names = {name for kind in type(error).__mro__ for name in (kind.__qualname__, full_name(kind))}
    return not names.intersection(policy.no_retry_on) and (
        not policy.retry_on or bool(names.intersection(policy.retry_on))
    )
