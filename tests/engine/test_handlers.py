"""A handler gets the arguments that its signature asks for, of the types that it names, or a clear refusal."""

from __future__ import annotations

import asyncio
import functools
import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict  # the one that pydantic takes on every Python

from spanloom.engine.errors import ConfigurationError, PermanentError
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.handlers.handler import Handler
from spanloom.engine.workflow.definitions import Node


class NoRuntime:
    """What a node that only looks at its arguments needs of a worker."""

    log: Any = None
    cancelled = False

    def span(self, name: str, attributes: Any) -> Any:
        raise AssertionError("not used")

    def heartbeat(self) -> None:
        raise AssertionError("not used")


def context(input: Any = None, **results: Any) -> NodeContext:
    return NodeContext(
        execution_id="e1",
        workflow_id="w",
        version=1,
        node_id="n",
        runtime=NoRuntime(),
        input_json=json.dumps(input),
        results_json={parent: json.dumps(data) for parent, data in results.items()},
    )


def node(inputs: Any = (), **fields: Any) -> Node:
    return Node(id="n", type="t", inputs=inputs, **fields)


def call(function: Callable[..., Any], inputs: Any = (), ctx: NodeContext | None = None) -> Any:
    handler = Handler("t", function)
    the_node = node(inputs)
    assert list(handler.problems(the_node)) == []
    args, kwargs = handler.arguments(the_node, ctx or context())
    result = handler.function(*args, **kwargs)
    return asyncio.run(result) if handler.is_async else result


def refusal(function: Callable[..., Any], data: Any) -> str:
    with pytest.raises(PermanentError) as caught:
        call(function, ctx=context(data))
    return str(caught.value)


class Order(BaseModel):
    id: int
    cents: int


# ---- which arguments ----


def test_a_handler_takes_the_context_the_data_both_or_nothing() -> None:
    ctx = context({"id": 7})
    assert call(lambda ctx: ctx, ctx=ctx) is ctx
    assert call(lambda data: data, ctx=ctx) == {"id": 7}
    assert call(lambda order, ctx: (order, ctx), ctx=ctx) == ({"id": 7}, ctx)
    assert call(lambda ctx, order: (order, ctx), ctx=ctx) == ({"id": 7}, ctx)
    assert call(lambda: "ran", ctx=ctx) == "ran"


def test_the_context_is_also_known_by_its_annotation() -> None:
    def by_text(me: NodeContext, data: Any) -> Any:
        return me, data

    def by_dotted_text(me: spanloom.engine.NodeContext, data: Any) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return me, data

    def by_class(me: Any, data: Any) -> Any:
        return me, data

    by_class.__annotations__["me"] = NodeContext

    ctx = context(1)
    for function in (by_text, by_dotted_text, by_class):
        assert call(function, ctx=ctx) == (ctx, 1)


def test_data_is_that_of_the_parents() -> None:
    ctx = context("initial", a=[1], b=0)
    assert call(lambda data: data, ["a"], ctx) == [1]
    assert call(lambda data: data, ["b"], ctx) == 0
    assert call(lambda data: data, ["b", "a"], ctx) == {"b": 0, "a": [1]}
    assert list(call(lambda data: data, ["b", "a"], ctx)) == ["b", "a"]  # in the order of the inputs
    assert call(lambda data: data, ["b", "skipped", "a"], ctx) == {"b": 0, "a": [1]}


@pytest.mark.parametrize("data", [0, False, "", None, [], {}], ids=repr)
def test_empty_data_is_data(data: Any) -> None:
    assert repr(call(lambda data: data, ctx=context(data))) == repr(data)
    assert repr(call(lambda data: data, ["a"], context(a=data))) == repr(data)
    assert repr(call(lambda x: x, {"x": "a"}, context(a=data))) == repr(data)


def test_named_inputs_feed_parameters() -> None:
    def mail(receipt: Any, order: Any, again: Any, ctx: NodeContext) -> Any:
        return order, receipt, again, ctx.node_id

    inputs = {"order": "$input", "receipt": "charge", "again": "charge"}
    assert call(mail, inputs, context({"id": 7}, charge="r1")) == ({"id": 7}, "r1", "r1", "n")


