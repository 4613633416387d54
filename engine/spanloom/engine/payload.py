"""Payloads: data to JSON text and back without any change, and the places in it that JSON can't carry."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, TypeAdapter
from pydantic.errors import PydanticUserError

from spanloom.engine.errors import PayloadRejected

__all__ = ["MASKED", "MAX_DEPTH", "copied", "decode", "encode", "find_faults", "masked_secret", "plain_text"]

MAX_DEPTH = (
    500  #: levels of lists and dicts; more could be written on a shallow stack and then not be read on a deep one
)

_CAN_CARRY = "dicts with string keys, lists, strings, finite numbers, booleans, None, models and dataclasses"
_MASK = '"**********"'
#: Why a secret is refused, and the remedy.
MASKED = "which pydantic writes as asterisks; write its get_secret_value(), or a reference to it"
_SCALARS = frozenset({str, int, float, bool, type(None)})
_PLAIN_KEY = re.compile(r"[A-Za-z_]\w{0,99}")


def encode(value: Any, where: str, limit: int) -> str:
    """Return `value` as JSON text in ASCII, so that any text column holds it.

    Takes JSON values, tuples (they become lists) and, anywhere among them, pydantic models and dataclasses. These are
    written in pydantic's JSON mode, with their aliases, so that the same class reads them back. `decode` returns the
    value unchanged: key order, -0.0, 1e16, big integers, lone surrogates.

    Raises PayloadRejected for anything else (with the path to it), for a pydantic secret, which would be written as
    asterisks, and for text of more than `limit` bytes. Its message starts with `where`, and never shows the data.
    """
    try:
        text = _encode(value)
        faulty = type(value) not in _SCALARS and not _well_formed(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadRejected(_refusal(where, value, error)) from error
    if faulty:
        raise PayloadRejected(_refusal(where, value))
    if _MASK in text and (path := masked_secret(value, text)) is not None:
        raise PayloadRejected(f"{where} can't be written as JSON: {path} is a secret, {MASKED}")
    if len(text) > limit:
        raise PayloadRejected(
            f"{where} takes {len(text):,} bytes as JSON, more than the limit of {limit:,}; "
            f"keep large data elsewhere and pass a reference to it"
        )
    return text


def masked_secret(value: Any, text: str) -> str | None:
    """Return the path of the first pydantic secret in `value` if its JSON `text` has asterisks in place of one."""
    return next(_secrets(value, "$"), None) if _MASK in text else None


def _secrets(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, SecretStr | SecretBytes | Secret):
        yield path
    elif isinstance(value, BaseModel):
        for name, element in value:
            yield from _secrets(element, f"{path}.{name}")
    elif _is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _secrets(getattr(value, field.name, None), f"{path}.{field.name}")
    elif isinstance(value, dict):
        for key, element in value.items():
            yield from _secrets(element, path + _step(key))
    elif isinstance(value, list | tuple | set | frozenset):
        for index, element in enumerate(value):
            yield from _secrets(element, f"{path}[{index}]")


def _write_model(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, warnings=False)  # a warning would show the data
    if _is_dataclass(value):
        kind: Any = type(value)
        return _adapter(kind).dump_python(value, mode="json", by_alias=True, warnings=False)
    raise TypeError(f"{_type_name(value)} is not JSON")


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


@functools.lru_cache(maxsize=256)
def _adapter(kind: type) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except PydanticUserError as error:
        raise TypeError(str(error)) from error


_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_write_model).encode

_encode_plain = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def plain_text(value: Any) -> str | None:
    """Return the text that `encode` makes of JSON values; None if `value` holds anything else, a model too."""
    try:
        text = _encode_plain(value)
    except (TypeError, ValueError, RecursionError):
        return None
    return text if type(value) in _SCALARS or _well_formed(value) else None


#: Return the value of JSON text that `encode` made; a new value each time, so that callers may change it.
decode = json.JSONDecoder().decode


def copied(value: Any) -> Any:
    """Return a deep copy of JSON-like data as dicts and lists; values of other types are kept as they are."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return {key: copied(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [copied(element) for element in value]
    return value


def _well_formed(value: Any) -> bool:
    """Check for faults that the encoder accepts: keys that it turns into strings, and nesting too deep to read."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for element in level:
            children: Iterable[Any] = ()
            if isinstance(element, dict):
                for key in element:
                    if type(key) is not str and not isinstance(key, str):
                        return False
                children = element.values()
            elif isinstance(element, list | tuple):
                children = element
            for child in children:
                if type(child) not in _SCALARS and isinstance(child, dict | list | tuple):
                    below.append(child)  # noqa: PERF401 - twice as fast as a comprehension where most lists are short
        if not below:
            return True
        level = below
    return False


def _refusal(where: str, value: Any, error: Exception | None = None) -> str:
    path, what = next(find_faults(value), ("$", f"something that JSON refuses ({error})"))
    return f"{where} can't be written as JSON: {path} is {what}; JSON carries {_CAN_CARRY}"


def find_faults(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the path ($.a[3].b) and a description of everything in `value` that `encode` refuses, in reading order."""
    pending: list[tuple[str, Any, tuple[int, ...]]] = [("$", value, ())]
    while pending:
        path, element, around = pending.pop()
        if isinstance(element, BaseModel) or _is_dataclass(element):
            try:
                element = _write_model(element)
            except (TypeError, ValueError, RecursionError) as error:
                yield path, f"a {_type_name(element)} that pydantic can't write ({str(error).partition(chr(10))[0]})"
                continue
        fault = _scalar_fault(element)
        if fault is not None:
            yield path, fault
        elif isinstance(element, dict | list | tuple):
            if id(element) in around:
                yield path, "a container that holds itself"
                continue
            if len(around) >= MAX_DEPTH:
                yield path[:100] + "…", f"nested more than {MAX_DEPTH} levels deep"
                continue
            inside = (*around, id(element))
            if isinstance(element, dict):
                yield from (
                    (path, f"a dict with a key of type {_type_name(key)}")
                    for key in element
                    if not isinstance(key, str)
                )
                children = [(path + _step(key), child, inside) for key, child in element.items()]
            else:
                children = [(f"{path}[{index}]", child, inside) for index, child in enumerate(element)]
            pending.extend(reversed(children))


def _scalar_fault(element: Any) -> str | None:
    if isinstance(element, float):
        return None if math.isfinite(element) else "a number that is not finite"
    if element is None or isinstance(element, str | bool | dict | list | tuple):
        return None
    if isinstance(element, int):
        try:
            int.__repr__(element)
        except ValueError:
            return "an integer of too many digits"
        return None
    return f"a {_type_name(element)}"


def _step(key: Any) -> str:
    text = str(key)
    return f".{text}" if _PLAIN_KEY.fullmatch(text) else f"[{text[:100]!r}]"


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
