"""Side lists: where the jobs of a node type wait that some worker of their list lacks.

A side list belongs to one list and one node type, and is called `{list}@{type}`. Only workers that know the type serve
it. It is an RQ queue like any other, so that RQ's tools show its jobs.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote

__all__ = ["base_list", "side_list", "type_tag"]

_MOST_CHARACTERS = 200


def type_tag(node_type: str) -> str:
    """Return the part of a side list's name that stands for a node type.

    >>> type_tag("shop.charge"), type_tag("a type"), len(type_tag("x" * 1000))
    ('shop.charge', 'a%20type', 33)
    """
    quoted = quote(node_type, safe="", errors="backslashreplace")
    if len(quoted) <= _MOST_CHARACTERS:
        return quoted
    return f"~{hashlib.sha256(quoted.encode()).hexdigest()[:32]}"


def side_list(list_name: str, node_type: str) -> str:
    """Return the name of the side list of a list and a node type."""
    return f"{list_name}@{type_tag(node_type)}"


def base_list(name: str) -> tuple[str, str]:
    """Return the list that a list belongs to, and the type's tag; of a list that is no side list itself and ``.

    >>> base_list("shop.default@mail"), base_list("shop.default")
    (('shop.default', 'mail'), ('shop.default', ''))
    """
    base, _, tag = name.partition("@")
    return base, tag
