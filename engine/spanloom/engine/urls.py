"""URLs as they may be shown: the one function that hides the secrets in the URL of a store or of a Redis."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

__all__ = ["shown_url", "split_url"]

#: Options whose values are no secrets; of others only the names are shown.
_OPEN_OPTIONS = frozenset({"db", "host", "namespace", "pool_size", "port", "prepare", "protocol", "synchronous"})
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}").fullmatch
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,20}(?=://)")
_HOST = re.compile(r"[A-Za-z0-9_.,:\[\]%/-]*").fullmatch


def split_url(url: str) -> SplitResult | None:
    """Return the parts of a URL; None if it is malformed, or if a password in it may end elsewhere than it seems.

    A `/`, `?` or `#` that is not percent-encoded ends the part that holds user and password, so the text after it
    would be read as something else, and shown.
    """
    if any(not character.isprintable() or character.isspace() for character in url):
        return None  # urlsplit leaves some of them out
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  a malformed port is only noticed when it is read
    except ValueError:
        return None
    if "://" not in url or not parts.scheme or not _HOST(parts.netloc.rpartition("@")[2]):
        return None
    file = parts.scheme == "sqlite" and not parts.netloc  # has neither user nor password
    strays = parts.query + parts.fragment if file else parts.path + parts.query + parts.fragment
    return None if "@" in strays else parts


def shown_url(url: str, *, with_user: bool = False) -> str:
    """Return a URL without user and password, and without the values of options that may be secrets.

    Of a URL that is not well-formed only the scheme is shown: where its password ends is not known. The user is shown
    only if that is wanted, as some write a password in its place.

    >>> shown_url("redis://me:secret@host:6380/1?ssl_password=x"), shown_url("redis://:s3c/ret@host")
    ('redis://host:6380/1?ssl_password=…', 'redis://…')
    """
    parts = split_url(url)
    if parts is None:
        scheme = _SCHEME.match(url)
        return f"{scheme[0]}://…" if scheme else "…"
    user, _, address = parts.netloc.rpartition("@")
    if with_user and (user := user.partition(":")[0]):
        address = f"{user}@{address}"
    options = [
        f"{name}={value if name in _OPEN_OPTIONS else '…'}"
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if _NAME(name)
    ]
    return f"{parts.scheme}://{address}{parts.path}{'?' if options else ''}{'&'.join(options)}"
