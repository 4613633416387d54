"""The options of a start, checked before anything is written."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from spanloom.engine.argument_checks import Rule
from spanloom.engine.arguments import Duration, Key, Labels, Version, seconds_of
from spanloom.engine.errors import ConfigurationError
from spanloom.engine.limits import MAX_METADATA_PAIRS
from spanloom.engine.store.requests import Priority

__all__ = ["BatchOptions", "PriorityName", "ReplayOptions", "StartOptions", "start_fields"]

_NAMES = frozenset(map(str, Priority))

PriorityName = Annotated[
    str, Rule(lambda value: isinstance(value, str) and value in _NAMES, f"one of {', '.join(Priority)}")
]


class BatchOptions(TypedDict, total=False):
    """The options of many starts at once."""

    version: Version | None
    priority: PriorityName
    delay: Duration | None
    deadline: Duration | None
    metadata: Labels | None


class StartOptions(BatchOptions, total=False):
    """The options of a start, as WorkflowEngine.enqueue_workflow documents them."""

    idempotency_key: Key | None
    key_ttl: Duration | None
    connection: Any


class ReplayOptions(TypedDict, total=False):
    """The options of a replay."""

    priority: PriorityName
    deadline: Duration | None
    idempotency_key: Key | None
    key_ttl: Duration | None
    metadata: Labels | None


def start_fields(
    version: Version | None = None,
    priority: PriorityName = "normal",
    delay: Duration | None = None,
    deadline: Duration | None = None,
    idempotency_key: Key | None = None,
    key_ttl: Duration | None = None,
    metadata: Labels | None = None,
) -> dict[str, Any]:
    """Return options that were checked as StartRequest's fields."""
    labels = dict(metadata or {})
    if len(labels) > MAX_METADATA_PAIRS:
        raise ConfigurationError(
            f"metadata has {len(labels):,} pairs, more than {MAX_METADATA_PAIRS}; it is there to find executions by, "
            "and data belongs into their input"
        )
    return {
        "version": version,
        "priority": Priority(priority),
        "delay_seconds": seconds_of(delay) or 0.0,
        "deadline_seconds": seconds_of(deadline),
        "idempotency_key": idempotency_key,
        "key_ttl_seconds": seconds_of(key_ttl),
        "metadata": labels,
    }
