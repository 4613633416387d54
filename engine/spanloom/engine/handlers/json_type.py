"""A type whose values are read from JSON and written as JSON that the same type reads back as the same values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from spanloom.engine.errors import PayloadRejected
from spanloom.engine.payload import decode, encode, masked_secret, plain_text
from spanloom.engine.wording import location

__all__ = ["JsonType", "read_json", "strict_adapter"]

_STRICT = ConfigDict(strict=True)
_REMEDY = "start with JSON data instead, or give the type a serializer whose JSON it reads back"


def strict_adapter(hint: Any) -> TypeAdapter[Any]:
    """Return the adapter of a type in pydantic's strict mode; models, also nested ones, follow their own config."""
    try:
        return TypeAdapter(hint, config=_STRICT)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":  # models, dataclasses and typed dicts bring their own config
            raise
    return TypeAdapter(hint)


def read_json(adapter: TypeAdapter[Any], text: str) -> Any:
    """Return the value of JSON text that a type's adapter has validated. Raises ValidationError."""
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] != "json_invalid" or first["loc"]:
            raise
    return adapter.validate_python(decode(text))  # lone surrogates and deep nesting are too much for pydantic's parser


class JsonType:
    """A type that pydantic knows, with JSON as the form in which its values are kept.

    A value is written so that nothing is lost: its text is read again, and compared. Of the forms that pydantic offers
    (as models write themselves, without computed fields, by field names) the first that comes back equal is taken.
    """

    def __init__(self, adapter: TypeAdapter[Any]) -> None:
        self._adapter = adapter

    def read(self, value: Any) -> Any:
        """Return a value of the type for JSON data, or for a value of the type. Raises ValidationError."""
        text = plain_text(value)
        return self._adapter.validate_python(value) if text is None else read_json(self._adapter, text)

    def encode(self, value: Any, where: str, limit: int) -> str:
        """Return JSON data, or a value of the type, as JSON text that the type reads back.

        Defaults are filled in and values converted, as the type does it. JSON data whose value can't be written without
        a loss (a SecretStr is written as asterisks, an excluded field is not written) is kept as it was given.

        Raises ValidationError for data that does not fit, and PayloadRejected for a value that JSON can't carry or the
        type would not read back, both without the data.
        """
        given = plain_text(value)
        fitted = self.read(value)
        refusal = ""
        for form in (_as_it_is, self._by_aliases, self._by_names, self._by_validation_aliases):
            try:
                text = encode(form(fitted), where, limit)
            except PayloadRejected as error:
                refusal = refusal or str(error)
                continue
            except (TypeError, ValueError, RecursionError) as error:
                refusal = f"{where} can't be written as JSON: {_reason(error)}; {_REMEDY}"
                continue
            lost = None if text == given else self._lost(fitted, text)
            if lost is None:
                return text
            refusal = f"{where} would not be read back from JSON as it is: {lost} differs; {_REMEDY}"
        if given is not None:
            return encode(value, where, limit)
        raise PayloadRejected(refusal)

    def lossless(self, value: Any, where: str, limit: int) -> str | None:
        """Return a value of the type as JSON text that the type reads back; None if no form of it comes back equal."""
        for form in (_as_it_is, self._by_aliases, self._by_names, self._by_validation_aliases):
            try:
                text = encode(form(value), where, limit)
            except (PayloadRejected, TypeError, ValueError, RecursionError):
                continue
            if self._lost(value, text) is None:
                return text
        return None

    def _by_aliases(self, value: Any) -> Any:
        return self._dump(value, by_alias=True)

    def _by_names(self, value: Any) -> Any:
        return self._dump(value, by_alias=False)

    def _by_validation_aliases(self, value: Any) -> Any:
        return _renamed(value, self._dump(value, by_alias=False))

    def _dump(self, value: Any, *, by_alias: bool) -> Any:
        # No warnings: they would show the data.
        return self._adapter.dump_python(value, mode="json", by_alias=by_alias, round_trip=True, warnings=False)

    def _lost(self, value: Any, text: str) -> str | None:
        """Return the path of the first thing that is another one when `text` is read again; None if nothing is."""
        try:
            again = read_json(self._adapter, text)
            if _equal(value, again) and masked_secret(value, text) is None:  # fields may be left out of a comparison
                return None
            # What differs at each reading, such as an object without __eq__, says nothing.
            found = list(_differences(value, again, "$"))
            always = set(_differences(again, read_json(self._adapter, text), "$")) if found else ()
            return next((path for path in found if path not in always), None)
        except ValidationError as error:
            return "$." + location(error.errors(include_url=False, include_input=False)[0]["loc"])
        except RecursionError:
            return "$"


def _as_it_is(value: Any) -> Any:
    return value


def _reason(error: Exception) -> str:
    """Return why pydantic can't write a value, without the message of a serializer of the user's."""
    message = str(error).partition("\n")[0]
    return message.partition(":")[0] if message.startswith("Error calling function") else message


def _renamed(value: Any, dumped: Any) -> Any:
    """Return data that was dumped by field names, with the aliases by which models read their fields."""
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        fields = type(value).model_fields
        return {
            _read_as(fields[name], name) if name in fields else name: _renamed(getattr(value, name, None), written)
            for name, written in dumped.items()
        }
    if isinstance(value, dict) and isinstance(dumped, dict) and len(value) == len(dumped):
        pairs = zip(value.values(), dumped.items(), strict=True)
        return {name: _renamed(element, written) for element, (name, written) in pairs}
    if isinstance(value, list | tuple) and isinstance(dumped, list) and len(value) == len(dumped):
        return [_renamed(element, written) for element, written in zip(value, dumped, strict=True)]
    return dumped


def _read_as(field: FieldInfo, name: str) -> str:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
    return alias if isinstance(alias, str) else name


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    """Yield the paths at which two values differ; fields count, private attributes do not."""
    if one is other:
        return
    if isinstance(other, BaseModel) and isinstance(one, type(other)):
        for name in type(other).model_fields:
            yield from _differences(getattr(one, name), getattr(other, name), f"{path}.{name}")
        yield from _differences(one.model_extra, other.model_extra, path)
    elif dataclasses.is_dataclass(other) and isinstance(one, type(other)):
        for field in dataclasses.fields(other):
            yield from _differences(getattr(one, field.name), getattr(other, field.name), f"{path}.{field.name}")
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key, value in one.items():
            yield from _differences(value, other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and _alike(one, other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif not _equal(one, other):
        yield path


def _alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return type(one) is type(other) and len(one) == len(other)


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:
        return False
