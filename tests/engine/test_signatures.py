"""A handler's signature is read behind decorators, partials, methods and objects, or refused with a sentence."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

import pytest

import spanloom.engine as engine_package
from spanloom.engine import NodeContext, NodeRegistry
from spanloom.engine import NodeContext as Renamed
from spanloom.engine.errors import ConfigurationError
from spanloom.engine.handlers.handler import Handler
from spanloom.engine.workflow.definitions import Node
from support.case_ids import case_id

if TYPE_CHECKING:
    from spanloom import engine as only_for_checkers

MaybeContext = NodeContext | None
NODE = Node(id="n", type="t")


class NoRuntime:
    """What a node that only looks at its arguments needs of a worker."""

    log: Any = None
    cancelled = False

    def span(self, name: str, attributes: Any) -> Any:
        raise AssertionError("not used")

    def heartbeat(self) -> None:
        raise AssertionError("not used")


CONTEXT = NodeContext(
    execution_id="e1", workflow_id="w", version=1, node_id="n", runtime=NoRuntime(), input_json=json.dumps("data")
)


def call(function: Callable[..., Any], node: Node = NODE) -> Any:
    handler = Handler("t", function)
    assert list(handler.problems(node)) == []
    args, kwargs = handler.arguments(node, CONTEXT)
    return function(*args, **kwargs)


def both(data: Any, ctx: NodeContext) -> Any:
    return data, ctx


def limited(data: Any, *, limit: int = 3) -> Any:
    return data, limit


def greedy(data: Any, *, limit: int) -> Any: ...


# ---- decorators ----


def with_args(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any) -> Any:
        return function(*args)

    return inner


def with_kwargs(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(**kwargs: Any) -> Any:
        return function(**kwargs)

    return inner


def with_all(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def with_first(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(order: Any, *args: Any, **kwargs: Any) -> Any:
        return function(order, *args, **kwargs)

    return inner


def with_data(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(data: Any) -> Any:
        return function(data, "made here")

    return inner


def with_an_option(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any, verbose: bool = False, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class AnObject:
    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class Service:
    @with_args
    def method(self, data: Any, ctx: NodeContext) -> Any:
        return data, ctx

    @staticmethod
    def __call__(data: Any, ctx: NodeContext) -> Any:
        return data, ctx


@pytest.mark.parametrize(
    "function",
    [
        with_args(both),
        with_kwargs(both),
        with_all(both),
        with_first(both),
        with_an_option(both),
        AnObject(both),
        with_args(with_all(both)),
        with_all(with_args(both)),
        with_all(with_kwargs(both)),
        with_first(with_args(both)),
        AnObject(with_all(both)),
        functools.partial(with_args(both)),
        Service().method,
        with_all(Service().method),
        Service(),
        staticmethod(both),
    ],
)
def test_a_decorated_handler_gets_its_data_and_its_context(function: Callable[..., Any]) -> None:
    assert call(function) == ("data", CONTEXT)


def test_a_decorator_with_parameters_of_its_own_counts_as_what_it_takes() -> None:
    assert call(with_data(both)) == ("data", "made here")
    assert call(functools.partial(with_args(both), "bound")) == ("bound", CONTEXT)


def test_named_inputs_pass_a_decorator_that_takes_positions_only() -> None:
    def merge(left: Any = 1, right: Any = 2, ctx: Any = None) -> Any:
        return left, right, ctx

    node = Node(id="n", type="t", inputs={"right": "$input"})
    assert call(with_args(merge), node) == (1, "data", CONTEXT)
    assert call(with_all(merge), node) == (1, "data", CONTEXT)


def test_a_keyword_only_option_keeps_its_default_behind_a_decorator_that_cannot_pass_it() -> None:
    assert call(with_args(limited)) == ("data", 3)
    assert call(with_all(limited)) == ("data", 3)


def test_a_single_dispatch_sees_the_data() -> None:
    @functools.singledispatch
    def kind(data: Any) -> str:
        return "something"

    @kind.register
    def _(data: str) -> str:
        return "text"

    assert call(kind) == "text"


def test_a_wrapper_in_c_is_looked_through() -> None:
    @functools.lru_cache
    def shout(data: str) -> str:
        return data.upper()

    assert call(shout) == "DATA"


def wraps_itself(data: Any) -> Any: ...


wraps_itself.__wrapped__ = wraps_itself  # type: ignore[attr-defined]


def ring(*args: Any) -> Any: ...


ring.__wrapped__ = ring  # type: ignore[attr-defined]


class Yielding:
    def __call__(self, data: Any) -> Any:
        yield data


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (with_args(greedy), "a decorator of handler .*greedy takes no keywords, and so can't pass 'limit' on"),
        (with_args(with_kwargs(both)), "takes nothing by name, another one nothing by position; let both take"),
        (with_kwargs(with_args(both)), "takes nothing by name, another one nothing by position; let both take"),
        (ring, "wraps itself"),
        (operator.itemgetter("id"), r"handler operator\.itemgetter\.__call__ is variadic positional"),
        (operator.attrgetter("id"), r"handler operator\.attrgetter\.__call__ is variadic positional"),
        (operator.methodcaller("upper"), r"handler operator\.methodcaller\.__call__ is variadic positional"),
        (str.upper, r"parameter 'self' of handler builtins\.str\.upper is positional-only"),
        ("x".join, r"parameter 'iterable' of handler str\.join is positional-only"),
        (len, r"parameter 'obj' of handler builtins\.len is positional-only"),
        (max, r"the signature of handler builtins\.max can't be read"),
        (print, r"parameter '\*args' of handler builtins\.print is variadic positional"),
        (Yielding(), "Yielding.__call__ is a generator; return the data instead"),
        (functools.partial(Yielding()), "Yielding.__call__ is a generator; return the data instead"),
        (functools.partial(both, 1, 2, 3), "both can't be called: its functools.partial binds what the function does"),
        (classmethod(both), "must be a function, not a classmethod"),
        (object(), "must be a function, not an object"),
    ],
    ids=case_id,
)
def test_what_cannot_be_called_as_a_handler_is_refused_when_it_is_registered(function: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        NodeRegistry().register("pick", function)


def test_a_function_that_names_itself_as_wrapped_but_takes_names_is_no_ring() -> None:
    assert call(wraps_itself) is None


# ---- the context ----


def optional(data: Any, context: NodeContext | None = None) -> Any:
    return data, context


def first(context: Optional[NodeContext], data: Any) -> Any:  # noqa: UP045 - as people write it
    return data, context


def in_a_union(data: Any, context: Union[None, NodeContext]) -> Any:  # noqa: RUF036, UP007 - as people write it
    return data, context


def annotated(data: Any, context: Annotated[NodeContext, "the context"]) -> Any:
    return data, context


def annotated_option(data: Any, context: Annotated[NodeContext | None, "the context"] = None) -> Any:
    return data, context


def by_alias(data: Any, context: MaybeContext = None) -> Any:
    return data, context


def by_another_name(context: Renamed, data: Any) -> Any:
    return data, context


def by_module(context: engine_package.NodeContext | None, data: Any) -> Any:
    return data, context


def by_what_only_checkers_import(context: Optional[only_for_checkers.NodeContext], data: Any) -> Any:  # noqa: UP045
    return data, context


def none_first(data: Any, context: None | only_for_checkers.NodeContext = None) -> Any:  # noqa: RUF036 - as people write it
    return data, context


def named(data: Any, ctx: Any = None) -> Any:
    return data, ctx


HANDLERS = [
    optional,
    first,
    in_a_union,
    annotated,
    annotated_option,
    by_alias,
    by_another_name,
    by_module,
    by_what_only_checkers_import,
    none_first,
    named,
]


@pytest.mark.parametrize("function", HANDLERS)
def test_the_context_is_known_in_all_its_spellings(function: Callable[..., Any]) -> None:
    assert call(function) == ("data", CONTEXT)
    assert call(with_args(function)) == ("data", CONTEXT)
    assert call(with_all(function)) == ("data", CONTEXT)


def test_the_context_is_known_by_evaluated_annotations_too() -> None:
    def take(data: Any, context: Any = None) -> Any:
        return data, context

    for annotation in (NodeContext | None, Optional["NodeContext"], Annotated[NodeContext, 1], MaybeContext):
        take.__annotations__["context"] = annotation
        assert call(take) == ("data", CONTEXT)


def test_the_context_or_something_else_is_refused() -> None:
    def either(data: Any, other: NodeContext | dict[str, Any]) -> Any: ...

    with pytest.raises(
        ConfigurationError, match=r"parameter 'other' of handler .*either takes the context or something"
    ):
        Handler("t", either)


def test_a_list_of_contexts_is_data_that_pydantic_does_not_know() -> None:
    def many(them: list[NodeContext]) -> Any: ...

    (problem,) = Handler("t", many).problems(NODE)
    assert problem.startswith("the annotation of parameter 'them' of ")
