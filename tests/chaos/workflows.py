"""The workflows of the load, and how every execution of them has to end: known before it is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spanloom.engine import ExecutionStatus, Workflow

__all__ = ["WORKFLOWS", "LoadWorkflow", "workflow_of"]


@dataclass(frozen=True)
class LoadWorkflow:
    """One workflow. `value` is what number n's execution makes; None: that it fails, by its node `refuse`.

    `runs` is how many runs of handlers that takes, its child's too, if nothing ever goes wrong.
    """

    workflow: Workflow
    runs: int
    value: Callable[[int], int] | None

    @property
    def id(self) -> str:
        """The workflow's id."""
        return self.workflow.id

    @property
    def status(self) -> ExecutionStatus:
        """How every execution ends."""
        return ExecutionStatus.FAILED if self.value is None else ExecutionStatus.COMPLETED


def workflow_of(number: int) -> LoadWorkflow:
    """Return what execution `number` is one of."""
    return WORKFLOWS[number % len(WORKFLOWS)]


def _workflow(name: str, *nodes: dict[str, Any]) -> Workflow:
    return Workflow.model_validate({"id": name, "nodes": nodes})


def _add(name: str, add: int = 0, **rest: Any) -> dict[str, Any]:
    retry = {"max_attempts": 5, "delay": 0.05}  # after a timeout, which only a handler meets that stands still
    return {"id": name, "type": "add", "config": {"add": add}, "timeout": 5.0, "retry": retry, **rest}


_CHAIN = _workflow("chain", _add("a", 1), _add("b", 2, inputs=["a"]), _add("c", 3, inputs=["b"]))
_FAN = _workflow(
    "fan",
    _add("split"),
    *(_add(f"part{part}", part, inputs=["split"]) for part in range(1, 6)),
    _add("join", inputs=[f"part{part}" for part in range(1, 6)]),
)
_ROUTES = _workflow(
    "routes",
    {"id": "ask", "type": "route"},
    _add("even", 10, inputs=["ask"]),
    _add("odd", 20, inputs=["ask"]),
    _add("end", inputs=["even", "odd"]),
)
_PARENT = _workflow(
    "parent",
    _add("before", 1),
    {"id": "child", "type": "workflow", "config": {"workflow": "chain"}, "inputs": ["before"]},
    _add("after", 1, inputs=["child"]),
)
_RETRIES = _workflow(
    "retries",
    {"id": "flaky", "type": "flaky", "retry": {"max_attempts": 2, "delay": 0.05}},
    _add("after", 1, inputs=["flaky"]),
)
_DELAYS = _workflow(
    "delays",
    _add("before"),
    {"id": "wait", "type": "delay", "config": {"seconds": 0.3}, "inputs": ["before"]},
    _add("after", 1, inputs=["wait"]),
)
_MAPS = _workflow(
    "maps",
    {"id": "list", "type": "spread"},
    _add("each", 1, inputs=["list"], map={"over": "nodes.list.items", "max_concurrency": 2}),
    _add("sum", inputs=["each"]),
)
_HANDLED = _workflow(
    "handled",
    _add("begin"),
    {"id": "refuse", "type": "refuse", "inputs": ["begin"]},
    _add("mend", 7, inputs=[{"node": "refuse", "on": "failure"}]),
)
_REFUSED = _workflow("refused", _add("begin"), {"id": "refuse", "type": "refuse", "inputs": ["begin"]})

WORKFLOWS = (
    LoadWorkflow(_CHAIN, 3, lambda n: n + 6),
    LoadWorkflow(_FAN, 7, lambda n: 5 * n + 15),
    LoadWorkflow(_ROUTES, 3, lambda n: n + (20 if n % 2 else 10)),
    LoadWorkflow(_PARENT, 5, lambda n: n + 8),
    LoadWorkflow(_RETRIES, 3, lambda n: n + 3),  # the attempt that succeeds counts: the second
    LoadWorkflow(_DELAYS, 2, lambda n: n + 1),
    LoadWorkflow(_MAPS, 6, lambda n: 4 * n + 10),
    LoadWorkflow(_HANDLED, 3, lambda n: 7),
    LoadWorkflow(_REFUSED, 2, None),
)
