"""The signature of a handler: the parameters that can be fed, behind decorators, partials, methods and objects."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter
from typing import Any

from spanloom.engine.errors import ConfigurationError

__all__ = ["Signature", "describe", "is_async", "plain_function", "read_signature"]

_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_LATER_NAMES: dict[str, Any] = {}  # annotations may name types that are defined later
if sys.version_info >= (3, 14):
    import annotationlib

    _LATER_NAMES["annotation_format"] = annotationlib.Format.FORWARDREF
_ANYTHING = inspect.Signature([Parameter("args", _VARIADIC[0]), Parameter("kwargs", _VARIADIC[1])])


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters of a handler, and the modules in which their annotations are to be read, innermost first."""

    parameters: Sequence[Parameter]
    scopes: Sequence[dict[str, Any]]
    by_position: bool = False  #: a decorator takes no names: what is not keyword-only is passed by position
    by_name: bool = False  #: a decorator takes nothing by position

    def over(self, parameters: Sequence[Parameter]) -> Signature:
        """Return this signature with other parameters."""
        return replace(self, parameters=parameters)


def read_signature(function: Callable[..., Any]) -> Signature:
    """Return the parameters that can be passed to a handler.

    A decorator counts with its own. Where it takes anything (`*args`, `**kwargs`), the parameters are those
    of the function that it wraps (`__wrapped__`). Raises ConfigurationError for a signature that a node can't have.
    """
    name = describe(function)
    plain = plain_function(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise ConfigurationError(f"handler {name} is a generator; return the data instead of yielding it")
    signature = _read(function, name, ())
    for parameter in signature.parameters:
        if parameter.kind not in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"parameter {str(parameter).partition(':')[0]!r} of handler {name} is {parameter.kind.description}; "
                f"data is passed by name, so write (data, ctx) or a parameter for each input"
            )
    return signature


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a call makes a coroutine for certain; another function may still return something to await."""
    return inspect.iscoroutinefunction(plain_function(function))


def plain_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the code, behind partials, methods and callable objects; a decorator's is its own."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function) or isinstance(function, staticmethod):
            function = function.__func__
        elif inspect.isroutine(function) or isinstance(function, type):
            return function
        else:
            function = type(function).__call__


def describe(function: Callable[..., Any]) -> str:
    """Return the name of a handler with its module, as errors show it."""
    plain = plain_function(function)
    owner = getattr(plain, "__objclass__", None)  # of what is written in C, which may name no module
    module = getattr(plain, "__module__", None) or getattr(owner, "__module__", None)
    name = getattr(plain, "__qualname__", None) or getattr(plain, "__name__", None) or type(plain).__qualname__
    return f"{module}.{name}" if module else str(name)


def _read(function: Any, name: str, around: tuple[object, ...]) -> Signature:
    if any(function is outer for outer in around):
        raise ConfigurationError(f"handler {name} wraps itself (__wrapped__); the signature can't be read")
    around = (*around, function)
    if isinstance(function, functools.partial):
        return _bind(function, _read(function.func, name, around))
    if inspect.ismethod(function):
        whole = _read(function.__func__, name, around)
        takes_any = not whole.parameters or whole.parameters[0].kind is Parameter.VAR_POSITIONAL
        return whole if takes_any else whole.over(whole.parameters[1:])
    own = _own(function, name, around)
    wrapped = getattr(function, "__wrapped__", None)
    if callable(wrapped) and any(parameter.kind in _VARIADIC for parameter in own.parameters):
        return _merge(function, own, _read(wrapped, name, around), name)
    return own


def _own(function: Any, name: str, around: tuple[object, ...]) -> Signature:
    """Return the parameters of a callable itself, whatever it wraps."""
    is_object = not (inspect.isroutine(function) or isinstance(function, type))
    if is_object and not isinstance(getattr(function, "__signature__", None), inspect.Signature):
        call = inspect.getattr_static(type(function), "__call__").__get__(function, type(function))
        return _read(call, name, around)
    try:
        found = inspect.signature(function, follow_wrapped=False, **_LATER_NAMES)
    except (TypeError, ValueError) as error:
        if not callable(getattr(function, "__wrapped__", None)):
            raise ConfigurationError(
                f"the signature of handler {name} can't be read ({error}); wrap it in a function"
            ) from error
        found = _ANYTHING  # of a wrapper in C, such as that of functools.lru_cache
    return Signature(list(found.parameters.values()), _scopes(function))


def _scopes(function: Any) -> list[dict[str, Any]]:
    names = getattr(function, "__globals__", None)
    if names is None:
        names = getattr(sys.modules.get(getattr(function, "__module__", None) or ""), "__dict__", None)
    return [] if names is None else [names]


def _merge(function: Any, own: Signature, inner: Signature, name: str) -> Signature:
    """Return a decorator's own parameters, and those that its wrapped function takes through it."""
    kinds = {parameter.kind for parameter in own.parameters}
    explicit = [parameter for parameter in own.parameters if parameter.kind not in _VARIADIC]
    taken = {parameter.name for parameter in explicit}
    before = [parameter for parameter in explicit if parameter.kind is not Parameter.KEYWORD_ONLY]
    passed = [
        parameter
        for number, parameter in enumerate(inner.parameters)
        if parameter.name not in taken and (number >= len(before) or parameter.kind is Parameter.KEYWORD_ONLY)
    ]
    by_position, by_name = inner.by_position or _dispatches(function), inner.by_name
    fed = any(parameter.kind is Parameter.POSITIONAL_OR_KEYWORD for parameter in passed)
    if Parameter.VAR_KEYWORD not in kinds:
        by_position = by_position or fed
        unreachable = [parameter for parameter in passed if parameter.kind is Parameter.KEYWORD_ONLY]
        if starved := [parameter.name for parameter in unreachable if parameter.default is parameter.empty]:
            raise ConfigurationError(
                f"a decorator of handler {name} takes no keywords, and so can't pass {starved[0]!r} on; "
                f"let it take *args and **kwargs"
            )
        passed = [parameter for parameter in passed if parameter not in unreachable]
    if Parameter.VAR_POSITIONAL not in kinds:
        by_name = by_name or fed
    if by_position and by_name:
        raise ConfigurationError(
            f"one decorator of handler {name} takes nothing by name, another one nothing by position; "
            f"let both take *args and **kwargs"
        )
    behind = [parameter for parameter in explicit if parameter.kind is Parameter.KEYWORD_ONLY]
    first = [parameter for parameter in passed if parameter.kind not in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD)]
    rest = [parameter for parameter in passed if parameter not in first]
    return Signature([*before, *first, *behind, *rest], [*inner.scopes, *own.scopes], by_position, by_name)


def _dispatches(function: Any) -> bool:
    """Return whether it is a functools.singledispatch, which looks at its first positional argument."""
    return all(hasattr(function, name) for name in ("dispatch", "register", "registry"))


def _bind(bound: functools.partial[Any], whole: Signature) -> Signature:
    """Return the parameters that a partial leaves open."""

    def stand_in() -> None: ...

    stand_in.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # which inspect reads
        whole.parameters, __validate_parameters__=False
    )
    try:
        left = inspect.signature(functools.partial(stand_in, *bound.args, **bound.keywords))
    except ValueError as error:
        raise ConfigurationError(
            f"handler {describe(bound)} can't be called: its functools.partial binds what the function does not take"
        ) from error
    return whole.over(list(left.parameters.values()))
