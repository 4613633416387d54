"""The check of one value by a type annotation: strict, without conversion, and with a description for errors."""

from __future__ import annotations

import dataclasses
import math
import types
from collections import abc
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import Enum
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

__all__ = ["Between", "Check", "Rule", "check_of", "find_fault", "options_of"]

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1  # what every database keeps
_TEXTS = (str, bytes, bytearray, memoryview)

Faults = Callable[[str, Any], Iterator[tuple[str, Any, str]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a type, in `Annotated`: the function that accepts a value, and the description of such values."""

    accepts: Callable[[Any], bool]
    expected: str


@dataclasses.dataclass(frozen=True, slots=True)
class Between:
    """A rule of whole numbers: from `least` to `most`."""

    least: int
    most: int


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """The check of a value: a quick test, a description of the values that pass, and the faults within a container."""

    accepts: Callable[[Any], bool]
    expected: str
    inner: Faults | None = None


def find_fault(check: Check, name: str, value: object) -> tuple[str, object, str]:
    """Return the first fault in a value that was not accepted: its place, the value there, and those expected there."""
    if check.inner is not None:
        for fault in check.inner(name, value):
            return fault
    return name, value, check.expected


def options_of(hint: Any) -> dict[str, Check | None] | None:
    """Return the checks of the options in `**options: Unpack[…]`, None where any option is taken."""
    if get_origin(hint) is not Unpack:
        return None
    (options,) = get_args(hint)
    return {name: check_of(kind) for name, kind in get_type_hints(options, include_extras=True).items()}


def check_of(hint: Any) -> Check | None:
    """Return the check of an annotation, None if it takes any value."""
    origin = get_origin(hint)
    if hint in (Any, object) or isinstance(hint, TypeVar) or origin is Unpack:
        return None
    if hint is None or hint is type(None):
        return Check(lambda value: value is None, "None")
    if origin is Annotated:
        return _annotated(*get_args(hint))
    if origin in (Union, types.UnionType):
        return _union(get_args(hint))
    if origin is Literal:
        return _literal(get_args(hint))
    if origin is not None:
        return _generic(origin, get_args(hint))
    return _class(hint)


def _annotated(kind: Any, *rules: Any) -> Check | None:
    for rule in rules:
        if isinstance(rule, Between):
            return _between(rule.least, rule.most)
        if isinstance(rule, Rule):
            return Check(rule.accepts, rule.expected)
    return check_of(kind)


def _between(least: int, most: int) -> Check:
    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Check(accepts, "a whole number" + ("" if least == _SMALLEST else f" from {least} to {most}"))


def _union(kinds: tuple[Any, ...]) -> Check | None:
    checks = [check_of(kind) for kind in kinds]
    known = [check for check in checks if check is not None]
    if len(known) < len(checks):
        return None

    def faults(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
        for check in known:
            if check.inner is not None:
                yield from check.inner(name, value)

    *others, last = dict.fromkeys(check.expected for check in known)
    expected = f"{', '.join(others)}{',' * (',' in ''.join(others))} or {last}" if others else last
    if len(known) == 2 and known[1].expected == "None":
        accept = known[0].accepts
        return Check(lambda value: value is None or accept(value), expected, faults)
    accepting = tuple(check.accepts for check in known)
    return Check(lambda value: any(accept(value) for accept in accepting), expected, faults)


def _literal(values: tuple[Any, ...]) -> Check:
    def accepts(value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in values)

    return Check(accepts, "one of " * (len(values) > 1) + ", ".join(map(repr, values)))


def _generic(origin: Any, arguments: tuple[Any, ...]) -> Check | None:
    if origin is type:
        return _subclass(arguments[0])
    if origin is abc.Callable:
        return Check(callable, "a function")
    if origin in (abc.Mapping, dict):
        return _mapping(*map(check_of, arguments))
    if origin in (abc.Iterable, abc.Iterator):
        return Check(_is_iterable, "an iterable, such as a list")
    if origin in (abc.Sequence, abc.Collection, list, tuple):
        return _sequence(
            tuple if origin is tuple else abc.Sequence,  # type: ignore[type-abstract]  # for isinstance
            check_of(next(iter(arguments), Any)),
        )
    return _class(origin)


def _subclass(of: Any) -> Check:
    if not isinstance(of, type):
        return Check(lambda value: isinstance(value, type), "a class")
    return Check(lambda value: isinstance(value, type) and issubclass(value, of), f"a subclass of {of.__name__}")


def _is_iterable(value: Any) -> bool:
    return isinstance(value, abc.Iterable) and not isinstance(value, (*_TEXTS, abc.Mapping))


def _sequence(kind: type[abc.Sequence[Any]], element: Check | None) -> Check:
    accept = None if element is None else element.accepts

    def accepts(value: Any) -> bool:
        if not isinstance(value, kind) or isinstance(value, _TEXTS):
            return False
        return accept is None or all(accept(each) for each in value)

    def faults(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
        if element is not None and isinstance(value, kind) and not isinstance(value, _TEXTS):
            for index, each in enumerate(value):
                if not element.accepts(each):
                    yield find_fault(element, f"{name}[{index}]", each)

    return Check(accepts, "a tuple" if kind is tuple else "a list", faults)


def _mapping(key: Check | None, element: Check | None) -> Check:
    def accepts(value: Any) -> bool:
        return isinstance(value, abc.Mapping) and next(faults("", value), None) is None

    def faults(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
        if not isinstance(value, abc.Mapping):
            return
        for each, content in value.items():
            if key is not None and not key.accepts(each):
                yield f"each key of {name}", each, key.expected
            elif element is not None and not element.accepts(content):
                yield find_fault(element, f"{name}[{each!r}]", content)

    return Check(accepts, "a dict", faults)


def _class(kind: Any) -> Check | None:
    if not isinstance(kind, type) or kind is object:
        return None
    if kind is bool:
        return Check(lambda value: value is True or value is False, "True or False")
    if kind is int:
        return _between(_SMALLEST, _LARGEST)
    if kind is float:
        return Check(_is_number, "a finite number")
    if kind is datetime:
        return Check(_is_moment, "a datetime with a time zone, before the year 9999")
    if kind is str:
        return Check(lambda value: isinstance(value, str), "text")
    if issubclass(kind, Enum):
        members = ", ".join(str(member.value) for member in kind)
        return Check(lambda value: isinstance(value, kind), f"a {kind.__name__} ({members})")
    expected = f"{'an' if kind.__name__[:1] in 'AEIOU' else 'a'} {kind.__name__}"
    if _has_fields(kind):
        return _record(kind, expected)
    return Check(lambda value: isinstance(value, kind), expected)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else _SMALLEST <= value <= _LARGEST


def _is_moment(value: Any) -> bool:
    try:
        return isinstance(value, datetime) and value.utcoffset() is not None and 1 < value.year < 9999
    except Exception:  # of a time zone of the caller's own
        return False


def _has_fields(kind: type) -> bool:
    """Return whether a class is one of the port's records, which nothing has validated: a tuple or a dataclass."""
    return (
        dataclasses.is_dataclass(kind)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
        or (getattr(kind, "CHECKS_FIELDS", False) is True)
    )


def _record(kind: type, expected: str) -> Check:
    @cache
    def fields() -> dict[str, Check]:
        hints = get_type_hints(kind, include_extras=True)
        if known := getattr(kind, "model_fields", None):
            hints = {name: hints[name] for name in known}
        checks = {name: check_of(hint) for name, hint in hints.items() if not name.startswith("_")}
        return {name: check for name, check in checks.items() if check is not None}

    def accepts(value: Any) -> bool:
        return isinstance(value, kind) and all(check.accepts(getattr(value, name)) for name, check in fields().items())

    def faults(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
        if isinstance(value, kind):
            for field, check in fields().items():
                if not check.accepts(getattr(value, field)):
                    yield find_fault(check, f"{name}.{field}", getattr(value, field))

    return Check(accepts, expected, faults)
