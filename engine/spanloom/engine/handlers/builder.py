"""The builder of workflows from decorated functions; it makes the models that may also be loaded from a file."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, NoReturn, ParamSpec, TypedDict, TypeVar, Unpack, overload

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from spanloom.engine.arguments import Version, checked_calls
from spanloom.engine.errors import ConfigurationError, PayloadRejected, WorkflowInvalid
from spanloom.engine.escaping import shown
from spanloom.engine.handlers.builtin import DELAY, WORKFLOW
from spanloom.engine.handlers.handler import Executor
from spanloom.engine.handlers.json_type import JsonType
from spanloom.engine.handlers.redefinition import is_redefinition, is_typed_in
from spanloom.engine.handlers.registry import NodeRegistry
from spanloom.engine.payload import MASKED, encode, masked_secret
from spanloom.engine.wording import did_you_mean, problem_sentences
from spanloom.engine.workflow.definitions import INITIAL, Input, MapOver, Node, On, RetryPolicy, Workflow

__all__ = ["BuilderEdge", "NodeOptions", "NodeRef", "Source", "WorkflowBuilder", "registry_of"]

InputT = TypeVar("InputT")
P = ParamSpec("P")
R = TypeVar("R")


@checked_calls(but=("__init__",))
class Source:
    """A source of a node's inputs: another node, or the execution's initial data."""

    def __init__(self, builder: WorkflowBuilder[Any], id: str) -> None:
        self.builder = builder
        self.id = id

    def when(self, expression: str) -> BuilderEdge:
        """Return the edge that is taken if the source completed and `expression`, JMESPath over its data, holds."""
        return BuilderEdge(self, "success", expression)

    def on_failure(self, when: str | None = None) -> BuilderEdge:
        """Return the edge that is taken if the source failed for good. It handles the failure.

        The source's data is `{"error": {…}}` then.
        """
        return BuilderEdge(self, "failure", when)

    def always(self, when: str | None = None) -> BuilderEdge:
        """Return the edge that is taken if the source completed or failed for good, but not if it was skipped."""
        return BuilderEdge(self, "always", when)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} of workflow {self.builder.id!r}>"


class BuilderEdge(NamedTuple):
    """A source with the condition on which the edge from it is taken."""

    source: Source
    on: On
    when: str | None


class NodeRef(Source, Generic[P, R]):
    """A node of a builder, and still its function: call it in a unit test, pass it as another node's input."""

    def __init__(self, builder: WorkflowBuilder[Any], id: str, function: Callable[P, R]) -> None:
        functools.update_wrapper(self, function)
        super().__init__(builder, id)
        self.function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)


#: The last: parameter -> node or builder.input.
Inputs = Source | BuilderEdge | Sequence[Source | BuilderEdge] | Mapping[str, Source | BuilderEdge]


class NodeOptions(TypedDict, total=False):
    """The options of a node. The defaults are those of Node and RetryPolicy."""

    inputs: Inputs | None
    mapping: str | Mapping[str, str] | None  # JMESPath over {input, nodes}: makes the node's data
    map: str | MapOver | Source | None  # run once for each element of a list: an expression's, a node's or the input's
    continue_on_fail: bool
    max_attempts: int | None  # replaces max_attempts of `retry`
    retry: RetryPolicy | None
    timeout: float | timedelta | None  # seconds
    queue: str


