"""Redis clients: from a URL or a client that the caller made, checked, with time limits that suit blocking reads."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from redis import ConnectionPool, Redis
from redis.exceptions import RedisError

from spanloom.engine.errors import ConfigurationError, QueueUnavailable

__all__ = ["redis_client", "redis_errors", "redis_location"]

SOCKET_SECONDS = 10.0  #: longer than any blocking read we make
CONNECT_SECONDS = 5.0


def redis_client(given: Any) -> Redis:
    """Return a client of our own for a URL or for a caller's client (same server, own pool and time limits).

    Raises ConfigurationError for a malformed URL, for anything else than a client, and for a client that decodes
    responses (RQ keeps bytes in Redis). Connects to nothing.
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
    options.update(socket_timeout=SOCKET_SECONDS)
    if "path" not in options:
        options.update(socket_connect_timeout=CONNECT_SECONDS)
    return Redis(connection_pool=type(pool)(connection_class=pool.connection_class, **options))


def redis_location(client: Redis) -> str:
    """Say where a client's server is, without a password."""
    options = client.connection_pool.connection_kwargs
    if path := options.get("path"):
        return f"unix://{path}"
    return f"redis://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db', 0)}"


@contextmanager
def redis_errors(client: Redis) -> Generator[None]:
    """Turn whatever redis-py raises inside the block into QueueUnavailable."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise QueueUnavailable(
            f"Redis at {redis_location(client)} did not answer ({type(error).__name__}: {error}); start it, or set "
            f"SPANLOOM_REDIS_URL"
        ) from error
