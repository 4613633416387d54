"""The parts of a Postgres URL: connection parameters, schema, and the URL without the password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.urls import shown_url

__all__ = ["DEFAULT_NAMESPACE", "OPTIONS", "Location"]

DEFAULT_NAMESPACE = "spanloom"

#: Defaults of libpq's parameters. An unreachable server is detected within 10 to 15 seconds, also over an idle
#: connection. Only the first and the last apply to Unix sockets.
DEFAULTS: dict[str, str | int] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
    "application_name": "spanloom",
}

#: Texts are exchanged as UTF-8, whatever the role, the database or the environment say. Poolers know this parameter.
_FORCED: dict[str, str | int] = {"client_encoding": "UTF8"}

_SCHEMES = ("postgresql://", "postgres://")
_SHOWN = 50  # characters of a wrong option
_DIGITS = 6
_NAMESPACE = re.compile(r"[a-z_][a-z0-9_]{0,62}")  # needs no quotes in SQL, and fits Postgres' 63 bytes


#: The options of a URL that are the store's own. All others are libpq's.
OPTIONS = ("namespace", "schema", "prepare", "pool_size")

_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_FORM = "write postgresql://user:password@host:5432/database"


@dataclass(frozen=True)
class Location:
    """One schema of one database: libpq's connection parameters, and `shown`, the URL without the password."""

    parameters: dict[str, Any] = field(repr=False)
    namespace: str
    shown: str
    prepare: bool | None = None  # None: not in the URL, as below
    pool_size: int | None = None

    @classmethod
    def parse(cls, url: str, namespace: str = DEFAULT_NAMESPACE) -> Location:
        """Parse `postgresql://user:password@host:port/database?namespace=…&prepare=false&pool_size=5`.

        libpq's own parameters may follow, such as `sslmode`. The URL takes precedence over arguments.
        Raises ConfigurationError, without the URL in it.

        >>> Location.parse("postgresql://me:secret@localhost:5433/app?prepare=false").shown
        'postgresql://me@localhost:5433/app?prepare=false'
        """
        address, _, options = url.partition("?")
        query = dict(parse_qsl(options, keep_blank_values=True))
        own = {name: query.pop(name) for name in OPTIONS if name in query}
        unknown = sorted(query.keys() - _libpq_options())
        if unknown and "@" not in options and url.startswith(_SCHEMES):  # else it may be part of a password
            raise ConfigurationError(
                f"the store's Postgres URL has an unknown option {unknown[0][:_SHOWN]!r}; {_FORM} with any of these "
                f"options: {', '.join(OPTIONS)} and libpq's {', '.join(sorted(_libpq_options()))}"
            )
        given = _parameters(f"{address}?{urlencode(query, quote_via=quote)}")
        if given is None:
            raise ConfigurationError(
                f"the store's Postgres URL is malformed; {_FORM}, with odd "
                "characters of the password percent-encoded (its text is not repeated here, as it may hold one)"
            )
        namespace = own.get("namespace", own.get("schema", namespace))
        if not _NAMESPACE.fullmatch(namespace) or namespace.startswith("pg_"):
            raise ConfigurationError(
                f"namespace {namespace!r} can't name a Postgres schema; use lower-case letters, digits and _, "
                f"not first a digit, not pg_ first, at most 63 characters"
            )
        prepare = _boolean("prepare", own["prepare"]) if "prepare" in own else None
        pool_size = _number("pool_size", own["pool_size"]) if "pool_size" in own else None
        parameters = {**DEFAULTS, **given, **_FORCED}
        return cls(parameters, namespace, _shown(given, namespace, prepare), prepare, pool_size)


@cache
def _libpq_options() -> frozenset[str]:
    named = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    return frozenset(named | {"ssl"})  # in URLs libpq takes ssl=true, too


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ConfigurationError(f"the store's Postgres URL sets {name} to {text[:_SHOWN]!r}; it is true or false")
    return text.lower() in _TRUE


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < _DIGITS and int(text) > 0):
        raise ConfigurationError(f"the store's Postgres URL sets {name} to {text[:_SHOWN]!r}; it is a number from 1")
    return int(text)


def _parameters(url: str) -> dict[str, str] | None:
    """Return libpq's parameters, None if the URL is malformed."""
    if not url.startswith(_SCHEMES):
        return None
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value}
    except psycopg.Error:
        return None
    # The text after an odd character of a password would be taken for a host or a port, and be shown.
    path = url.partition("://")[2].partition("?")[0].partition("/")[2]  # of a password with a / in it, the rest
    odd = "@" in given.get("host", "") or "@" in path or not re.fullmatch(r"[0-9,]*", given.get("port", ""))
    return None if odd else given


def _shown(known: dict[str, str], namespace: str, prepare: bool | None) -> str:
    host, port = known.get("host", ""), known.get("port", "")
    query: dict[str, str] = {}
    if "/" in host or "," in host:  # a unix socket's directory, or several hosts
        query = {"host": host, "port": port.strip(",") and port}
        host = port = ""
    if namespace != DEFAULT_NAMESPACE:
        query["namespace"] = namespace
    if prepare is False:  # so that a command with this URL works, too
        query["prepare"] = "false"
    user = f"{quote(known['user'])}@" if "user" in known else ""
    address = f"{host}:{port}" if port else host
    options = urlencode({key: value for key, value in query.items() if value}, safe="/,")
    url = f"postgresql://{user}{address}/{quote(known.get('dbname', ''))}{'?' if options else ''}{options}"
    return shown_url(url, with_user=True)
