"""Escaping: the one rule for text that is shown in a terminal, in a pipe, in a log line, in JSON or in an error.

Escaped are control characters (C0, DEL, C1), Unicode's format characters (zero-width and bidirectional ones among
them), line and paragraph separators, and lone surrogates, which no encoding holds. The escapes are Python's, `\\x1b` or
`\\u202e`, and within JSON its own. Text that has been escaped is not changed by another pass.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from enum import Enum

__all__ = ["escaped", "escaped_json", "shown"]

#: Unicode's categories Cc, Cf, Cs, Zl and Zp.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_SHOWN = 60  # the most characters of a value in an error


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return text without characters that would control a terminal or mislead its reader, except those in `keep`.

    >>> print(escaped("a\x1b[31mb\u202ec\nd", keep="\n"))
    a\x1b[31mb\u202ec
    d
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


def escaped_json(text: str) -> str:
    r"""Return JSON text with JSON's escapes in place of such characters; its value stays the same.

    >>> print(escaped_json('{"a": "b\x7f"}'))
    {"a": "b\u007f"}
    """
    if text.isascii() and text.isprintable():
        return text
    # Outside strings JSON has no such character but line breaks and tabs, which it never has inside.
    return _UNSAFE.sub(lambda found: found[0] if found[0] in "\n\r\t" else _json_escape(found[0]), text)


def shown(value: object) -> str:
    """Return the form in which an error shows a given value: at most 60 characters of it, or its type only.

    >>> shown("x" * 1000), shown(["secret"]), shown(None)
    ("'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'", 'a list', 'None')
    """
    kind = type(value)
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"  # which may be a URL with a password
    if isinstance(value, str) and kind is str:
        text = escaped(repr(value[:_SHOWN]))
        return text if len(value) <= _SHOWN else f"{text[:-1]}…{text[-1]}"
    if isinstance(value, int) and not isinstance(value, bool | Enum):
        return str(value) if value.bit_length() < 4 * _SHOWN else f"a number of {value.bit_length():,} bits"
    if value is None or kind in (bool, float, timedelta, datetime):
        return repr(value)
    if isinstance(value, Enum):
        return escaped(str(value))
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return escaped(f"{'an' if name in ('int', 'object') else 'a'} {name}")


def _json_escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else json.dumps(character)[1:-1]
