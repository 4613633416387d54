"""The annotations of a handler: resolved in their modules, the context known in all its spellings."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.handlers.context import NodeContext

__all__ = ["UNUSABLE", "is_context", "resolve"]

UNUSABLE = (NameError, AttributeError, TypeError, SyntaxError)  #: what `resolve` raises

_UNIONS = (Union, types.UnionType)
#: NodeContext as text, if its names can't be resolved here: alone, or within Optional, Union and Annotated.
_CONTEXT_TEXT = re.compile(
    r"""(?:["'\s]|None\s*[|,]|(?:\w+\.)*(?:Optional|Union|Annotated)\[)*(?:\w+\.)*NodeContext\b"""
)


def resolve(annotation: Any, scopes: Sequence[dict[str, Any]]) -> Any:
    """Return an annotation as the type that it names in the first of some modules that know its names."""
    alone = SimpleNamespace(__annotations__={"it": annotation})  # the other annotations may not be resolvable
    for scope in scopes[:-1]:
        try:
            return get_type_hints(alone, globalns=scope, include_extras=True)["it"]
        except UNUSABLE:
            continue
    return get_type_hints(alone, globalns=scopes[-1] if scopes else {}, include_extras=True)["it"]


def is_context(annotation: Any, scopes: Sequence[dict[str, Any]]) -> bool:
    """Return whether an annotation is NodeContext: an alias of it, optional, annotated, or as text.

    Raises ConfigurationError for a union of it with another type.
    """
    if annotation is inspect.Parameter.empty:
        return False
    try:
        hint = resolve(annotation, scopes)
    except Exception:  # an annotation is any code, and matters only if its parameter gets data: reported then
        return isinstance(annotation, str) and _CONTEXT_TEXT.match(annotation) is not None
    return _names_context(hint)


def _names_context(hint: Any) -> bool:
    hint = _bare(hint)
    if get_origin(hint) not in _UNIONS:
        return hint is NodeContext
    members = [_bare(member) for member in get_args(hint) if member is not type(None)]
    found = [_names_context(member) for member in members]
    if any(found) and not all(found):
        raise ConfigurationError("the context or something else; annotate it with NodeContext alone")
    return all(found)


def _bare(hint: Any) -> Any:
    """Return a hint without its annotations, and the type behind a `type` alias."""
    while True:
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint
