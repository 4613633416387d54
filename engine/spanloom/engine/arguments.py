"""The arguments of public calls, checked once against the call's own annotations, before it does anything.

`checked` puts the check in front of a function, `checked_calls` in front of every public method of a class. The types
are strict: no value is converted. `Annotated` adds rules to a type, such as Version or Text below. A wrong argument
raises InvalidArgument.
"""

from __future__ import annotations

import functools
import inspect
import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar, get_type_hints

from spanloom.engine.argument_checks import Between, Check, Rule, check_of, find_fault, options_of
from spanloom.engine.errors import ConfigurationError, InvalidArgument
from spanloom.engine.limits import MAX_IDEMPOTENCY_KEY, MAX_METADATA_KEY, MAX_METADATA_VALUE
from spanloom.engine.wording import did_you_mean

__all__ = [
    "LABELS",
    "Bound",
    "Count",
    "Duration",
    "FilePath",
    "Json",
    "JsonList",
    "JsonObject",
    "Key",
    "Labels",
    "Limit",
    "Revision",
    "Seconds",
    "Text",
    "Timeout",
    "Url",
    "Uuid",
    "Version",
    "check_methods",
    "check_value",
    "checked",
    "checked_calls",
    "is_text",
    "seconds_of",
]

C = TypeVar("C", bound=type)
P = ParamSpec("P")
R = TypeVar("R")

_LARGEST = 2**31 - 1
_LONGEST_SECONDS = 1e10


def is_text(value: object) -> bool:
    """Return whether a value is text that every store holds: no NUL in it, and no half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return "\x00" not in value
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in value


def _is_duration(value: object) -> bool:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return type(seconds) in (int, float) and 0 <= seconds < _LONGEST_SECONDS  # type: ignore[operator]  # a number


def _is_timeout(value: object) -> bool:
    return _is_duration(value) or (type(value) in (int, float) and value >= 0)  # type: ignore[operator]  # a number


def _is_json(value: object, kind: type = object) -> bool:
    try:
        return is_text(value) and isinstance(json.loads(value, parse_constant=_refuse), kind)  # type: ignore[arg-type]  # text
    except (ValueError, RecursionError):
        return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(uuid.UUID(value))
    except ValueError:
        return False


def _is_label(value: object, longest: int) -> bool:
    return is_text(value) and len(value) <= longest  # type: ignore[arg-type]  # it is text


def _are_labels(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(_is_label(key, MAX_METADATA_KEY) and _is_label(text, MAX_METADATA_VALUE) for key, text in value.items())


_TEXT = "text without NUL and lone surrogates"
_KEY = f"{_TEXT}, of 1 to {MAX_IDEMPOTENCY_KEY} characters"
_SECONDS = "seconds, not negative, and of less than three centuries"
_TIMEOUT = "seconds or a timedelta, not negative"
_DURATION = "seconds or a timedelta, not negative, and of less than three centuries"

Text = Annotated[str, Rule(is_text, _TEXT)]
FilePath = Annotated[str, Rule(lambda value: isinstance(value, str) and "\x00" not in value, "a path")]
Url = Annotated[str, Rule(lambda value: isinstance(value, str), "a URL")]
Key = Annotated[str, Rule(lambda value: _is_label(value, MAX_IDEMPOTENCY_KEY) and value != "", _KEY)]
Uuid = Annotated[str, Rule(_is_uuid, "a UUID")]
Json = Annotated[str, Rule(_is_json, "JSON text")]
JsonObject = Annotated[str, Rule(functools.partial(_is_json, kind=dict), "JSON text of an object")]
JsonList = Annotated[str, Rule(functools.partial(_is_json, kind=list), "JSON text of a list")]
LABELS = Rule(
    _are_labels,
    "texts by text, such as {'customer': '17'}; "
    f"keys of at most {MAX_METADATA_KEY} characters, values of {MAX_METADATA_VALUE}",
)
Labels = Annotated[Mapping[str, str], LABELS]
Version = Annotated[int, Between(1, _LARGEST)]
Count = Annotated[int, Between(0, _LARGEST)]
Bound = Annotated[int, Between(1, _LARGEST)]
Limit = Annotated[int, Between(1, 1000)]  #: of one page; its cursor leads to the next
Duration = Annotated[float | timedelta, Rule(_is_duration, _DURATION)]
Seconds = Annotated[float, Rule(lambda value: type(value) in (int, float) and 0 <= value < _LONGEST_SECONDS, _SECONDS)]
Revision = Count | None  #: that an execution is expected to have
Timeout = Annotated[float | timedelta, Rule(_is_timeout, _TIMEOUT)] | None  #: None: without limit


def seconds_of(duration: float | timedelta | None) -> float | None:
    """Return a duration that was checked in seconds. None, and an endless one, is None."""
    if duration is None:
        return None
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    return float(seconds) if seconds <= _LONGEST_SECONDS else None


def checked(
    function: Callable[P, R], declared: Callable[..., Any] | None = None, *, options: bool = True
) -> Callable[P, R]:
    """Return a function that first checks its arguments, by its own annotations or those of `declared`."""
    arguments = _Arguments(declared or function, options=options)
    call: Any = (_async_call if inspect.iscoroutinefunction(function) else _call)(function, arguments)
    functools.update_wrapper(call, function)
    call.checks_arguments = True
    return call  # type: ignore[no-any-return]  # it takes and returns the same


def _call(function: Callable[..., Any], arguments: _Arguments) -> Callable[..., Any]:
    check = arguments.check

    def call(*args: Any, **kwargs: Any) -> Any:
        check(args, kwargs)
        return function(*args, **kwargs)

    return call


def _async_call(function: Callable[..., Any], arguments: _Arguments) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        arguments.check(args, kwargs)
        return await function(*args, **kwargs)

    return call


def checked_calls(*, but: Collection[str] = (), options: bool = True) -> Callable[[C], C]:
    """Check the arguments of the constructor and of every public method that a class defines, except those in `but`.

    Without `options`, keyword arguments that go by `**` are left to the class.
    """

    def decorate(cls: C) -> C:
        for name, function in list(_public(cls)):
            if name not in but:
                setattr(cls, name, checked(function, options=options))
        return cls

    return decorate


def check_value(name: str, value: object, kind: type) -> None:
    """Raise InvalidArgument unless a value is of a type, with all that is checked within it."""
    check = check_of(kind)
    if check is not None and not check.accepts(value):
        raise InvalidArgument(*find_fault(check, name, value))


def check_methods(cls: type, declared: Mapping[str, Callable[..., Any]]) -> None:
    """Check the arguments of the methods that a class implements, by the annotations of their declarations."""
    for name, declaration in declared.items():
        method = getattr(cls, name)
        if not getattr(method, "__isabstractmethod__", False) and not hasattr(method, "checks_arguments"):
            setattr(cls, name, checked(method, declaration))


def _public(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, attribute in vars(cls).items():
        public = inspect.isfunction(attribute) and (name == "__init__" or not name.startswith("_"))
        if public and not hasattr(attribute, "__wrapped__"):  # a form of another method, which checks
            yield name, attribute


class _Arguments:
    """The checks of one function's arguments, made at its first call: annotations may name later definitions."""

    __slots__ = ("_by_name", "_checks_options", "_declared", "_names", "_options", "_positional")

    def __init__(self, declared: Callable[..., Any], *, options: bool) -> None:
        self._declared = declared
        self._checks_options = options
        self._positional: tuple[tuple[int, Callable[[Any], bool]], ...] | None = None
        self._by_name: dict[str, Check] = {}
        self._names: tuple[str, ...] = ()
        self._options: dict[str, Check | None] | None = None

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise InvalidArgument for the first wrong one, and ConfigurationError for an unknown option."""
        positional = self._positional
        if positional is None:
            positional = self._prepare()
        given = len(args)
        for position, accepts in positional:
            if position < given and not accepts(args[position]):
                self._refuse(self._names[position], args[position])
        for name, value in kwargs.items():
            check = self._by_name.get(name)
            if check is not None:
                if not check.accepts(value):
                    self._refuse(name, value)
            elif self._options is not None and name not in self._names and name not in self._options:
                known = did_you_mean(name, self._options)
                raise ConfigurationError(f"{self._declared.__name__} takes no option {name!r}{known}")

    def _prepare(self) -> tuple[tuple[int, Callable[[Any], bool]], ...]:
        hints = get_type_hints(self._declared, include_extras=True)
        positional: list[tuple[int, Callable[[Any], bool]]] = []
        names: list[str] = []
        options: dict[str, Check | None] | None = None
        by_name: dict[str, Check] = {}
        every: list[str] = []
        for name, parameter in inspect.signature(self._declared).parameters.items():
            check = check_of(hints.get(name, Any))
            if parameter.kind is parameter.VAR_KEYWORD:
                options = options_of(hints.get(name, Any)) if self._checks_options else None
                by_name |= {option: check for option, check in (options or {}).items() if check is not None}
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                continue
            every.append(name)
            if check is not None:
                by_name[name] = check
            if parameter.kind is not parameter.KEYWORD_ONLY:
                if check is not None:
                    positional.append((len(names), check.accepts))
                names.append(name)
        self._by_name, self._options = by_name, options
        self._names = (*names, *(name for name in every if name not in names))
        self._positional = tuple(positional)
        return self._positional

    def _refuse(self, name: str, value: object) -> NoReturn:
        raise InvalidArgument(*find_fault(self._by_name[name], name, value))
