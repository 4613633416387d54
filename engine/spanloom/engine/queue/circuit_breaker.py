"""The circuit breaker: once Redis did not answer, or refused a command, calls are refused until a check has succeeded.

Each call of a hanging Redis would wait for its time limit, and each push to one that is out of memory would be lost.
While Redis is away in either way, calls are refused at once. The first call after a pause runs a check, on a thread of
its own, of the commands that are needed; its success closes the breaker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from redis import Redis
from redis.exceptions import RedisError

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.logs import Logger
from spanloom.engine.queue.redis_client import redis_location, redis_secrets
from spanloom.engine.queue.redis_refusals import WrongKeyType, is_of_one_key, is_refusal, sentence

__all__ = ["CircuitBreaker"]

_log = Logger("spanloom.engine")
_PAUSES = (0.1, 0.5)  #: first and longest between two checks
_ANSWER_SECONDS = (
    0.05  #: how long the call that begins a check waits for it, so that it is not refused if Redis is back
)
_SETTLED_SECONDS = 5.0  #: after which a breaker that opens again begins with the first pause again


class CircuitBreaker:
    """The guard of all calls of one Redis. Thread-safe; costs next to nothing while Redis answers."""

    def __init__(self, client: Redis, check: Callable[[], object]) -> None:
        """`check` raises an error of redis-py while Redis does not answer, or refuses a needed command."""
        self._client = client
        self._check = check
        self._lock = threading.Lock()
        self._why: str | None = None
        self._answers = False  # with errors
        self._since = 0.0
        self._closed_at = float("-inf")
        self._checking: threading.Thread | None = None
        self._check_at = 0.0
        self._pause = _PAUSES[0]

    @property
    def is_open(self) -> bool:
        """Whether Redis counts as unavailable."""
        return self._why is not None

    @property
    def is_refusing(self) -> bool:
        """Whether Redis counts as unavailable although it answers, with errors."""
        return self._why is not None and self._answers

    @contextmanager
    def guard(self, *, anyway: bool = False, needed: bool = True) -> Generator[None]:
        """Turn errors of redis-py inside the block into QueueUnavailable.

        While Redis is away the block is not entered, and the error is `known`. With `anyway` it is entered all the
        same: for a block that waits for messages on an existing connection. An error of one key, which has the wrong
        type, raises WrongKeyType, and does not count as an outage. Neither does a refusal if the block is not `needed`.
        """
        if self._why is not None and not anyway:
            self._refuse_if_away()
        try:
            yield
        except (RedisError, OSError) as error:
            raise self._unavailable(error, needed) from error

    def check(self) -> None:
        """Run the check now, and close the breaker. Raises QueueUnavailable."""
        with self.guard(anyway=True):
            self._check()
        self._close()

    def _unavailable(self, error: Exception, needed: bool) -> QueueUnavailable:
        why = sentence(redis_location(self._client), error, redis_secrets(self._client))
        if is_of_one_key(error):
            return WrongKeyType(why)
        if not needed and is_refusal(error):
            return QueueUnavailable(why)
        with self._lock:
            known = self._why is not None
            if not known:
                self._since = time.monotonic()
                if self._since - self._closed_at > _SETTLED_SECONDS:
                    self._pause = _PAUSES[0]
                self._check_at = self._since + self._pause
            self._why = why
            self._answers = is_refusal(error)
        return QueueUnavailable(why, known=known)

    def _refuse_if_away(self) -> None:
        begun = None
        with self._lock:
            waits = self._checking is not None and self._checking.is_alive()  # not alive in a forked child
            if self._why is not None and not waits and time.monotonic() >= self._check_at:
                begun = self._checking = threading.Thread(target=self._run_check, name="spanloom-ping", daemon=True)
                begun.start()
        if begun is not None:
            begun.join(_ANSWER_SECONDS)
        why = self._why
        if why is not None:
            raise QueueUnavailable(why, known=True)

    def _run_check(self) -> None:
        try:
            self._check()
        except (RedisError, OSError) as error:
            with self._lock:
                self._why = sentence(redis_location(self._client), error, redis_secrets(self._client))
                self._answers = is_refusal(error)
                self._check_at = time.monotonic() + self._pause
                self._pause = min(self._pause * 2, _PAUSES[1])
            return
        self._close()

    def _close(self) -> None:
        with self._lock:
            if self._why is None:
                return
            self._why = None
            self._closed_at = time.monotonic()
            away_seconds = self._closed_at - self._since
            self._pause = min(self._pause * 2, _PAUSES[1])  # if it opens again at once, the check does not show why
        _log.info("queue_is_back", away_seconds=round(away_seconds, 1))
