"""The parts of a Postgres URL: connection parameters, schema, and the URL without the password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from spanloom.engine.errors import ConfigurationError

__all__ = ["DEFAULT_NAMESPACE", "Location"]

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

_NAMESPACE = re.compile(r"[a-z_][a-z0-9_]{0,62}")  # needs no quotes in SQL, and fits Postgres' 63 bytes


@dataclass(frozen=True)
class Location:
    """One schema of one database: libpq's connection parameters, and `shown`, the URL without the password."""

    parameters: dict[str, Any] = field(repr=False)
    namespace: str
    shown: str

    @classmethod
    def parse(cls, url: str, namespace: str = DEFAULT_NAMESPACE) -> Location:
        """Parse `postgresql://user:password@host:port/database?namespace=…`; libpq's other parameters may follow.

        A namespace in the URL takes precedence over the argument. Raises ConfigurationError, without the URL in it.

        >>> Location.parse("postgresql://me:secret@localhost:5433/app").shown
        'postgresql://me@localhost:5433/app'
        """
        address, _, options = url.partition("?")
        query = dict(parse_qsl(options, keep_blank_values=True))
        namespace = query.pop("namespace", namespace)
        given = _parameters(f"{address}?{urlencode(query, quote_via=quote)}")
        if given is None:
            raise ConfigurationError(
                "the store's Postgres URL is malformed; write postgresql://user:password@host:5432/database, with odd "
                "characters of the password percent-encoded (its text is not repeated here, as it may hold one)"
            )
        if not _NAMESPACE.fullmatch(namespace) or namespace.startswith("pg_"):
            raise ConfigurationError(
                f"namespace {namespace!r} can't name a Postgres schema; use lower-case letters, digits and _, "
                f"not first a digit, not pg_ first, at most 63 characters"
            )
        return cls({**DEFAULTS, **given}, namespace, _shown(given, namespace))


def _parameters(url: str) -> dict[str, str] | None:
    """Return libpq's parameters, None if the URL is malformed."""
    if not url.startswith(("postgresql://", "postgres://")):
        return None
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value}
    except psycopg.Error:
        return None
    # The text after an odd character of a password would be taken for a host or a port, and be shown.
    odd = "@" in given.get("host", "") or not re.fullmatch(r"[0-9,]*", given.get("port", ""))
    return None if odd else given


def _shown(known: dict[str, str], namespace: str) -> str:
    host, port = known.get("host", ""), known.get("port", "")
    query: dict[str, str] = {}
    if "/" in host or "," in host:  # a unix socket's directory, or several hosts
        query = {"host": host, "port": port.strip(",") and port}
        host = port = ""
    if namespace != DEFAULT_NAMESPACE:
        query["namespace"] = namespace
    user = f"{quote(known['user'])}@" if "user" in known else ""
    address = f"{host}:{port}" if port else host
    options = urlencode({key: value for key, value in query.items() if value}, safe="/,")
    return f"postgresql://{user}{address}/{quote(known.get('dbname', ''))}{'?' if options else ''}{options}"
