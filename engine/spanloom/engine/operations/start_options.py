"""The options of a start, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.limits import (
    MAX_IDEMPOTENCY_KEY,
    MAX_METADATA_KEY,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE,
    MAX_NAME,
    shortened,
)
from spanloom.engine.store.requests import Priority
from spanloom.engine.store.texts import fault_of

__all__ = ["Duration", "as_seconds", "start_options"]

Duration = float | timedelta  #: seconds, or a timedelta


def start_options(
    version: int | None = None,
    priority: str = "normal",
    delay: Duration | None = None,
    deadline: Duration | None = None,
    idempotency_key: str | None = None,
    key_ttl: Duration | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Check the options of a start and return them as StartRequest's fields. Raises ConfigurationError."""
    if priority not in list(Priority):
        given = shortened(str(priority), MAX_NAME)
        raise ConfigurationError(f"priority must be one of {', '.join(Priority)}, not {given!r}")
    if version is not None and (not isinstance(version, int) or isinstance(version, bool) or version < 1):
        raise ConfigurationError(f"version must be a whole number from 1, not {version!r}")
    if idempotency_key is not None and not (
        isinstance(idempotency_key, str) and 0 < len(idempotency_key) <= MAX_IDEMPOTENCY_KEY
    ):
        raise ConfigurationError(f"idempotency_key must be a text of 1 to {MAX_IDEMPOTENCY_KEY} characters")
    labels = dict(metadata or {})
    if len(labels) > MAX_METADATA_PAIRS:
        raise ConfigurationError(
            f"metadata has {len(labels):,} pairs, more than {MAX_METADATA_PAIRS}; it is there to find executions by, "
            "and data belongs into their input"
        )
    if not all(
        _is_label(key, MAX_METADATA_KEY) and _is_label(value, MAX_METADATA_VALUE) for key, value in labels.items()
    ):
        raise ConfigurationError(
            "metadata must be texts by text, such as {'customer': '17'}; "
            f"keys of at most {MAX_METADATA_KEY} characters, values of {MAX_METADATA_VALUE}"
        )
    _check_exact("idempotency_key", idempotency_key or "")
    for key, value in labels.items():
        _check_exact("metadata key", key)
        _check_exact(f"metadata value of {key!r}", value)
    return {
        "version": version,
        "priority": Priority(priority),
        "delay_seconds": _seconds("delay", delay) or 0.0,
        "deadline_seconds": _seconds("deadline", deadline),
        "idempotency_key": idempotency_key,
        "key_ttl_seconds": _seconds("key_ttl", key_ttl),
        "metadata": labels,
    }


def _is_label(value: Any, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest


def _check_exact(name: str, text: str) -> None:
    if (fault := fault_of(name, text)) is not None:
        raise ConfigurationError(fault)


def _seconds(name: str, value: Duration | None) -> float | None:
    return None if value is None else as_seconds(name, value)


def as_seconds(name: str, value: Duration) -> float:
    """Return a duration in seconds. Raises ConfigurationError with `name`."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e10:
        raise ConfigurationError(f"{name} must be seconds or a timedelta, not negative; got {value!r}")
    return float(seconds)
