"""The URL of a Redis: which options it may have, of which type; everything else is refused with a sentence."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote

from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.urls import shown_url, split_url
from spanloom.engine.wording import did_you_mean

__all__ = ["parse_redis_url"]

_CLASSES: Mapping[str, type[Connection | UnixDomainSocketConnection]] = {
    "redis": Connection,
    "rediss": SSLConnection,
    "unix": UnixDomainSocketConnection,
}
_DATABASE = re.compile(r"/?|/[0-9]{1,9}/?").fullmatch
_MOST = 1_000_000_000
_TRUTH = {
    "true": True,
    "yes": True,
    "1": True,
    "on": True,
    "false": False,
    "no": False,
    "0": False,
    "off": False,
    "": False,
}


def _truth(text: str) -> bool:
    return _TRUTH[text.lower()]


def _seconds(text: str) -> float | None:
    return None if text.lower() == "none" else _in_range(float(text))


def _natural(text: str) -> int:
    return int(_in_range(int(text)))


def _in_range(number: float) -> float:
    if not 0 <= number <= _MOST:  # nan is in no range
        raise ValueError
    return number


def _one_of(*known: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        return {name: name for name in known}[text.lower()]

    return parse


def _tls_version(text: str) -> ssl.TLSVersion:
    return ssl.TLSVersion(int(text))


_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "db": _natural,
    "username": str,
    "password": str,
    "client_name": str,
    "decode_responses": _truth,
    "encoding": _one_of("utf-8", "utf8"),
    "health_check_interval": _natural,
    "lib_name": str,
    "lib_version": str,
    "socket_keepalive": _truth,
    "socket_read_size": _natural,
}
#: What redis-py knows, and Spanloom decides by itself.
_OWN: Mapping[str, Callable[[str], Any]] = {
    "legacy_responses": _truth,
    "max_connections": _natural,
    "protocol": _one_of("2", "3"),
    "retry_on_error": str,
    "retry_on_timeout": _truth,
    "socket_connect_timeout": _seconds,
    "socket_timeout": _seconds,
    "timeout": _seconds,
}
_TLS: Mapping[str, Callable[[str], Any]] = {
    "ssl_ca_certs": str,
    "ssl_ca_data": str,
    "ssl_ca_path": str,
    "ssl_cert_reqs": _one_of("none", "optional", "required"),
    "ssl_certfile": str,
    "ssl_check_hostname": _truth,
    "ssl_ciphers": str,
    "ssl_keyfile": str,
    "ssl_min_version": _tls_version,
    "ssl_password": str,
}


def parse_redis_url(url: str) -> tuple[type[Connection | UnixDomainSocketConnection], dict[str, Any]]:
    """Return the class of a URL's connections, and their arguments.

    Raises ConfigurationError, which shows the URL without its password, for a malformed URL, and for an option that is
    unknown or has a wrong value.
    """
    parts = split_url(url)
    if parts is None or parts.scheme not in _CLASSES or parts.fragment or not _fits(parts):
        raise ConfigurationError(
            f"{shown_url(url)!r} is not a Redis URL; write redis://host:6379/0, rediss://… or "
            f"unix:///path.sock; in a password stands %40 for @, %2F for /, %3F for ? and %23 for #"
        )
    options: dict[str, Any] = {}
    if parts.scheme == "unix":
        options["path"] = unquote(parts.path)
    else:
        options["host"] = unquote(parts.hostname or "localhost")
        options["port"] = parts.port if parts.port is not None else 6379
        if number := parts.path.strip("/"):
            options["db"] = int(number)
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    return _CLASSES[parts.scheme], options | _queried(url, parts)


def _fits(parts: SplitResult) -> bool:
    if parts.scheme == "unix":
        return len(parts.path) > 1 and not parts.netloc.rpartition("@")[2]
    return _DATABASE(parts.path) is not None and "," not in parts.netloc and "/" not in parts.netloc


def _queried(url: str, parts: SplitResult) -> dict[str, Any]:
    found: dict[str, Any] = {}
    known = {**_OPTIONS, **_OWN, **(_TLS if parts.scheme == "rediss" else {})}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        where = f"the Redis URL {shown_url(url)!r}"
        if name not in known:
            hint = "; it is for rediss:// URLs" if name in _TLS else did_you_mean(name, known)
            shown = repr(name) if re.fullmatch(r"[\w.-]{1,40}", name) else "a name that is none"
            raise ConfigurationError(f"{where} has the option {shown}, which is not known{hint}")
        try:
            value = known[name](text)
        except (ValueError, KeyError):
            raise ConfigurationError(f"{where} has a wrong value for its option {name!r}") from None
        if name not in _OWN:
            found[name] = value
    return found
