"""Redis clients: made from a URL or a caller's client, checked, with Spanloom's own time limits."""

from __future__ import annotations

import re
from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.queue.redis_refusals import bounded_text
from spanloom.engine.queue.redis_url import parse_redis_url

__all__ = ["BLOCKING_SECONDS", "check_version", "redis_client", "redis_location", "redis_secrets"]

ANSWER_SECONDS = 1.5  #: for a connection, and for the response to each command
BLOCKING_SECONDS = 7.0  #: longer than any blocking read we make
OLDEST_VERSION = (6, 2)  #: of Redis; Valkey reports the version of the Redis that it is compatible with
_MOST_CONNECTIONS = 2**31  # as many as there are threads; redis-py 8 raises an error at the 101st
#: What a pool adds to the arguments of its connections, for itself.
_OF_THE_POOL = re.compile(r"maint|orig_|oss_|himport|event_dispatcher|connection_pool|cache|retry_on_|legacy_responses")


def redis_client(given: Any, *, answer_seconds: float = ANSWER_SECONDS) -> Redis:
    """Return a new client for a URL, or for a caller's client: the same server, but its own pool and time limits.

    It does not connect yet. Closing it closes its connections; it opens others at its next use. A client that
    `redis.sentinel.Sentinel.master_for` returned goes on with the primary that Sentinel names.

    A command waits up to `answer_seconds` for its response. It is sent again once if its connection broke, but never
    after a timeout, which the caller handles. Answers have the form of RESP 2, whatever the caller's client uses.

    Raises ConfigurationError for a malformed URL or an unknown option of it, for an object that is no client of one
    server, and for a client that decodes responses (RQ keeps bytes in Redis).
    """
    if isinstance(given, str):
        connection_class, found = parse_redis_url(given)
        pool = None
    elif isinstance(given, Redis):
        pool = given.connection_pool
        connection_class = pool.connection_class
        found = {name: value for name, value in pool.connection_kwargs.items() if not _OF_THE_POOL.match(name)}
    else:
        raise ConfigurationError(f"redis= takes a URL or a redis.Redis client, not {_described(given)}")
    options: dict[str, Any] = dict(found)
    if options.pop("decode_responses", False):
        raise ConfigurationError(
            "the Redis client has decode_responses=True, but RQ keeps bytes in Redis; pass a client without it"
        )
    options.update(socket_timeout=answer_seconds, retry=Retry(NoBackoff(), 1, (RedisConnectionError,)), protocol=2)
    options.update(socket_connect_timeout=ANSWER_SECONDS)
    try:
        made = _pool(pool, connection_class, options)
        made.connection_class(**made.connection_kwargs)  # an option that it does not know is only noticed here
    except (TypeError, ValueError, AttributeError, RedisError) as error:
        text = bounded_text(str(error)) if isinstance(error, TypeError) else "an option has a wrong value"
        raise ConfigurationError(
            f"the Redis client can't be used ({type(error).__name__}: {text}); pass a URL, or a redis.Redis client"
        ) from None  # its text may hold a password
    return Redis.from_pool(made)


def _pool(theirs: Any, connection_class: Any, options: dict[str, Any]) -> ConnectionPool:
    if not isinstance(theirs, SentinelConnectionPool):
        return ConnectionPool(connection_class=connection_class, max_connections=_MOST_CONNECTIONS, **options)
    if not theirs.is_master:
        raise ConfigurationError(
            "the Redis client is one for replicas (Sentinel.slave_for), which can't be written to; pass the client "
            "that Sentinel.master_for returns"
        )
    manager = theirs.sentinel_manager
    sentinels: Any = Sentinel([], min_other_sentinels=manager.min_other_sentinels)  # type: ignore[no-untyped-call]
    sentinels.sentinels = [redis_client(one) for one in manager.sentinels]  # with our time limits
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]  # as redis-py leaves it
        theirs.service_name,
        sentinels,
        connection_class=connection_class,
        check_connection=theirs.check_connection,
        max_connections=_MOST_CONNECTIONS,
        **options,
    )


def _described(given: object) -> str:
    kind = type(given)
    module = kind.__module__
    if "Cluster" in kind.__name__:
        return (
            f"the cluster client {kind.__name__}; give the URL of the node that has the slot of RQ_KEY_PREFIX, as "
            f"docs/redis.md says"
        )
    if "asyncio" in module:
        return f"the asyncio client {kind.__name__}; give its URL, or a redis.Redis, for asyncio programs too"
    return f"{kind.__name__} of {module.partition('.')[0]}" if module != "builtins" else kind.__name__


def redis_location(client: Redis) -> str:
    """Return the address of a client's server, without user and password."""
    pool = client.connection_pool
    options = pool.connection_kwargs
    if isinstance(pool, SentinelConnectionPool):
        return f"the primary of {pool.service_name!r}, by Sentinel"
    if path := options.get("path"):
        return f"unix://{path}"
    return f"redis://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db', 0)}"


def redis_secrets(client: Redis) -> tuple[Any, ...]:
    """Return the passwords among a client's options, which no message may hold."""
    options = client.connection_pool.connection_kwargs
    return options.get("password"), options.get("ssl_password")


def check_version(client: Redis, reported: object) -> None:
    """Raise ConfigurationError if a server reports a version that is too old; a server without one is accepted."""
    found = re.match(r"(\d+)\.(\d+)", str(reported))
    if found is not None and tuple(map(int, found.groups())) < OLDEST_VERSION:
        needed = ".".join(map(str, OLDEST_VERSION))
        raise ConfigurationError(
            f"Redis at {redis_location(client)} is version {reported}, but Spanloom needs Redis {needed} or later, or "
            f"Valkey; upgrade it, or set SPANLOOM_REDIS_URL to another one"
        )
