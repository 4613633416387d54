"""The fixed workflows of the crash tests, their handlers, and how each of their executions must end."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.effects import World
from spanloom.engine import (
    MapOver,
    Node,
    NodeContext,
    NodeRegistry,
    NodeResult,
    PermanentError,
    RetryPolicy,
    Workflow,
)
from spanloom.testing.crash_points import FOLDER

registry = NodeRegistry()
WIDTH = 10
LONG_SECONDS = 3600.0


def world() -> World:
    """The world of this process."""
    return World(Path(os.environ[FOLDER]))


def is_broken(what: str) -> bool:
    """Tell whether this is broken on purpose, to see that a play notices."""
    return os.environ.get("CRASH_BROKEN") == what


def is_met(what: str) -> bool:
    """Tell whether this is to happen in the play."""
    return os.environ.get("CRASH_MEETS") == what


def act(ctx: NodeContext) -> None:
    """Do something to the world that a handler can't take back."""
    world().act(ctx, f"{ctx.idempotency_key}:{os.getpid()}" if is_broken("key") else ctx.idempotency_key)


@registry.node("add")
def add(data: int, ctx: NodeContext) -> int:
    """Add one."""
    act(ctx)
    return data + 1


@registry.node("aadd")
async def aadd(data: int, ctx: NodeContext) -> int:
    """Add one, on the event loop."""
    act(ctx)
    return data + 1


@registry.node("total")
def total(ctx: NodeContext) -> int:
    """Add up what the parents gave: numbers, or lists of them."""
    act(ctx)
    return sum(sum(one) if isinstance(one, list) else one for one in ctx.results.values())


@registry.node("route")
def route(data: int, ctx: NodeContext) -> NodeResult:
    """Go left."""
    act(ctx)
    return NodeResult(data=data, next_nodes=["left"])


@registry.node("flaky")
def flaky(data: int, ctx: NodeContext) -> int:
    """Fail at the first attempt."""
    act(ctx)
    if ctx.attempt == 1:
        raise ConnectionError("once")
    return data + ctx.attempt


@registry.node("broken")
def broken(data: int, ctx: NodeContext) -> int:
    """Fail for good, until it is mended."""
    act(ctx)
    if not world().is_open(ctx.config["mended"]):
        raise PermanentError("broken")
    return data + 1


@registry.node("gate")
def gate(data: int, ctx: NodeContext) -> int:
    """Wait at the gate that its config names, whatever its worker wants."""
    act(ctx)
    world().wait_at(ctx.config["gate"])
    return data + 1


def _chain(name: str, length: int) -> Workflow:
    nodes = [
        Node(id=f"n{number}", type="add", inputs=[f"n{number - 1}"][: number - 1]) for number in range(1, length + 1)
    ]
    return Workflow(id=name, nodes=nodes)


_WIDE = [f"w{number}" for number in range(WIDTH)]
_AGAIN = RetryPolicy(max_attempts=3, delay=0.1)
_NEVER = Node(id="long", type="delay", config={"seconds": LONG_SECONDS})

WORKFLOWS = (
    _chain("chain", 5),
    Workflow(
        id="wide",
        nodes=[
            Node(id="first", type="aadd"),
            *(Node(id=name, type=("add", "aadd")[number % 2], inputs=["first"]) for number, name in enumerate(_WIDE)),
            Node(id="join", type="total", inputs=_WIDE),
        ],
    ),
    Workflow(
        id="routing",
        nodes=[
            Node(id="choose", type="route"),
            Node(id="left", type="add", inputs=["choose"]),
            Node(id="right", type="add", inputs=["choose"]),
            Node(id="join", type="total", inputs=["left", "right"]),
        ],
    ),
    _chain("child", 2),
    Workflow(
        id="family",
        nodes=[
            Node(id="before", type="add"),
            Node(id="son", type="workflow", config={"workflow": "child"}, inputs=["before"]),
            Node(id="daughter", type="workflow", config={"workflow": "child"}, inputs=["before"]),
            Node(id="after", type="total", inputs=["son", "daughter"]),
        ],
    ),
    Workflow(
        id="retry",
        nodes=[Node(id="flaky", type="flaky", retry=_AGAIN), Node(id="after", type="add", inputs=["flaky"])],
    ),
    Workflow(
        id="delay",
        nodes=[
            Node(id="before", type="add"),
            Node(id="wait", type="delay", config={"seconds": 0.2}, inputs=["before"]),
            Node(id="after", type="add", inputs=["wait"]),
        ],
    ),
    Workflow(
        id="map",
        nodes=[
            Node(id="each", type="add", map=MapOver(over="input", max_concurrency=3)),
            Node(id="sum", type="total", inputs=["each"]),
        ],
    ),
    Workflow(
        id="broken",
        nodes=[
            Node(id="before", type="add"),
            Node(id="broken", type="broken", config={"mended": "mended"}, inputs=["before"]),
            Node(id="after", type="add", inputs=["broken"]),
        ],
    ),
    Workflow(
        id="hopeless",
        nodes=[
            Node(id="broken", type="broken", config={"mended": "never"}),
            Node(id="after", type="add", inputs=["broken"]),
        ],
    ),
    Workflow(
        id="gated",
        nodes=[Node(id="gate", type="gate", config={"gate": "pause"}), Node(id="after", type="add", inputs=["gate"])],
    ),
    Workflow(
        id="drained",
        nodes=[Node(id="gate", type="gate", config={"gate": "drained"}), Node(id="after", type="add", inputs=["gate"])],
    ),
    Workflow(id="long", nodes=[_NEVER, Node(id="after", type="add", inputs=["long"])]),
)


@dataclass(frozen=True)
class Run:
    """One execution of the fixed ones: how it is started, and what must have become of it in the end."""

    workflow_id: str
    data: Any
    nodes: dict[str, str]  #: how each node stands; a mapped node's items stand as it does
    output: Any = None
    status: str = "completed"
    error: str | None = None  #: the type of its error
    items: int = 0  #: how many items its mapped node has
    rounds: int = 1  #: one more than how often it is retried
    options: dict[str, Any] = field(default_factory=dict)


def _all(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "completed")


_CHAIN = _all("n1", "n2", "n3", "n4", "n5")
RUNS = {
    "chain": Run("chain", 1, _CHAIN, 6),
    "delayed start": Run("chain", 2, _CHAIN, 7, options={"delay": 0.2}),
    "wide": Run("wide", 0, _all("first", *_WIDE, "join"), 2 * WIDTH),
    "routing": Run("routing", 3, _all("choose", "left", "join") | {"right": "skipped"}, 4),
    "family": Run("family", 1, _all("before", "son", "daughter", "after"), 8),
    "retry": Run("retry", 1, _all("flaky", "after"), 4),
    "delay": Run("delay", 1, _all("before", "wait", "after"), 3),
    "map": Run("map", [1, 2, 3, 4, 5, 6], _all("each", "sum"), 27, items=6),
    "mended": Run("broken", 1, _all("before", "broken", "after"), 4, rounds=2),
    "hopeless": Run("hopeless", 1, {"broken": "failed"}, status="failed", error="PermanentError"),
    "paused": Run("gated", 1, _all("gate", "after"), 3),
    "drained": Run("drained", 1, _all("gate", "after"), 3),
    "cancelled": Run("long", 1, {"long": "cancelled"}, status="cancelled"),
    "too late": Run(
        "long", 1, {"long": "waiting or held"}, status="failed", error="DeadlineExceeded", options={"deadline": 0.3}
    ),
}
CHILD = Run("child", 2, _all("n1", "n2"), 4)  #: of the family
