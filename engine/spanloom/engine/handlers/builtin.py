"""The configuration of the node types that need no handler, `delay` and `workflow`, which the worker runs itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from spanloom.engine.errors import ConfigurationError, ExpressionFailed
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.handlers.handler import Handler
from spanloom.engine.workflow.definitions import Node, Seconds
from spanloom.engine.workflow.expressions import Expression

__all__ = ["BUILT_IN", "DELAY", "WORKFLOW", "DelayConfig", "WorkflowConfig", "moment"]

DELAY = "delay"
WORKFLOW = "workflow"


def _compilable(text: str) -> str:
    try:
        Expression(text)
    except ExpressionFailed as error:
        raise ValueError(str(error)) from None
    return text


JmesPath = Annotated[str, AfterValidator(_compilable)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


LONGEST_SECONDS = 100 * 365.25 * 24 * 3600.0  #: a hundred years: no clock of any store overflows


class DelayConfig(_Config):
    """The wait of a `delay` node: `seconds`, `until` a time with its zone, or an `expression`.

    The expression, over `{input, nodes}`, gives a number of seconds, or a time as ISO 8601 text.
    """

    seconds: Annotated[Seconds, Field(le=LONGEST_SECONDS)] | None = None
    until: AwareDatetime | None = None
    expression: JmesPath | None = None

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if sum(given is not None for given in (self.seconds, self.until, self.expression)) != 1:
            raise ValueError("say one of seconds, until and expression")
        if self.until is not None and not _has_utc(self.until):
            raise ValueError("until is too far away")
        return self


class WorkflowConfig(_Config):
    """The workflow that a `workflow` node starts, and its version (None: the latest when it starts).

    The child's input is the node's data, which a `mapping` may make. The node's data is the child's output, or the
    value of the expression `output` over it.
    """

    workflow: Annotated[str, Field(min_length=1)]
    version: Annotated[int, Field(ge=1)] | None = None
    output: JmesPath | None = None


def _run_by_workers(data: Any, ctx: NodeContext) -> None:
    raise ConfigurationError(f"node {ctx.node_id!r} is of a built-in type, which workers run themselves")


class _BuiltIn(Handler):
    """The handler of a built-in type, which only checks its nodes."""

    __slots__ = ()

    def _misfits(self, node: Node) -> Iterator[str]:
        if any(edge.name is not None for edge in node.inputs):
            yield f"a {self.node_type} node takes no named inputs; list them without names, and write a mapping"


#: The handlers of the built-in types, in every registry: they check nodes, and are never called.
BUILT_IN: dict[str, Handler] = {
    node_type: _BuiltIn(node_type, _run_by_workers, config)
    for node_type, config in ((DELAY, DelayConfig), (WORKFLOW, WorkflowConfig))
}


def _has_utc(at: datetime) -> bool:
    """Return whether UTC has this time: in some zones the years 1 and 9999 reach further than any store can keep."""
    try:
        at.astimezone(UTC)
    except OverflowError:
        return False
    return True


def moment(value: Any) -> timedelta | datetime:
    """Read the value of a delay's expression: seconds from now, or a time. Raises ValueError without the value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= LONGEST_SECONDS:
            raise ValueError("its expression gave seconds that are negative or too many")
        return timedelta(seconds=value)
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("its expression gave text that is no ISO 8601 time") from None
        if at.tzinfo is None:
            raise ValueError("its expression gave a time without a zone; end it with Z or +01:00")
        if not _has_utc(at):
            raise ValueError("its expression gave a time that is too far away")
        return at
    raise ValueError(f"its expression gave a {type(value).__name__}, not seconds or a time")