def test_a_named_input_that_was_not_taken_leaves_the_default_or_none() -> None:
    def merge(left: int, right: int = 5) -> Any:
        return left, right

    both = {"left": "a", "right": "b"}
    assert call(merge, both, context(a=1, b=2)) == (1, 2)
    assert call(merge, both, context(a=1)) == (1, 5)
    assert call(merge, both, context(b=2)) == (None, 2)


def test_defaults_and_keyword_only_parameters_are_respected() -> None:
    def only_by_name(*, data: Any, limit: int = 3) -> Any:
        return data, limit

    def first_has_a_default(data: Any = "none", limit: int = 3) -> Any:
        return data, limit

    def nothing_to_feed(ctx: NodeContext, *, limit: int = 3) -> Any:
        return limit

    assert call(only_by_name, ctx=context(1)) == (1, 3)
    assert call(first_has_a_default, ctx=context(1)) == (1, 3)
    assert call(nothing_to_feed, ctx=context(1)) == 3
    assert call(nothing_to_feed, {"limit": "a"}, context(a=9)) == 9


class Mailer:
    def __call__(self, data: Any) -> Any:
        return "called", data

    def send(self, data: Any, ctx: NodeContext) -> Any:
        return "sent", data

    @staticmethod
    def check(data: Any) -> Any:
        return "checked", data

    @classmethod
    def make(cls, data: Any) -> Any:
        return cls.__name__, data


class AsyncMailer:
    async def __call__(self, data: Any) -> Any:
        return "called", data


async def send(data: Any, prefix: str) -> Any:
    return prefix, data


def test_anything_callable_is_a_handler() -> None:
    @functools.wraps(send)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        return await send(*args, prefix="wrapped", **kwargs)

    wrapped.__wrapped__ = lambda data: data  # type: ignore[attr-defined]

    ctx = context(1)
    assert call(Mailer(), ctx=ctx) == ("called", 1)
    assert call(AsyncMailer(), ctx=ctx) == ("called", 1)
    assert call(Mailer().send, ctx=ctx) == ("sent", 1)
    assert call(Mailer.check, ctx=ctx) == ("checked", 1)
    assert call(Mailer.make, ctx=ctx) == ("Mailer", 1)
    assert call(functools.partial(send, prefix="p"), ctx=ctx) == ("p", 1)
    assert call(functools.partial(Mailer().send, ctx=ctx), ctx=ctx) == ("sent", 1)
    assert call(functools.partial(functools.partial(send), prefix="p"), ctx=ctx) == ("p", 1)
    assert call(functools.lru_cache(lambda data: data), ctx=ctx) == 1
    assert call(wrapped, ctx=ctx) == ("wrapped", 1)


def test_async_handlers_are_known() -> None:
    async def plain(ctx: NodeContext) -> None: ...

    for function in (plain, functools.partial(plain), AsyncMailer(), functools.partial(AsyncMailer())):
        assert Handler("t", function).is_async
    for function in (lambda ctx: None, Mailer(), functools.partial(Mailer())):
        assert not Handler("t", function).is_async


# ---- signatures that are refused ----


def generator(data: Any) -> Any:
    yield data


