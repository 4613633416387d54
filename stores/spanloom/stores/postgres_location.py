"""Reads a Postgres URL: where the database is, which schema in it, and how to show that without the password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from spanloom.engine.errors import ConfigurationError

__all__ = ["DEFAULT_NAMESPACE", "Location"]

DEFAULT_NAMESPACE = "spanloom"
CONNECT_SECONDS = 5  #: unless the URL says otherwise

_NAMESPACE = re.compile(r"[a-z_][a-z0-9_]{0,62}")  # what needs no quotes in SQL, and fits Postgres' 63 bytes


@dataclass(frozen=True)
class Location:
    """One schema of one database: libpq's connection parameters, and `shown`, the URL without the password."""

    parameters: dict[str, Any] = field(repr=False)
    namespace: str
    shown: str

    @classmethod
    def parse(cls, url: str, namespace: str = DEFAULT_NAMESPACE) -> Location:
        """Read `postgresql://user:password@host:port/database?namespace=…`; libpq's other parameters may follow.

        A namespace in the URL goes before the argument. Raises ConfigurationError, without the URL in it.
        """
        try:
            parts = urlsplit(url)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            namespace = query.pop("namespace", namespace)
            given = conninfo_to_dict(parts._replace(query=urlencode(query, quote_via=quote)).geturl())
        except (ValueError, psycopg.Error):
            given = {}
        if not given or not url.startswith(("postgresql://", "postgres://")):
            raise ConfigurationError(
                "the store's Postgres URL is malformed; write postgresql://user:password@host:5432/database, with odd "
                "characters of the password percent-encoded (its text is not repeated here, as it may hold one)"
            )
        if not _NAMESPACE.fullmatch(namespace) or namespace.startswith("pg_"):
            raise ConfigurationError(
                f"namespace {namespace!r} can't name a Postgres schema; use lower-case letters, digits and _, "
                f"not first a digit, not pg_ first, at most 63 characters"
            )
        parameters = {"connect_timeout": CONNECT_SECONDS, "application_name": "spanloom", **given}
        return cls(parameters, namespace, _shown({key: str(value) for key, value in given.items() if value}, namespace))


def _shown(known: dict[str, str], namespace: str) -> str:
    host, port = known.get("host", ""), known.get("port", "")
    query: dict[str, str] = {}
    if "/" in host or "," in host:  # a unix socket's directory, or several hosts
        query = {"host": host, "port": port}
        host = port = ""
    if namespace != DEFAULT_NAMESPACE:
        query["namespace"] = namespace
    user = f"{quote(known['user'])}@" if "user" in known else ""
    address = f"{host}:{port}" if port else host
    options = urlencode({key: value for key, value in query.items() if value}, safe="/,")
    return f"postgresql://{user}{address}/{quote(known.get('dbname', ''))}{'?' if options else ''}{options}"
