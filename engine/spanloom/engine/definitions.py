"""What a team writes: workflows, nodes, their inputs and retry policies, as frozen models with a JSON form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

__all__ = ["DEFINITION_FORMAT", "Input", "Node", "RetryPolicy", "Seconds", "Workflow"]

DEFINITION_FORMAT = 1  #: the format number that stored definitions and files carry

INITIAL = "$input"  #: as the source of a named input: the execution's initial data


def _seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


#: A duration: seconds as a number, or a timedelta; kept as seconds.
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]


class _Definition(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RetryPolicy(_Definition):
    """Say how often and when a failed node runs again.

    `max_attempts` counts the first run. The n-th retry waits `delay` seconds, times 2^(n-1) if exponential, at most
    `max_delay`, then shifted at random by up to ± `jitter` of itself (0 to 1). An exception is retried if its class or
    a base of it is named in `retry_on` (empty: all) and not in `no_retry_on`; names are `module.Class` or `Class`.
    """

    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 1
    backoff: Literal["fixed", "exponential"] = "exponential"
    delay: Seconds = 1.0
    max_delay: Seconds = 300.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.1
    retry_on: tuple[str, ...] = ()
    no_retry_on: tuple[str, ...] = ()


class Input(_Definition):
    """One edge: the node it comes from (`$input`: the execution's initial data) and, for named inputs, the parameter it feeds."""

    node: str
    name: str | None = None


class Node(_Definition):
    """One step of a workflow.

    `inputs` is written as a list of node ids, or as `{parameter: node id}`; `timeout` is in seconds (None: none);
    `queue` is the RQ queue its jobs go to.
    """

    id: str
    type: str
    config: Mapping[str, Any] = {}
    inputs: tuple[Input, ...] = ()
    queue: str = "default"
    retry: RetryPolicy = RetryPolicy()
    timeout: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_inputs(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = values.get("inputs")
        if isinstance(given, str):
            return {**values, "inputs": [{"node": given}]}
        if isinstance(given, Mapping):
            return {**values, "inputs": [{"name": name, "node": node} for name, node in given.items()]}
        if isinstance(given, list | tuple):
            return {**values, "inputs": [{"node": one} if isinstance(one, str) else one for one in given]}
        return values

    @property
    def parents(self) -> tuple[str, ...]:
        """The ids of the nodes this one waits for, each once, in the order written."""
        return tuple(dict.fromkeys(edge.node for edge in self.inputs if edge.node != INITIAL))


class Workflow(_Definition):
    """A definition: immutable once registered; each change is a new integer version."""

    id: str
    name: str = ""
    nodes: tuple[Node, ...]
    format: int = DEFINITION_FORMAT

    def to_json(self) -> str:
        """Return the canonical JSON text: keys sorted, defaults left out, the format number always in."""
        content = self.model_dump(mode="json", exclude_defaults=True) | {"format": self.format}
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, in hex: equal for equal content, also across library releases."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