async def async_generator(data: Any) -> Any:
    yield data


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda *args: None, r"parameter '\*args' of handler .* is variadic positional; data is passed by name"),
        (lambda data, **options: None, r"parameter '\*\*options' of handler .* is variadic keyword"),
        (lambda data, /: None, "parameter 'data' of handler .* is positional-only"),
        (generator, "is a generator; return the data instead of yielding it"),
        (async_generator, "is a generator; return the data instead of yielding it"),
        (dict, "the signature of handler builtins.dict can't be read"),
        (7, "the handler of node type 't' must be a function, not 7"),
    ],
)
def test_a_signature_that_nodes_cannot_call_is_refused(function: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Handler("t", function)


def test_two_contexts_are_refused() -> None:
    def greedy(ctx: NodeContext, other: NodeContext) -> None: ...

    with pytest.raises(ConfigurationError, match="takes its context twice: 'ctx', 'other'"):
        Handler("t", greedy)


# ---- types ----


@dataclass
class Point:
    x: int


class Size(TypedDict):
    width: int


def typed(annotation: Any) -> Callable[..., Any]:
    def take(data: Any) -> Any:
        return data

    take.__annotations__["data"] = annotation
    return take


@pytest.mark.parametrize(
    ("annotation", "data", "value"),
    [
        (Order, {"id": 7, "cents": 1}, Order(id=7, cents=1)),
        (Order, {"id": "7", "cents": 1}, Order(id=7, cents=1)),  # a model's own config: pydantic's default
        (list[Order], [{"id": 7, "cents": 1}], [Order(id=7, cents=1)]),
        (Order | None, None, None),
        (float, 1, 1.0),
        (int, 2**70, 2**70),
        (date, "2026-01-02", date(2026, 1, 2)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (dict, {"a": 1}, {"a": 1}),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Literal["a", "b"], "b", "b"),
        (Annotated[int, Field(gt=0)], 1, 1),
        (Point, {"x": 1}, Point(1)),
        (Size, {"width": 1}, {"width": 1}),
        ("Order", {"id": 7, "cents": 1}, Order(id=7, cents=1)),
        ("list['Order']", [{"id": 7, "cents": 1}], [Order(id=7, cents=1)]),
        (Any, {"a": 1}, {"a": 1}),
        (object, {"a": 1}, {"a": 1}),
        (dict, {"a": "\ud800"}, {"a": "\ud800"}),
        (dict[str, Any], {"a": [1e16, -0.0, None]}, {"a": [1e16, -0.0, None]}),
    ],
    ids=str,
)
def test_data_is_fitted_to_its_annotation(annotation: Any, data: Any, value: Any) -> None:
    result = call(typed(annotation), ctx=context(data))
    assert repr(result) == repr(value)


@pytest.mark.parametrize(
    ("annotation", "data", "sentence"),
    [
        (int, "1", "Input should be a valid integer"),
        (int, True, "Input should be a valid integer"),
        (int, 1.0, "Input should be a valid integer"),
        (str, 1, "Input should be a valid string"),
        (bool, 1, "Input should be a valid boolean"),
        (float, "1", "Input should be a valid number"),
        (dict, [1], "Input should be an object"),
        (list[int], [1, "2"], "[1]: Input should be a valid integer"),
        (Order, {"id": 7}, "cents: Field required"),
        (Order, None, "Input should be an object"),
        (Annotated[int, Field(gt=0)], 0, "Input should be greater than 0"),
    ],
    ids=str,
)
def test_data_of_another_type_is_refused(annotation: Any, data: Any, sentence: str) -> None:
    message = refusal(typed(annotation), data)
    name = f"{__name__}.typed.<locals>.take"
    assert message == f"node 'n': data does not fit parameter 'data' of {name}: {sentence}"


def test_what_pydantics_parser_cannot_read_is_fitted_all_the_same() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    assert call(typed(list[Any]), ctx=context(deep)) == deep
    assert "[0]: Input should be a valid integer" in refusal(typed(list[int]), ["\ud800"])


def test_a_refusal_names_every_field_and_shows_no_data_not_even_in_its_traceback() -> None:
    secret = "hidden".upper()  # so that a quoted line of this test does not show it
    with pytest.raises(PermanentError) as caught:
        call(typed(Order), ctx=context({"id": secret, "cents": [secret]}))
    assert "id: Input should be a valid integer" in str(caught.value)
    assert "cents: Input should be a valid integer" in str(caught.value)
    assert secret not in "".join(traceback.format_exception(caught.value))


def test_several_parents_are_fitted_as_one_object() -> None:
    def join(data: dict[str, Order]) -> Any:
        return data

    ctx = context(a={"id": 1, "cents": 2}, b={"id": 3, "cents": 4})
    assert call(join, ["a", "b", "skipped"], ctx) == {"a": Order(id=1, cents=2), "b": Order(id=3, cents=4)}


def test_named_inputs_are_fitted_each() -> None:
    def mail(order: Order, receipt: str) -> Any:
        return order, receipt

    inputs = {"order": "$input", "receipt": "charge"}
    assert call(mail, inputs, context({"id": 7, "cents": 1}, charge="r")) == (Order(id=7, cents=1), "r")
    with pytest.raises(PermanentError, match=r"data does not fit parameter 'receipt' of .*: Input should be a valid"):
        call(mail, inputs, context({"id": 7, "cents": 1}, charge=5))


def test_an_annotation_is_resolved_in_the_module_of_the_function_behind_a_wrapper() -> None:
    elsewhere: dict[str, Any] = {"__name__": "elsewhere", "Ticket": Order}
    exec("def take(data: 'Ticket'): return data", elsewhere)  # as a module of its own would define it

    @functools.wraps(elsewhere["take"])
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return elsewhere["take"](*args, **kwargs)

    assert call(wrapped, ctx=context({"id": 7, "cents": 1})) == Order(id=7, cents=1)


def test_an_annotation_may_name_what_is_defined_after_registration() -> None:
    handler = Handler("t", later)
    args, kwargs = handler.arguments(node(), context({"x": 1}))
    assert handler.function(*args, **kwargs) == Later(x=1)


def later(data: Later) -> Any:
    return data


class Later(BaseModel):
    x: int


class Unfinished(BaseModel):
    x: NeverDefined  # type: ignore[name-defined]  # noqa: F821


class Service:
    """A class that pydantic does not know."""


def test_only_the_annotations_of_parameters_that_get_data_matter() -> None:
    def look(data: dict[str, int], service: Service = Service()) -> Any:  # noqa: B008
        return data

    def unresolvable(data: int, other: Missing = 1) -> Missing:  # type: ignore[name-defined]  # noqa: F821
        return data

    assert call(look, ctx=context({"a": 1})) == {"a": 1}
    assert call(unresolvable, ctx=context(1)) == 1


@pytest.mark.parametrize("annotation", ["Missing", "Order[", "Order.Missing", Service, "Service", Unfinished], ids=str)
def test_an_annotation_that_cannot_be_used_fails_the_node_for_good(annotation: Any) -> None:
    handler = Handler("t", typed(annotation))
    (problem,) = handler.problems(node())
    assert problem.startswith("the annotation of parameter 'data' of ")
    assert problem.endswith("name a type that pydantic knows and that is defined or imported at module level")
    with pytest.raises(PermanentError, match=r"node 'n': the annotation of parameter 'data'"):
        handler.arguments(node(), context(1))


# ---- definitions that a changed function no longer fits ----


def test_a_function_that_lost_a_parameter_fails_the_node_for_good() -> None:
    handler = Handler("t", lambda order: order)
    with pytest.raises(PermanentError, match=r"node 'n': .* has no parameter 'ordre' \(did you mean 'order'\?\)"):
        handler.arguments(node({"ordre": "$input"}), context(1))


def test_a_function_that_gained_a_parameter_fails_the_node_for_good() -> None:
    handler = Handler("t", lambda order, receipt: order)
    with pytest.raises(PermanentError, match=r"node 'n': .* also needs 'receipt'"):
        handler.arguments(node({"order": "$input"}), context(1))
    with pytest.raises(PermanentError, match=r"node 'n': .* also needs 'receipt'"):
        handler.arguments(node(), context(1))


# ---- config ----


class Fetch(BaseModel):
    url: str
    on: date = date(2026, 1, 1)


def test_config_is_a_dict_for_each_call_alone() -> None:
    handler = Handler("t", lambda ctx: None)
    the_node = node(config={"urls": ["x"]})
    handler.config(the_node)["urls"].append("y")
    assert handler.config(the_node) == {"urls": ["x"]}
    assert handler.config(node()) == {}


def test_config_is_an_instance_of_the_types_model() -> None:
    handler = Handler("t", lambda ctx: None, Fetch)
    assert handler.config(node(config={"url": "x", "on": "2026-02-03"})) == Fetch(url="x", on=date(2026, 2, 3))
    with pytest.raises(PermanentError, match=r"node 'n': its config does not fit .*: url: Field required"):
        handler.config(node())
