"""The bounds of definitions, which are checked before anything goes through them: size, number of values, and depth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from spanloom.engine.limits import (
    MAX_CONFIG_DEPTH,
    MAX_DEFINITION_BYTES,
    MAX_DEFINITION_VALUES,
    MAX_EDGES,
    MAX_NODES,
)
from spanloom.engine.wording import size_text

__all__ = ["check_config", "check_content", "check_json", "check_nodes", "check_yaml"]

_ABOVE_A_CONFIG = 3  # levels: the workflow, the list of its nodes, the node
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_TOO_LARGE = f"it is larger than {size_text(MAX_DEFINITION_BYTES)}; keep large data elsewhere and refer to it"
_TOO_MANY = f"it has more than {MAX_DEFINITION_VALUES:,} keys and values; keep large data elsewhere and refer to it"
_TOO_DEEP = f"it is nested more than {MAX_CONFIG_DEPTH} levels deep, or holds itself"


def check_content(content: Any) -> None:
    """Check a workflow as decoded JSON or YAML. Raises ValueError with a sentence."""
    nodes = content.get("nodes") if isinstance(content, Mapping) else None
    if isinstance(nodes, list | tuple):
        inputs = (node.get("inputs") for node in nodes if isinstance(node, Mapping))
        check_nodes(len(nodes), sum(len(edges) for edges in inputs if isinstance(edges, list | tuple | Mapping)))
    _check(content, MAX_CONFIG_DEPTH + _ABOVE_A_CONFIG)


def check_config(config: Mapping[str, Any]) -> None:
    """Check a node's config. Raises ValueError with a sentence."""
    _check(config, MAX_CONFIG_DEPTH)


def check_nodes(nodes: int, edges: int) -> None:
    """Check the size of a graph. Raises ValueError with a sentence."""
    if nodes > MAX_NODES:
        raise ValueError(
            f"it has {nodes:,} nodes, more than {MAX_NODES:,}; map a node over data, or use child workflows"
        )
    if edges > MAX_EDGES:
        raise ValueError(f"it has {edges:,} edges, more than {MAX_EDGES:,}; join the nodes of a stage in one node")


def _check(content: Any, most_levels: int) -> None:
    """Go through it level by level. A part counts as often as it stands in it, and the bound ends the walk."""
    values = size = 0
    level = [content]
    for depth in range(most_levels + 1):  # the last one is of scalars
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                size += len(value)
                continue
            if isinstance(value, Mapping):
                values += 2 * len(value)
                size += sum(len(key) for key in value if isinstance(key, str))
                children: Any = value.values()
            elif isinstance(value, list | tuple):
                values += len(value)
                children = value
            else:  # a scalar, or a model, which was checked when it was made
                continue
            if depth == most_levels:
                raise ValueError(_TOO_DEEP)
            if values > MAX_DEFINITION_VALUES:
                raise ValueError(_TOO_MANY)
            below.extend(children)
        if size > MAX_DEFINITION_BYTES:
            raise ValueError(_TOO_LARGE)
        if not below:
            return
        level = below


def check_json(text: str) -> None:
    """Check the text of a definition before it is decoded. Raises ValueError with a sentence."""
    if len(text) > MAX_DEFINITION_BYTES:
        raise ValueError(_TOO_LARGE)
    if _separators(text) > MAX_DEFINITION_VALUES and _separators(_STRINGS.sub("", text)) > MAX_DEFINITION_VALUES:
        raise ValueError(_TOO_MANY)


def _separators(text: str) -> int:
    return sum(text.count(mark) for mark in ",:[{")  # at least one for each value beside the first


def check_yaml(text: str) -> None:
    """Check the text of a definition by its events, before nodes are made. Raises ValueError with a sentence.

    An alias counts as all that it stands for. Text that is no YAML is left to the loader, which ends at the same place.
    """
    import yaml

    if len(text) > MAX_DEFINITION_BYTES:
        raise ValueError(_TOO_LARGE)
    try:
        _check_events(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError:
        return


def _check_events(events: Iterable[Any]) -> None:
    sizes: dict[str, int] = {}  # by anchor
    pending: list[tuple[str | None, int]] = []  # the open collections: the anchor of each, and the values before it
    values = 0
    for event in events:
        kind, anchor = type(event).__name__, getattr(event, "anchor", None)
        if kind == "AliasEvent":
            values += sizes.get(anchor or "", 1)
        elif kind in ("SequenceStartEvent", "MappingStartEvent"):
            pending.append((anchor, values))
            values += 1
            if len(pending) > MAX_CONFIG_DEPTH + _ABOVE_A_CONFIG:
                raise ValueError(_TOO_DEEP)
        elif kind in ("SequenceEndEvent", "MappingEndEvent"):
            begun, before = pending.pop()
            if begun is not None:
                sizes[begun] = values - before
        elif kind == "ScalarEvent":
            values += 1
            if anchor is not None:
                sizes[anchor] = 1
        if values > MAX_DEFINITION_VALUES:
            raise ValueError(_TOO_MANY)
