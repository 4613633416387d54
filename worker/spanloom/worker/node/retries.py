"""A node's retry policy applied: whether an error is retried, and after how long."""

from __future__ import annotations

import random
from collections.abc import Collection

from spanloom.engine.errors import PermanentError
from spanloom.engine.handlers.builtin import LONGEST_SECONDS
from spanloom.engine.workflow.definitions import RetryPolicy
from spanloom.engine.workflow.exception_names import is_named
from spanloom.worker.error_text import exceptions_of, members_of

__all__ = ["is_retried", "retry_delay"]


def retry_delay(policy: RetryPolicy, attempt: int, fraction: float | None = None) -> float:
    """Return the seconds before the retry after `attempt` (from 1); `fraction` in [0, 1) replaces the random one."""
    growth = 2.0 ** min(attempt - 1, 64) if policy.backoff == "exponential" else 1.0
    delay = min(policy.delay * growth, policy.max_delay, LONGEST_SECONDS)
    shift = random.random() if fraction is None else fraction  # noqa: S311  no secret
    return delay * (1 + policy.jitter * (2 * shift - 1))


def is_retried(policy: RetryPolicy, error: BaseException) -> bool:
    """Return whether a policy retries an error.

    Of a group no exception may be permanent or named in `no_retry_on`, and each must be named in `retry_on`, or a group
    around it.
    """
    for member in members_of(error):
        if issubclass(type(member), PermanentError) or is_named(type(member), policy.no_retry_on):
            return False
    return not policy.retry_on or _is_covered(error, policy.retry_on)


def _is_covered(error: BaseException, names: Collection[str]) -> bool:
    """Return whether an exception is named or, of a group, all exceptions within."""
    pending = [error]
    while pending:
        found = pending.pop()
        if is_named(type(found), names):
            continue
        within = exceptions_of(found)
        if not within:
            return False
        pending.extend(within)
    return True
