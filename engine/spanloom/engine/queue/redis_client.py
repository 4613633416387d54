"""Redis clients: made from a URL or a caller's client, checked, with Spanloom's own time limits."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from spanloom.engine.errors import ConfigurationError

__all__ = ["BLOCKING_SECONDS", "check_version", "redis_client", "redis_location"]

ANSWER_SECONDS = 1.5  #: for a connection, and for the response to each command
BLOCKING_SECONDS = 7.0  #: longer than any blocking read we make
OLDEST_VERSION = (6, 2)  #: of Redis; Valkey reports the version of the Redis that it is compatible with


def redis_client(given: Any, *, answer_seconds: float = ANSWER_SECONDS) -> Redis:
    """Return a new client for a URL, or for a caller's client: the same server, but its own pool and time limits.

    It does not connect yet. Closing it closes its connections; it opens others at its next use.

    A command waits up to `answer_seconds` for its response. It is sent again once if its connection broke, but never
    after a timeout, which the caller handles.

    Raises ConfigurationError for a malformed URL, for an object that is no client, and for a client that decodes
    responses (RQ keeps bytes in Redis).
    """
    if isinstance(given, str):
        try:
            pool = ConnectionPool.from_url(given)
            urlsplit(given).port  # noqa: B018  a malformed port is only noticed when it is read
        except ValueError as error:
            raise ConfigurationError(
                f"{given!r} is not a Redis URL ({error}); write redis://host:6379/0, rediss://… or unix:///path.sock"
            ) from error
    elif isinstance(given, Redis):
        pool = given.connection_pool
    else:
        raise ConfigurationError(f"redis= takes a URL or a redis.Redis client, not {type(given).__name__}")
    options = dict(pool.connection_kwargs)
    if options.get("decode_responses"):
        raise ConfigurationError(
            "the Redis client has decode_responses=True, but RQ keeps bytes in Redis; pass a client without it"
        )
    options.update(socket_timeout=answer_seconds, retry=Retry(NoBackoff(), 1, (RedisConnectionError,)))
    for adds_errors in ("retry_on_timeout", "retry_on_error"):
        options.pop(adds_errors, None)
    if "path" not in options:
        options.update(socket_connect_timeout=ANSWER_SECONDS)
    return Redis.from_pool(type(pool)(connection_class=pool.connection_class, **options))


def redis_location(client: Redis) -> str:
    """Return the address of a client's server, without a password."""
    options = client.connection_pool.connection_kwargs
    if path := options.get("path"):
        return f"unix://{path}"
    return f"redis://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db', 0)}"


def check_version(client: Redis, reported: object) -> None:
    """Raise ConfigurationError if a server reports a version that is too old; a server without one is accepted."""
    found = re.match(r"(\d+)\.(\d+)", str(reported))
    if found is not None and tuple(map(int, found.groups())) < OLDEST_VERSION:
        needed = ".".join(map(str, OLDEST_VERSION))
        raise ConfigurationError(
            f"Redis at {redis_location(client)} is version {reported}, but Spanloom needs Redis {needed} or later, or "
            f"Valkey; upgrade it, or set SPANLOOM_REDIS_URL to another one"
        )