@checked_calls(options=False)
class WorkflowBuilder(Generic[InputT]):
    """A workflow under construction: its nodes, in the order they are written, with their functions as handlers.

    >>> orders = WorkflowBuilder("orders")
    >>> @orders.node
    ... def charge(order):
    ...     return {"charged": order["total"]}
    >>> @orders.node(inputs=charge, max_attempts=3)
    ... def receipt(payment):
    ...     return f"paid {payment['charged']}"
    >>> [(node.id, node.parents) for node in orders.workflow.nodes]
    [('charge', ()), ('receipt', ('charge',))]
    >>> receipt(charge({"total": 17}))
    'paid 17'
    """

    @overload
    def __init__(self, id: str, *, input: type[InputT], name: str | None = None) -> None: ...
    @overload
    def __init__(self: WorkflowBuilder[Any], id: str, *, input: None = None, name: str | None = None) -> None: ...
    def __init__(self, id: str, *, input: Any = None, name: str | None = None) -> None:
        """Begin a workflow. `input` is the type of its initial data: a model, or another type that pydantic knows."""
        self.id = id
        self.name = name or ""
        self.registry = NodeRegistry()  #: the functions, under the types `{workflow id}.{node id}`
        self.input = Source(self, INITIAL)  #: stands for the execution's initial data among named inputs
        self._input_type = None if input is None else _input_type(id, input)
        self._nodes: dict[str, Node] = {}
        self.revision = 0  #: how often a node was added or replaced

    @overload
    def node(self, function: Callable[P, R], /) -> NodeRef[P, R]: ...
    @overload
    def node(
        self,
        /,
        *,
        id: str | None = None,
        config: Mapping[str, Any] | BaseModel | None = None,
        executor: Executor | None = None,
        **options: Unpack[NodeOptions],
    ) -> Callable[[Callable[P, R]], NodeRef[P, R]]: ...
    def node(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        id: str | None = None,
        config: Any = None,
        executor: Executor | None = None,
        **options: Unpack[NodeOptions],
    ) -> Any:
        """Make the decorated function a node, with or without options.

        - `id`: the function's name unless given.
        - `inputs`: another node, a list of nodes, or `{parameter: node or builder.input}`. Without inputs the node gets
          the execution's initial data.
        - `config`: a dict or a model instance, passed to the function as `ctx.config`.
        - `executor`: "process" runs the function in a process of its own, which the timeout can kill.
        - See NodeOptions for the others.

        A function that is defined again at the same place, as by a notebook cell that runs again, replaces its node.

        Raises WorkflowInvalid for an id that is taken, another builder's node or a wrong option, and
        ConfigurationError for a signature that a node can't have.
        """

        def decorate(decorated: Callable[..., Any]) -> NodeRef[..., Any]:
            plain = decorated.function if isinstance(decorated, NodeRef) else decorated
            node_id = id if id is not None else getattr(plain, "__name__", type(plain).__name__)
            model = config if isinstance(config, BaseModel) else None
            values = self._written(node_id, config) if isinstance(config, BaseModel) else config
            node = self._new_node(node_id, f"{self.id}.{node_id}", values, options, plain)
            self.registry.register(node.type, plain, type(model) if model else None, executor)
            self._keep(node)
            return NodeRef(self, node_id, plain)

        return decorate if function is None else decorate(function)

    def add(
        self, id: str, type: str, *, config: Mapping[str, Any] | None = None, **options: Unpack[NodeOptions]
    ) -> Source:
        """Add a node of a type that is registered elsewhere, and return it as a source for later nodes' inputs.

        Raises WorkflowInvalid as `node` does.
        """
        self._keep(self._new_node(id, type, config, options))
        return Source(self, id)

    def delay(
        self,
        id: str,
        seconds: float | timedelta | None = None,
        *,
        until: datetime | None = None,
        expression: str | None = None,
        **options: Unpack[NodeOptions],
    ) -> Source:
        """Add a node that waits for `seconds`, `until` a time or by an expression, and passes its data on.

        Raises WorkflowInvalid as `node` does. See DelayConfig.
        """
        wait = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        given = {"seconds": wait, "until": until and until.isoformat(), "expression": expression}
        config = {name: value for name, value in given.items() if value is not None}
        return self.add(id, DELAY, config=config, **options)

    def child(
        self,
        id: str,
        workflow: str | WorkflowBuilder[Any] | Workflow,
        *,
        version: Version | None = None,
        output: str | None = None,
        **options: Unpack[NodeOptions],
    ) -> Source:
        """Add a node that starts an execution of another workflow, or of this one, and waits for its output.

        Raises WorkflowInvalid as `node` does. See WorkflowConfig.
        """
        given = {
            "workflow": workflow if isinstance(workflow, str) else workflow.id,
            "version": version,
            "output": output,
        }
        config = {name: value for name, value in given.items() if value is not None}
        return self.add(id, WORKFLOW, config=config, **options)

    @property
    def workflow(self) -> Workflow:
        """The definition with the nodes so far. Registering it, or `validation.find_problems`, checks it as a whole."""
        return Workflow(id=self.id, name=self.name, nodes=tuple(self._nodes.values()))

    def validate_input(self, value: Any) -> Any:
        """Return initial data converted to the input type (a dict to a model), unchanged without a type.

        Raises PayloadRejected, which names the workflow and the fields and does not show the data.
        """
        return value if self._input_type is None else self._fitted(self._input_type.read, value)

    def encode_input(self, value: Any, limit: int) -> str:
        """Return initial data, as JSON data or as a value of the input type, as JSON text that the type reads back.

        Raises PayloadRejected as `validate_input` does, and for text of more than `limit` bytes.
        """
        where = f"the input of workflow {self.id!r}"
        if self._input_type is None:
            return encode(value, where, limit)
        return str(self._fitted(self._input_type.encode, value, where, limit))

    def _fitted(self, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except ValidationError as error:
            misfits = "; ".join(problem_sentences(error))
        except PydanticUserError as error:
            misfits = f"its type can't be used ({str(error).partition(chr(10))[0]})"
        raise PayloadRejected(f"the input of workflow {self.id!r} does not fit: {misfits}")  # shows no data

    def replaces(self, older: WorkflowBuilder[Any]) -> bool:
        """Return whether this is an older builder made again, as by a notebook cell that runs again."""
        ours, theirs = self.registry, older.registry
        shared = ours.types & theirs.types
        if not shared:
            return not ours.types and not theirs.types and self.workflow == older.workflow
        return all(is_redefinition(theirs.handler(kind).function, ours.handler(kind).function) for kind in shared)

    def _written(self, id: str, config: BaseModel) -> dict[str, Any]:
        values = config.model_dump(mode="json", by_alias=True, warnings=False)  # a warning would show the data
        if (path := masked_secret(config, json.dumps(values))) is not None:
            self._refuse(id, f"its config can't be kept as JSON: {path} is a secret, {MASKED}")
        return values

    def _keep(self, node: Node) -> None:
        self._nodes[node.id] = node
        self.revision += 1

    def _new_node(
        self, id: str, type: str, config: Mapping[str, Any] | None, options: NodeOptions, function: Any = None
    ) -> Node:
        node, known = self._made(id, type, config, options), self._nodes.get(id)
        if known is not None and not self._is_again(known, node, function):
            self._refuse(id, "another node has that id; give one of them another by id=")
        return node

    def _is_again(self, known: Node, node: Node, function: Any) -> bool:
        """Return whether a node is made again: in a notebook, or by the same definition with the same inputs.

        In a file, a definition with other inputs is one of a loop.
        """
        typed = is_typed_in()
        older = self.registry.handler(known.type).function if known.type in self.registry else None
        if function is None or older is None or older is function:
            return typed
        return is_redefinition(older, function) and (typed or (known.inputs, known.map) == (node.inputs, node.map))

    def _made(self, id: str, type: str, config: Mapping[str, Any] | None, options: NodeOptions) -> Node:
        for option in options.keys() - NodeOptions.__annotations__.keys():
            self._refuse(id, f"there is no option {option!r}{did_you_mean(option, NodeOptions.__annotations__)}")
        retry = options.get("retry") or RetryPolicy()
        max_attempts = options.get("max_attempts")
        try:
            if max_attempts is not None:
                retry = RetryPolicy.model_validate({**retry.model_dump(), "max_attempts": max_attempts})
            return Node(
                id=id,
                type=type,
                config=config or {},
                inputs=self._edges(id, options),
                mapping=options.get("mapping"),
                map=self._map(id, options.get("map")),
                continue_on_fail=options.get("continue_on_fail", False),
                queue=options.get("queue", "default"),
                retry=retry,
                timeout=options.get("timeout"),
            )
        except ValidationError as error:
            raise WorkflowInvalid(
                self.id, [f"node {id!r}: {sentence}" for sentence in problem_sentences(error)]
            ) from error

    def _edges(self, id: str, options: NodeOptions) -> list[Input]:
        inputs, over = options.get("inputs"), options.get("map")
        if inputs is None and isinstance(over, Source) and over.id != INITIAL:
            inputs = over
        if inputs is None:
            return []
        if isinstance(inputs, Mapping):
            return [self._input(id, given, name) for name, given in inputs.items()]
        several = inputs if isinstance(inputs, list | tuple) and not isinstance(inputs, BuilderEdge) else [inputs]
        return [self._input(id, given) for given in several]

    def _input(self, id: str, given: object, name: str | None = None) -> Input:
        source, on, when = given if isinstance(given, BuilderEdge) else BuilderEdge(given, "success", None)  # type: ignore[arg-type]  # reported below
        return Input(node=self._source_id(id, source), name=name, on=on, when=when)

    def _map(self, id: str, over: str | MapOver | Source | None) -> str | MapOver | None:
        if not isinstance(over, Source):
            return over
        source = self._source_id(id, over)
        return "input" if source == INITIAL else f'nodes."{source}"'

    def _source_id(self, id: str, source: object) -> str:
        if not isinstance(source, Source):
            odd = shown(source)
            self._refuse(id, f"its input {odd} is no node of this builder; name the decorated function itself")
        if source.builder is not self:
            self._refuse(id, f"its input {source.id!r} belongs to another builder, of workflow {source.builder.id!r}")
        return source.id

    def _refuse(self, id: str, why: str) -> NoReturn:
        raise WorkflowInvalid(self.id, [f"node {id!r}: {why}"])


def _input_type(workflow_id: str, type: Any) -> JsonType:
    try:
        return JsonType(TypeAdapter(type))
    except Exception as error:  # a wrong value's own methods may fail
        why = str(error).partition("\n")[0] if isinstance(error, PydanticUserError) else shown(type)
        raise ConfigurationError(
            f"the input type of workflow {workflow_id!r} can't be used ({why}); name a type that pydantic knows"
        ) from error


def registry_of(
    workflows: NodeRegistry | WorkflowBuilder[Any] | Sequence[WorkflowBuilder[Any]],
) -> tuple[NodeRegistry, dict[str, WorkflowBuilder[Any]]]:
    """Return the handlers of a registry or of builders, and the builders by their ids. Raises ConfigurationError."""
    if isinstance(workflows, NodeRegistry):
        return workflows, {}
    builders = [workflows] if isinstance(workflows, WorkflowBuilder) else list(workflows)
    registry = NodeRegistry()
    by_id: dict[str, WorkflowBuilder[Any]] = {}
    for builder in builders:
        if not isinstance(builder, WorkflowBuilder):
            raise ConfigurationError(
                f"WorkflowEngine takes a NodeRegistry or WorkflowBuilders, not {type(builder).__name__}"
            )
        if builder.id in by_id:
            raise ConfigurationError(f"two builders make workflow {builder.id!r}; give one of them another id")
        by_id[builder.id] = builder
        registry.include(builder.registry)
    return registry, by_id
