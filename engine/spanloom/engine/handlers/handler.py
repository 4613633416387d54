"""The handler of a node type: its signature, compiled once, and the arguments that are made for it from data."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from spanloom.engine.errors import ConfigurationError, PermanentError
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.payload import copied, decode, find_faults
from spanloom.engine.wording import did_you_mean, problem_sentences, quoted_list
from spanloom.engine.workflow.definitions import INITIAL, Node

__all__ = ["Handler", "data_text"]

_CONTEXT_ANNOTATION = re.compile(r"(\w+\.)*NodeContext").fullmatch
_STRICT = ConfigDict(strict=True)


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    annotation: Any
    required: bool
    positional: bool

    @property
    def is_context(self) -> bool:
        annotation = self.annotation
        named_so = isinstance(annotation, str) and _CONTEXT_ANNOTATION(annotation) is not None
        return self.name == "ctx" or annotation is NodeContext or named_so


class Handler:
    """A registered function with its compiled signature. It does not call the function.

    The function takes `(ctx)`, `(data)`, `(data, ctx)`, nothing, or named inputs, a parameter each. The context goes to
    the parameter that is named `ctx` or annotated NodeContext. Data goes to the first other parameter, to a
    keyword-only one only if it has no default. All others keep their defaults.

    Data is validated against an annotation from its JSON text, in pydantic's strict JSON mode: 1 is a float, "1" is no
    int, "2026-01-01" is a date. Pydantic models, also nested ones, follow their own config. Any, or no annotation,
    costs nothing.
    """

    __slots__ = (
        "_adapters",
        "_context",
        "_data",
        "_parameters",
        "_required",
        "config_model",
        "function",
        "is_async",
        "name",
        "node_type",
    )

    def __init__(
        self, node_type: str, function: Callable[..., Any], config_model: type[BaseModel] | None = None
    ) -> None:
        """Read the signature. Raises ConfigurationError for one that a node can't have."""
        if not callable(function):
            raise ConfigurationError(f"the handler of node type {node_type!r} must be a function, not {function!r}")
        self.node_type = node_type
        self.function = function
        self.config_model = config_model
        self.name = _describe(function)
        self.is_async = inspect.iscoroutinefunction(_plain(function))
        parameters = _parameters(function, self.name)
        contexts = [parameter.name for parameter in parameters if parameter.is_context]
        if len(contexts) > 1:
            raise ConfigurationError(f"handler {self.name} takes its context twice: {quoted_list(contexts)}")
        self._context = contexts[0] if contexts else None
        self._parameters = {parameter.name: parameter for parameter in parameters if not parameter.is_context}
        self._data = next(
            (parameter.name for parameter in self._parameters.values() if parameter.positional or parameter.required),
            None,
        )
        self._required = frozenset(parameter.name for parameter in self._parameters.values() if parameter.required)
        self._adapters: dict[str, TypeAdapter[Any] | None] = {}  # at first use: annotations may name later types

    def __repr__(self) -> str:
        return f"<Handler {self.name} of node type {self.node_type!r}>"

    def arguments(self, node: Node, ctx: NodeContext) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments for `function`.

        Raises PermanentError if the data does not fit. The error names the node and the parameter, without the data.
        """
        values: dict[str, Any] = {}
        if ctx.data_json is None and node.inputs and node.inputs[0].name is not None:
            self._name_inputs(values, node, ctx)
        elif self._data is not None:
            values[self._data] = self._value(self._data, data_text(node, ctx), node)
        if not self._required <= values.keys():
            self._refuse(node)
        if self._context is not None:
            values[self._context] = ctx
        return (), values

    def config(self, node: Node) -> Any:
        """Return the value of `ctx.config`: an instance of the type's config model, or a dict for this call alone.

        Raises PermanentError if the config does not fit the model (it was registered with another one).
        """
        if self.config_model is None:
            return copied(node.config)
        try:
            return _config(self.config_model, node)
        except ValidationError as error:
            misfits = "; ".join(problem_sentences(error))
            raise PermanentError(f"node {node.id!r}: its config does not fit {self.name}: {misfits}") from None

    def problems(self, node: Node) -> Iterator[str]:
        """Yield the problems that keep this handler from running `node`: in config, inputs or annotations."""
        if self.config_model is not None and next(find_faults(node.config), None) is None:
            try:
                _config(self.config_model, node)
            except ValidationError as error:
                yield from (f"its config does not fit: {sentence}" for sentence in problem_sentences(error))
        yield from self._misfits(node)
        for name in self._fed(node):
            try:
                self._adapter(name)
            except ConfigurationError as error:
                yield str(error)

    def _fed(self, node: Node) -> list[str]:
        """Return the names of the parameters that get data."""
        named = [edge.name for edge in node.inputs if edge.name is not None]
        if named:
            return [name for name in named if name in self._parameters]
        return [] if self._data is None else [self._data]

    def _misfits(self, node: Node) -> Iterator[str]:
        names = [edge.name for edge in node.inputs if edge.name is not None]
        for name in names:
            if name == self._context:
                yield f"its input can't be named {name!r}: that is the context of its handler {self.name}"
            elif name not in self._parameters:
                hint = did_you_mean(name, self._parameters) or f" (it takes {quoted_list(self._parameters) or 'none'})"
                yield f"its handler {self.name} has no parameter {name!r}{hint}"
        fed = self._fed(node)
        starved = [
            parameter.name
            for parameter in self._parameters.values()
            if parameter.required and parameter.name not in fed
        ]
        if starved:
            needed = quoted_list(starved)
            yield f"its handler {self.name} also needs {needed}; write its inputs as {{parameter: node id}}"

    def _name_inputs(self, values: dict[str, Any], node: Node, ctx: NodeContext) -> None:
        for edge in node.inputs:
            parameter = self._parameters.get(edge.name or "")
            if parameter is None:
                self._refuse(node)
            if edge.node == INITIAL or edge.node in ctx.results_json:
                text = ctx.input_json if edge.node == INITIAL else ctx.results_json[edge.node]
                values[parameter.name] = self._value(parameter.name, text, node)
            elif parameter.required:  # the edge from that parent was not taken
                values[parameter.name] = None

    def _value(self, parameter: str, text: str, node: Node) -> Any:
        try:
            adapter = self._adapter(parameter)
            return decode(text) if adapter is None else _fitted(adapter, text)
        except ConfigurationError as error:
            raise PermanentError(f"node {node.id!r}: {error}") from error
        except ValidationError as error:
            misfits = "; ".join(problem_sentences(error))
            raise PermanentError(  # from None: pydantic's own error, in a stored traceback, would show the data
                f"node {node.id!r}: data does not fit parameter {parameter!r} of {self.name}: {misfits}"
            ) from None

    def _refuse(self, node: Node) -> NoReturn:
        # Registration refuses such a node: the function has changed since.
        raise PermanentError(f"node {node.id!r}: {'; '.join(self._misfits(node))}")

    def _adapter(self, name: str) -> TypeAdapter[Any] | None:
        try:
            return self._adapters[name]
        except KeyError:
            made = self._adapters[name] = _new_adapter(self._parameters[name], self.function, self.name)
            return made


def data_text(node: Node, ctx: NodeContext) -> str:
    """Return a node's data as JSON text.

    It is the result of the node's mapping or the element of its item, if there is one. Otherwise an entry node gets the
    initial data, a node with one parent gets its data, and a node with several gets `{parent id: data}` of those taken.
    """
    if ctx.data_json is not None:
        return ctx.data_json
    inputs = node.inputs
    if not inputs:
        return ctx.input_json
    if len(inputs) == 1:
        return ctx.results_json[inputs[0].node]
    taken = [parent for parent in node.parents if parent in ctx.results_json]
    return "{" + ",".join([f'"{parent}":{ctx.results_json[parent]}' for parent in taken]) + "}"  # ids need no escape


def _fitted(adapter: TypeAdapter[Any], text: str) -> Any:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] != "json_invalid" or first["loc"]:
            raise
    return adapter.validate_python(decode(text))  # lone surrogates and deep nesting are too much for pydantic's parser


def _config(model: type[BaseModel], node: Node) -> BaseModel:
    return model.model_validate_json(json.dumps(node.config))


def _new_adapter(parameter: _Parameter, function: Callable[..., Any], handler: str) -> TypeAdapter[Any] | None:
    """Build the validator of one parameter; None if it needs none."""
    if parameter.annotation is inspect.Parameter.empty:
        return None
    names = getattr(inspect.unwrap(_plain(function)), "__globals__", {})
    alone = SimpleNamespace(__annotations__={"it": parameter.annotation})  # the other annotations may not be resolvable
    try:
        hint = get_type_hints(alone, globalns=names, include_extras=True)["it"]
        if hint is Any or hint is object:
            return None
        adapter = _strict_adapter(hint)
        adapter.rebuild(raise_errors=True)  # a model may name types that did not exist when it was defined
    except (NameError, AttributeError, TypeError, SyntaxError, PydanticUserError) as error:
        why = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"the annotation of parameter {parameter.name!r} of {handler} can't be used ({why}); "
            f"name a type that pydantic knows and that is defined or imported at module level"
        ) from error
    return adapter


def _strict_adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=_STRICT)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":  # models, dataclasses and typed dicts bring their own config
            raise
    return TypeAdapter(hint)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the code, behind partials, wrappers, methods and callable objects."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif inspect.isroutine(function) or isinstance(function, type):
            return function
        else:
            function = type(function).__call__


def _describe(function: Callable[..., Any]) -> str:
    plain = _plain(function)
    return f"{plain.__module__}.{plain.__qualname__}"


def _parameters(function: Callable[..., Any], name: str) -> list[_Parameter]:
    plain = _plain(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise ConfigurationError(f"handler {name} is a generator; return the data instead of yielding it")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the signature of handler {name} can't be read ({error}); wrap it in a function"
        ) from error
    found: list[_Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"parameter {str(parameter).partition(':')[0]!r} of handler {name} is {parameter.kind.description}; "
                f"data is passed by name, so write (data, ctx) or a parameter for each input"
            )
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        found.append(_Parameter(parameter.name, parameter.annotation, parameter.default is parameter.empty, positional))
    return found
