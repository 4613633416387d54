"""A clock that a test advances."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["ManualClock"]


class ManualClock:
    """A clock whose time, an aware datetime in UTC, changes only by `advance`.

    >>> clock = ManualClock()
    >>> clock().isoformat()
    '2030-01-01T00:00:00+00:00'
    >>> clock.advance(90).isoformat()
    '2030-01-01T00:01:30+00:00'
    """

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError("a clock needs an aware datetime, such as datetime(2030, 1, 1, tzinfo=UTC)")
        self._now = start.astimezone(UTC)

    def __call__(self) -> datetime:
        """Return the current time."""
        return self._now

    def advance(self, seconds: float) -> datetime:
        """Advance the time by `seconds` and return it."""
        self._now += timedelta(seconds=seconds)
        return self._now
