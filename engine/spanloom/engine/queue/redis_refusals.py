"""The errors of Redis: which belong to one key, the meaning of the others, and their text without secrets."""

from __future__ import annotations

import re
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    DataError,
    MaxConnectionsError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from spanloom.engine.errors import QueueUnavailable

__all__ = ["WrongKeyType", "bounded_text", "is_of_one_key", "is_passing", "is_refusal", "sentence"]

_MOST_CHARACTERS = 200
_ONE_KEY = ("WRONGTYPE", "is not an integer", "is not a valid float", "no such key")
_PERMANENT = ("NOPERM", "NOAUTH", "WRONGPASS", "unknown command", "no permissions", "DB index")
_REMEDIES = (
    ("OOM", "raise its maxmemory, or free some of its memory"),
    ("maxmemory", "raise its maxmemory, or free some of its memory"),
    ("READONLY", "it is a replica: give the address of its primary"),
    ("read only replica", "it is a replica: give the address of its primary"),
    ("MASTERDOWN", "its primary is away"),
    ("MISCONF", "it can't save its data: see its log"),
    ("CLUSTERDOWN", "see the state of its cluster"),
    ("MOVED", "it is a cluster: see `Redis Cluster` in docs/redis.md"),
    ("CROSSSLOT", "it is a cluster: see `Redis Cluster` in docs/redis.md"),
    ("WRONGPASS", "give the right user and password in SPANLOOM_REDIS_URL"),
    ("NOAUTH", "give the user and the password in SPANLOOM_REDIS_URL"),
    ("password", "give the right user and password in SPANLOOM_REDIS_URL"),
    ("Authentication", "give the right user and password in SPANLOOM_REDIS_URL"),
    ("permission", "allow its user what docs/redis.md lists"),
    ("unknown command", "allow the commands that docs/redis.md lists"),
    ("DB index", "give the number of a database that it has in SPANLOOM_REDIS_URL"),
    ("loading", "wait until it has loaded its data"),
    ("max number of clients", "raise its maxclients"),
    ("BUSY", "a script runs in it for too long"),
)


class WrongKeyType(QueueUnavailable):
    """Raised when a key in Redis holds something else than Spanloom keeps there; Redis itself is well."""


def is_of_one_key(error: Exception) -> bool:
    """Return whether an error of Redis is about the value of one key, or about one argument, and not about Redis."""
    if isinstance(error, DataError):
        return True
    return isinstance(error, ResponseError) and any(mark in str(error) for mark in _ONE_KEY)


def is_refusal(error: Exception) -> bool:
    """Return whether Redis did answer, with an error."""
    return isinstance(error, ResponseError | AuthenticationError | BusyLoadingError | MaxConnectionsError) or (
        isinstance(error, RedisError) and "max number of clients" in str(error)
    )


def is_passing(error: BaseException | None) -> bool:
    """Return whether an error of Redis is a refusal that ends by itself: none of rights, passwords and commands."""
    return (
        isinstance(error, Exception)
        and is_refusal(error)
        and not isinstance(error, AuthenticationError | NoPermissionError)
        and not any(mark in str(error) for mark in _PERMANENT)
    )


def sentence(location: str, error: Exception, secrets: tuple[Any, ...] = ()) -> str:
    """Return the sentence on an error of Redis: the address, the error, and the remedy."""
    text = bounded_text(_without(str(error), secrets)) or "no text"
    what = f"{type(error).__name__}: {text}"
    if not is_refusal(error):
        return f"Redis at {location} did not answer ({what}); start it, or set SPANLOOM_REDIS_URL"
    named = f"{type(error).__name__} {text}"  # redis-py drops the code of some errors, which is in their class then
    remedy = next((remedy for mark, remedy in _REMEDIES if mark.lower() in named.lower()), "see docs/redis.md")
    return f"Redis at {location} refuses what Spanloom needs ({what}); {remedy}"


def bounded_text(given: str | bytes, limit: int = _MOST_CHARACTERS) -> str:
    r"""Return a text from Redis for a log line: printable, and at most `limit` of its characters.

    >>> bounded_text(b"a\x1b[31m" + b"b" * 300, 9), bounded_text("é")
    ('a\\x1b[31mbbb…', 'é')
    """
    text = given[: 4 * limit].decode(errors="backslashreplace") if isinstance(given, bytes) else given
    short = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text[:limit])
    return short if len(given) <= limit else f"{short}…"


def _without(text: str, secrets: tuple[Any, ...]) -> str:
    """Return the text of an error without the arguments that it repeats, which may be data, or those of AUTH."""
    text = re.sub(r"^Command # \d+ \(.*\) of pipeline caused error: ", "", text, flags=re.DOTALL)
    text = re.split(r",? with args beginning with", text, maxsplit=1)[0]
    for secret in secrets:
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "…")
    return text
