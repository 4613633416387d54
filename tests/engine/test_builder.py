"""A builder makes the models that one may write by hand, and refuses what can't be a node where it is written."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from spanloom.engine.errors import ConfigurationError, PayloadRejected, WorkflowInvalid
from spanloom.engine.handlers.builder import NodeRef, WorkflowBuilder
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.workflow import validation as graph
from spanloom.engine.workflow.definitions import Input, Node, RetryPolicy, Workflow


class Order(BaseModel):
    id: int
    cents: int = 100


class Settings(BaseModel):
    url: str


orders = WorkflowBuilder("orders", input=Order)


@orders.node(max_attempts=3, timeout=10)
async def charge(order: Order, ctx: NodeContext) -> str:
    """Charge an order."""
    return f"receipt of {order.id}"


@orders.node(inputs={"order": orders.input, "receipt": charge})
def email(order: Order, receipt: str) -> str:
    return f"order {order.id}: {receipt}"


@orders.node
def audit(ctx: NodeContext) -> None: ...


def test_the_workflow_is_what_one_would_write_by_hand() -> None:
    assert orders.workflow == Workflow(
        id="orders",
        nodes=[
            Node(id="charge", type="orders.charge", retry=RetryPolicy(max_attempts=3), timeout=10),
            Node(id="email", type="orders.email", inputs={"order": "$input", "receipt": "charge"}),
            Node(id="audit", type="orders.audit"),
        ],
    )
    assert graph.find_problems(orders.workflow, orders.registry) == []


def test_the_functions_are_registered_as_they_were_written() -> None:
    assert orders.registry.types == {"orders.charge", "orders.email", "orders.audit"}
    handler = orders.registry.handler("orders.charge")
    assert handler.is_async
    assert handler.function is charge.function


def test_a_node_is_still_its_function() -> None:
    assert email(Order(id=7), "r") == "order 7: r"
    assert asyncio.run(charge(Order(id=7), None)) == "receipt of 7"  # type: ignore[arg-type]
    assert charge.__name__ == "charge"
    assert charge.__doc__ == "Charge an order."
    assert list(inspect.signature(charge).parameters) == ["order", "ctx"]
    assert repr(charge) == "<NodeRef 'charge' of workflow 'orders'>"


def test_inputs_are_a_node_a_list_or_parameters() -> None:
    builder = WorkflowBuilder("w", name="A name")

    @builder.node
    def a() -> None: ...

    @builder.node(inputs=a)
    def b(data: Any) -> None: ...

    @builder.node(inputs=[a, b])
    def c(data: Any) -> None: ...

    @builder.node(inputs=(a,))
    def d(data: Any) -> None: ...

    assert [node.inputs for node in builder.workflow.nodes] == [
        (),
        (Input(node="a"),),
        (Input(node="a"), Input(node="b")),
        (Input(node="a"),),
    ]
    assert builder.workflow.name == "A name"


def test_every_option_reaches_the_node() -> None:
    builder = WorkflowBuilder("w")
    policy = RetryPolicy(max_attempts=2, backoff="fixed", delay=5)

    @builder.node(id="first", retry=policy, timeout=timedelta(minutes=1), queue="slow", config={"a": [1]})
    def one() -> None: ...

    @builder.node(retry=policy, max_attempts=7)
    def two() -> None: ...

    first, second = builder.workflow.nodes
    assert first == Node(id="first", type="w.first", retry=policy, timeout=60, queue="slow", config={"a": [1]})
    assert second.retry == RetryPolicy(max_attempts=7, backoff="fixed", delay=5)


def test_a_model_as_config_is_what_the_handler_finds() -> None:
    builder = WorkflowBuilder("w")

    @builder.node(config=Settings(url="x"))
    def fetch(ctx: NodeContext) -> None: ...

    (node,) = builder.workflow.nodes
    assert node.config == {"url": "x"}
    assert builder.registry.handler("w.fetch").config(node) == Settings(url="x")


def test_registered_types_can_be_added() -> None:
    builder = WorkflowBuilder("w")

    @builder.node
    def a() -> None: ...

    wait = builder.add("wait", "delay", config={"seconds": 5}, inputs=a, max_attempts=2, timeout=9, queue="slow")

    @builder.node(inputs=[wait])
    def b(data: Any) -> None: ...

    assert builder.workflow.nodes[1:] == (
        Node(
            id="wait",
            type="delay",
            config={"seconds": 5},
            inputs="a",
            retry=RetryPolicy(max_attempts=2),
            timeout=9,
            queue="slow",
        ),
        Node(id="b", type="w.b", inputs="wait"),
    )
    assert builder.registry.types == {"w.a", "w.b"}


def test_one_function_can_be_several_nodes() -> None:
    builder = WorkflowBuilder("w")

    def step(data: Any) -> Any:
        return data

    previous: NodeRef[..., Any] | None = None
    for number in range(3):
        previous = builder.node(id=f"step{number}", inputs=previous)(step)
    again = builder.node(id="again")(previous or step)

    assert [node.parents for node in builder.workflow.nodes] == [(), ("step0",), ("step1",), ()]
    assert again.function is step


def test_a_workflow_that_was_taken_does_not_change_with_its_builder() -> None:
    builder = WorkflowBuilder("w")
    builder.add("a", "t")
    before = builder.workflow
    builder.add("b", "t")
    assert [node.id for node in before.nodes] == ["a"]


# ---- what is refused where it is written ----


def refused(builder: WorkflowBuilder[Any], **options: Any) -> str:
    before = builder.workflow

    def late(data: Any = None) -> None: ...

    with pytest.raises(WorkflowInvalid) as caught:
        builder.node(**options)(late)
    assert builder.workflow == before
    assert "w.late" not in builder.registry
    return str(caught.value)


def test_a_config_with_a_secret_is_refused_and_not_kept_as_asterisks() -> None:
    class Access(BaseModel):
        token: SecretStr

    builder = WorkflowBuilder("w")
    with pytest.raises(
        WorkflowInvalid, match=r"node 'n': its config can't be kept as JSON: \$\.token is a secret, which"
    ):
        builder.node(id="n", config=Access(token=SecretStr("xyzzy")))(lambda ctx: None)
    assert builder.workflow.nodes == ()


def test_an_id_that_is_taken_is_refused() -> None:
    builder = WorkflowBuilder("w")
    builder.add("late", "t")
    assert refused(builder) == (
        "workflow 'w' is not valid: node 'late': another node has that id; give one of them another by id="
    )
    with pytest.raises(WorkflowInvalid, match="another node has that id"):
        builder.add("late", "t")


def test_a_node_of_another_builder_is_refused() -> None:
    expected = "node 'late': its input {} belongs to another builder, of workflow 'orders'"
    for inputs in (charge, [charge], {"data": charge}):
        assert expected.format("'charge'") in refused(WorkflowBuilder("w"), inputs=inputs)
    assert expected.format("'$input'") in refused(WorkflowBuilder("w"), inputs={"data": orders.input})


@pytest.mark.parametrize(
    "inputs",
    ["charge", ["charge"], {"data": "charge"}, [None], 7, lambda: None],
    ids=lambda given: getattr(given, "__name__", str(given)),
)
def test_an_input_that_is_no_node_is_refused(inputs: Any) -> None:
    assert "is no node of this builder; name the decorated function itself" in refused(
        WorkflowBuilder("w"), inputs=inputs
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"timeout": -1}, "node 'late': timeout: Input should be greater than 0"),
        ({"timeout": "soon"}, "node 'late': timeout: Input should be a valid number"),
        ({"max_attempts": 0}, "node 'late': max_attempts: Input should be greater than or equal to 1"),
        ({"queue": 7}, "node 'late': queue: Input should be a valid string"),
        ({"config": [1]}, "node 'late': config: Input should be a valid dictionary"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(options: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(WorkflowBuilder("w"), **options)


def test_an_option_that_there_is_not_is_refused() -> None:
    assert "node 'late': there is no option 'tiemout' (did you mean 'timeout'?)" in refused(
        WorkflowBuilder("w"), tiemout=3
    )


def test_a_signature_that_nodes_cannot_call_is_refused() -> None:
    builder = WorkflowBuilder("w")
    with pytest.raises(ConfigurationError, match="variadic positional"):
        builder.node(id="odd")(lambda *data: None)
    assert builder.workflow.nodes == ()


def test_an_odd_id_is_left_to_the_graph_checks() -> None:
    builder = WorkflowBuilder("w")
    builder.node(lambda: None)
    assert graph.find_problems(builder.workflow, builder.registry) == [
        "node '<lambda>': its id must be 1 to 200 of the characters A-Z a-z 0-9 _ -"
    ]


# ---- the initial data ----


def test_the_input_is_made_what_its_type_says() -> None:
    assert orders.validate_input({"id": 7}) == Order(id=7, cents=100)
    order = Order(id=7)
    assert orders.validate_input(order) is order
    assert WorkflowBuilder("w", input=list[int]).validate_input([1]) == [1]
    anything = object()
    assert WorkflowBuilder("w").validate_input(anything) is anything


def test_an_input_that_does_not_fit_is_refused_naming_workflow_and_fields_but_no_data() -> None:
    secret = "hidden".upper()
    with pytest.raises(PayloadRejected) as caught:
        orders.validate_input({"cents": secret})
    assert str(caught.value) == (
        "the input of workflow 'orders' does not fit: id: Field required; "
        "cents: Input should be a valid integer, unable to parse string as an integer"
    )
    assert secret not in "".join(traceback.format_exception(caught.value))
