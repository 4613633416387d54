"""Definitions as a team writes them: workflows, nodes, inputs and retry policies, as frozen models with a JSON form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from spanloom.engine.errors import WorkflowInvalid
from spanloom.engine.limits import MAX_ITEMS
from spanloom.engine.payload import copied, decode
from spanloom.engine.wording import problem_sentences
from spanloom.engine.workflow.definition_bounds import check_config, check_content, check_json
from spanloom.engine.workflow.exception_names import name_of

__all__ = [
    "DEFINITION_FORMAT",
    "INITIAL",
    "MAX_ITEMS",
    "Input",
    "MapOver",
    "Node",
    "On",
    "RetryPolicy",
    "Seconds",
    "Workflow",
]

DEFINITION_FORMAT = 1  #: the format number that stored definitions and files carry

#: After which end of its source an edge is taken.
On = Literal["success", "failure", "always"]

INITIAL = "$input"  #: as the source of a named input: the execution's initial data

NODE_ID = r"[A-Za-z0-9_-]{1,200}"
WORKFLOW_ID = r"[A-Za-z0-9_.-]{1,200}"
QUEUE_NAME = r"[A-Za-z0-9_-]{1,100}"  # a dot would be read as a priority


def _seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


#: A duration: seconds as a number, or a timedelta; kept as seconds.
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_seconds)]
_PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_seconds)]


def _pattern(expression: str) -> Any:
    # For editors only: validation.find_problems reports an odd name together with all other problems.
    return Field(json_schema_extra={"pattern": f"^{expression}$"})


class _Definition(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _as_names(given: Any) -> Any:
    several = given if isinstance(given, list | tuple | set | frozenset) else (given,)
    return tuple(name_of(kind) if isinstance(kind, type) else kind for kind in several)


#: An exception, by its name or as the class itself.
ExceptionClass = str | type[BaseException]
ExceptionNames = Annotated[tuple[str, ...], BeforeValidator(_as_names, json_schema_input_type=str | list[str])]


class RetryPolicy(_Definition):
    """The number and the delays of a failed node's attempts.

    `max_attempts` counts the first run. The n-th retry waits `delay` seconds, times 2^(n-1) if exponential, at most
    `max_delay`, then shifted at random by up to ± `jitter` of itself (0 to 1). An exception is retried if its class or
    a base of it is named in `retry_on` (empty: all) and not in `no_retry_on`; names are `module.Class` or `Class`, and
    a class may stand for its own. Of an exception group every exception must be one that is retried.
    """

    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 1
    backoff: Literal["fixed", "exponential"] = "exponential"
    delay: Seconds = 1.0
    max_delay: Seconds = 300.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.1
    retry_on: ExceptionNames = ()
    no_retry_on: ExceptionNames = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            max_attempts: int = 1,
            backoff: Literal["fixed", "exponential"] = "exponential",
            delay: float | timedelta = 1.0,
            max_delay: float | timedelta = 300.0,
            jitter: float = 0.1,
            retry_on: ExceptionClass | Sequence[ExceptionClass] = (),
            no_retry_on: ExceptionClass | Sequence[ExceptionClass] = (),
        ) -> None: ...


class Input(_Definition):
    """One edge: its source node (`$input`: the execution's initial data) and the parameter that it feeds, if any.

    The edge is taken if its source ended according to `on` and if `when` holds. `when` is a JMESPath expression over
    the source's data (after a failure `{"error": {…}}`); false, null and empty values do not hold.
    """

    node: str
    name: str | None = None
    on: On = "success"
    when: str | None = None


def _as_edges(given: Any) -> Any:
    if isinstance(given, str):
        return ({"node": given},)
    if isinstance(given, Mapping):
        return tuple({**_as_edge(edge), "name": name} for name, edge in given.items())
    if isinstance(given, list | tuple):
        return tuple(_as_edge(edge) if isinstance(edge, str) else edge for edge in given)
    return given


def _as_edge(given: Any) -> dict[str, Any]:
    if isinstance(given, Input):
        return given.model_dump()
    return dict(given) if isinstance(given, Mapping) else {"node": given}


#: The edges that lead to a node: one node id, a list of them, or `{parameter: node id}`; kept as a tuple of Input.
Inputs = Annotated[
    tuple[Input, ...],
    BeforeValidator(_as_edges, json_schema_input_type=str | list[str | Input] | dict[str, str | Input]),
]


class MapOver(_Definition):
    """The map of a node: it runs once for each element of a list, and its data is the list of the results, in order.

    `over` is a JMESPath expression over `{input, nodes}` that gives the list, of at most 10,000 elements. At most
    `max_concurrency` items run at the same time. Up to `tolerated_failures` items may fail for good; their results are
    `{"error": {…}}`. After one more failure no further item starts, and the node fails.
    """

    over: str
    max_concurrency: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = 100
    tolerated_failures: Annotated[int, Field(ge=0, le=MAX_ITEMS)] = 0

    if TYPE_CHECKING:

        def __init__(self, *, over: str, max_concurrency: int = 100, tolerated_failures: int = 0) -> None: ...


def _as_map(given: Any) -> Any:
    return {"over": given} if isinstance(given, str) else given


def _own_copy(config: Mapping[str, Any]) -> Mapping[str, Any]:
    check_config(config)
    return {name: copied(value) for name, value in config.items()}


class Node(_Definition):
    """One step of a workflow.

    - `config` holds JSON values; the node keeps its own copy of them.
    - `inputs` is a list of node ids, or `{parameter: node id}`. An Input in place of an id adds conditions to its edge.
    - `mapping` makes the node's data with JMESPath instead: of `{input, nodes}`, in a mapped node also of `item` and
      `index` (from 0).
    - `map` runs the node once for each element of a list.
    - `queue` is the queue that its jobs go to.
    - `timeout` is in seconds (None: none).
    - `continue_on_fail` passes its failure as data, `{"error": {…}}`, along its success edges.
    """

    id: Annotated[str, _pattern(NODE_ID)]
    type: str
    config: Annotated[Mapping[str, Any], AfterValidator(_own_copy)] = {}
    inputs: Inputs = ()
    mapping: str | dict[str, str] | None = None
    map: Annotated[MapOver | None, BeforeValidator(_as_map, json_schema_input_type=str | MapOver | None)] = None
    queue: Annotated[str, _pattern(QUEUE_NAME)] = "default"
    retry: RetryPolicy = RetryPolicy()
    timeout: _PositiveSeconds | None = None
    continue_on_fail: bool = False

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            id: str,
            type: str,
            config: Mapping[str, Any] = ...,
            inputs: str | Sequence[str | Input] | Mapping[str, str | Input] = (),
            mapping: str | Mapping[str, str] | None = None,
            map: str | MapOver | None = None,
            queue: str = "default",
            retry: RetryPolicy = ...,
            timeout: float | timedelta | None = None,
            continue_on_fail: bool = False,
        ) -> None: ...

    @property
    def parents(self) -> tuple[str, ...]:
        """The ids of the nodes that this one waits for, each once, in the order written."""
        return tuple(dict.fromkeys([edge.node for edge in self.inputs if edge.node != INITIAL]))


class Workflow(_Definition):
    """A definition: immutable once registered; each change is a new integer version.

    Building one checks types only; `validation.find_problems` lists the problems that make it unfit to run.
    """

    id: Annotated[str, _pattern(WORKFLOW_ID)]
    name: str = ""
    nodes: tuple[Node, ...]
    format: Annotated[int, Field(ge=1)] = DEFINITION_FORMAT

    if TYPE_CHECKING:

        def __init__(
            self, *, id: str, name: str = "", nodes: Sequence[Node], format: int = DEFINITION_FORMAT
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _known_format(cls, values: Any) -> Any:
        check_content(values)
        # Before all other checks: a newer format has other keys, and errors about them would mislead.
        found = values.get("format") if isinstance(values, Mapping) else None
        if isinstance(found, int) and found > DEFINITION_FORMAT:
            raise ValueError(
                f"it is written in format {found} and this release reads up to {DEFINITION_FORMAT}: upgrade spanloom"
            )
        return values

    @classmethod
    def read(cls, content: Any) -> Workflow:
        """Build a workflow from decoded JSON or YAML. Raises WorkflowInvalid with a sentence for each problem."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            named = content.get("id") if isinstance(content, Mapping) else None
            raise WorkflowInvalid(named if isinstance(named, str) else "?", problem_sentences(error)) from error

    @classmethod
    def from_json(cls, text: str) -> Workflow:
        """Read the text of `to_json`. Raises WorkflowInvalid, also for a format newer than this release reads."""
        try:
            check_json(text)
            content = decode(text)
        except (ValueError, RecursionError) as error:
            raise WorkflowInvalid("?", [f"its definition is not JSON ({error})"]) from error
        return cls.read(content)

    def to_json(self) -> str:
        """Return the canonical JSON text: keys sorted, defaults left out, the format number always in."""
        return _canonical(self._content() | {"format": self.format})

    def digest(self) -> str:
        """Return the SHA-256 of the content in hex; equal for equal content, also across releases and formats."""
        return hashlib.sha256(_canonical(self._content()).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"format"})


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
