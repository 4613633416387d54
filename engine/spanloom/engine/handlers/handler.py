"""The handler of a node type: its signature, compiled once, and the arguments that are made for it from data."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from spanloom.engine.errors import ConfigurationError, PayloadRejected, PermanentError
from spanloom.engine.handlers.annotations import UNUSABLE, is_context, resolve
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.handlers.json_type import JsonType, read_json, strict_adapter
from spanloom.engine.handlers.signature import describe, is_async, plain_function, read_signature
from spanloom.engine.payload import copied, decode, encode, find_faults
from spanloom.engine.wording import did_you_mean, problem_sentences, quoted_list
from spanloom.engine.workflow.definitions import INITIAL, Node

__all__ = ["Executor", "Handler", "data_text"]

Executor = Literal["thread", "process"]
_AWAITABLE = (Awaitable, Coroutine)
_PLAIN = frozenset({dict, str, int, float, bool, type(None)})


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    annotation: Any
    default: Any
    positional: bool

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@functools.lru_cache(maxsize=256)
def _adapter_of(kind: Any) -> TypeAdapter[Any]:
    return strict_adapter(kind)


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
        "_by_position",
        "_context",
        "_data",
        "_parameters",
        "_required",
        "_scopes",
        "config_model",
        "executor",
        "function",
        "is_async",
        "name",
        "node_type",
    )

    def __init__(
        self,
        node_type: str,
        function: Callable[..., Any],
        config_model: type[BaseModel] | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Read the signature. Raises ConfigurationError for one that a node can't have."""
        if not callable(function):
            raise ConfigurationError(f"the handler of node type {node_type!r} must be a function, not {function!r}")
        self.node_type = node_type
        self.function = function
        self.config_model = config_model
        if executor not in (None, "thread", "process"):
            raise ConfigurationError(
                f"the executor of node type {node_type!r} is 'thread' or 'process', not {executor!r}"
            )
        self.executor = executor  #: where it runs; None: as the worker has it
        self.name = describe(function)
        self.is_async = is_async(function)
        signature = read_signature(function)
        self._scopes = signature.scopes
        parameters = [_parameter(parameter) for parameter in signature.parameters]
        contexts = [parameter.name for parameter in parameters if self._is_context(parameter)]
        if len(contexts) > 1:
            raise ConfigurationError(f"handler {self.name} takes its context twice: {quoted_list(contexts)}")
        self._context = contexts[0] if contexts else None
        self._parameters = {parameter.name: parameter for parameter in parameters if parameter.name not in contexts}
        self._by_position = [it for it in parameters if it.positional] if signature.by_position else []
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
        return self._positioned(values) if self._by_position else (), values

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

    def encode_result(self, data: Any, where: str, limit: int) -> str:
        """Return the function's result as JSON text, written by `encode` or else by its return annotation.

        Of the forms of a model or dataclass one is taken that the same type reads back, if there is one. Raises
        PayloadRejected if the result can't be written.
        """
        try:
            text = encode(data, where, limit)
            return text if type(data) in _PLAIN else self._read_back(data, text, where, limit)
        except PayloadRejected as error:
            refused = error
        try:
            kind = self._result_type()
            if kind is not None:
                return kind.encode(data, where, limit)
        except (ConfigurationError, ValidationError, PydanticUserError):  # the annotation is no help for this data
            kind = None
        hint = "; annotate what the handler returns to have it written by pydantic" if kind is None else ""
        raise PayloadRejected(f"{refused}{hint}")

    def _read_back(self, data: Any, text: str, where: str, limit: int) -> str:
        first = data[0] if isinstance(data, list | tuple) and data else data
        if not isinstance(first, BaseModel) and not is_dataclass(first):
            return text
        try:
            kind = JsonType(_adapter_of(data.__class__)) if first is data else self._result_type()
            found = None if kind is None else kind.lossless(data, where, limit)
        except Exception:  # the annotation is no help for this data, or a validator of the user's fails otherwise
            found = None
        return text if found is None else found

    def _result_type(self) -> JsonType | None:
        if "return" not in self._adapters:  # no parameter has that name
            try:
                annotations = getattr(plain_function(self.function), "__annotations__", {})
            except NameError:  # since Python 3.14 they are evaluated when they are read
                return None
            annotation = annotations.get("return", inspect.Parameter.empty)
            self._adapters["return"] = self._new_adapter(annotation, "the result")
        adapter = self._adapters["return"]
        return None if adapter is None else JsonType(adapter)

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
            return decode(text) if adapter is None else read_json(adapter, text)
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

    def _positioned(self, values: dict[str, Any]) -> tuple[Any, ...]:
        """Take the values that are passed by position out of `values`, up to the last that is there."""
        wanted = self._by_position
        while wanted and wanted[-1].name not in values:
            wanted = wanted[:-1]
        return tuple([values.pop(parameter.name, parameter.default) for parameter in wanted])

    def _is_context(self, parameter: _Parameter) -> bool:
        try:
            return parameter.name == "ctx" or is_context(parameter.annotation, self._scopes)
        except ConfigurationError as error:
            raise ConfigurationError(f"parameter {parameter.name!r} of handler {self.name} takes {error}") from None

    def _adapter(self, name: str) -> TypeAdapter[Any] | None:
        try:
            return self._adapters[name]
        except KeyError:
            made = self._adapters[name] = self._new_adapter(self._parameters[name].annotation, f"parameter {name!r}")
            return made

    def _new_adapter(self, annotation: Any, what: str) -> TypeAdapter[Any] | None:
        """Build the validator of an annotation; None if it needs none."""
        if annotation is inspect.Parameter.empty:
            return None
        try:
            hint = resolve(annotation, self._scopes)
            if get_origin(hint) in _AWAITABLE and get_args(hint):
                hint = get_args(hint)[-1]
            if hint is Any or hint is object:
                return None
            adapter = strict_adapter(hint)
            adapter.rebuild(raise_errors=True)  # a model may name types that did not exist when it was defined
        except (*UNUSABLE, PydanticUserError) as error:
            why = str(error).partition("\n")[0]
            raise ConfigurationError(
                f"the annotation of {what} of {self.name} can't be used ({why}); "
                f"name a type that pydantic knows and that is defined or imported at module level"
            ) from error
        return adapter


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


def _config(model: type[BaseModel], node: Node) -> BaseModel:
    return model.model_validate_json(json.dumps(node.config))


def _parameter(given: inspect.Parameter) -> _Parameter:
    return _Parameter(given.name, given.annotation, given.default, given.kind is given.POSITIONAL_OR_KEYWORD)
