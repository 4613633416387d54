"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["ManualClock"]


class ManualClock:
    """Tell an aware time in UTC that changes only by `advance`; call it, or pass `now=clock()`."""

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError("a clock needs an aware datetime, such as datetime(2030, 1, 1, tzinfo=UTC)")
        self._now = start.astimezone(UTC)

    def __call__(self) -> datetime:
        """Return the time as it stands."""
        return self._now

    def advance(self, seconds: float) -> datetime:
        """Move the time on by `seconds` and return it."""
        self._now += timedelta(seconds=seconds)
        return self._now
