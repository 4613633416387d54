"""The circuit breaker: once Redis did not answer, calls are refused until one ping has succeeded.

Each call of a hanging Redis would wait for its time limit. While Redis is away, calls are refused at once. The first
call after a pause sends a ping, on a thread of its own; a response to the ping closes the breaker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.logs import Logger
from spanloom.engine.queue.redis_client import redis_location

__all__ = ["CircuitBreaker"]

_log = Logger("spanloom.engine")
_PAUSES = (0.1, 0.5)  #: first and longest between two pings
_ANSWER_SECONDS = 0.05  #: how long the call that sends a ping waits for it, so that it is not refused if Redis is back


class CircuitBreaker:
    """The guard of all calls of one Redis. Thread-safe; costs next to nothing while Redis answers."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._why: str | None = None
        self._since = 0.0
        self._ping: threading.Thread | None = None
        self._ping_at = 0.0
        self._pause = _PAUSES[0]

    @property
    def is_open(self) -> bool:
        """Whether Redis counts as unavailable."""
        return self._why is not None

    @contextmanager
    def guard(self, *, anyway: bool = False) -> Generator[None]:
        """Turn errors of redis-py inside the block into QueueUnavailable.

        While Redis is away the block is not entered, and the error is `known`. With `anyway` it is entered all the
        same: for a block that waits for messages on an existing connection.
        """
        if self._why is not None and not anyway:
            self._refuse_if_away()
        try:
            yield
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> QueueUnavailable:
        why = (
            f"Redis at {redis_location(self._client)} did not answer ({type(error).__name__}: {error}); start it, or "
            f"set SPANLOOM_REDIS_URL"
        )
        if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):  # others are responses
            with self._lock:
                if self._why is None:
                    self._since = time.monotonic()
                    self._pause = _PAUSES[0]
                    self._ping_at = self._since + self._pause
                self._why = why
        return QueueUnavailable(why)

    def _refuse_if_away(self) -> None:
        sent = None
        with self._lock:
            waits = self._ping is not None and self._ping.is_alive()  # not alive in a forked child
            if self._why is not None and not waits and time.monotonic() >= self._ping_at:
                sent = self._ping = threading.Thread(target=self._send_ping, name="spanloom-ping", daemon=True)
                sent.start()
        if sent is not None:
            sent.join(_ANSWER_SECONDS)
        why = self._why
        if why is not None:
            raise QueueUnavailable(why, known=True)

    def _send_ping(self) -> None:
        try:
            self._client.ping()
        except (RedisError, OSError):
            with self._lock:
                self._ping_at = time.monotonic() + self._pause
                self._pause = min(self._pause * 2, _PAUSES[1])
            return
        with self._lock:
            self._why = None
            away_seconds = time.monotonic() - self._since
        _log.info("queue_is_back", away_seconds=round(away_seconds, 1))
