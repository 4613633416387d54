"""The handlers of the load, as worker processes import them: `spanloom worker chaos.app:engine`.

Each records itself first, then works for 5 to 30 ms. Store, Redis and trace log come from the environment.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from chaos.deeds import carry_out
from chaos.trace_log import TraceLog
from spanloom.engine import NodeContext, NodeRegistry, NodeResult, PermanentError, WorkflowEngine

__all__ = ["engine", "registry"]

TRACE_LOG = "CHAOS_TRACE_LOG"  #: the variable that says where the trace log is
_WORK_SECONDS = (0.005, 0.03)

registry = NodeRegistry()


@contextmanager
def trace_log() -> Generator[dict[str, TraceLog]]:
    """Open the trace log once per worker."""
    yield {"trace_log": TraceLog(os.environ[TRACE_LOG])}


def work(data: Any, ctx: NodeContext) -> dict[str, Any]:
    """Record this run, work, and return the sum of what came in, with the mark of this run."""
    given = {"item": data} if ctx.item else ctx.results or {"input": ctx.input}
    saw: dict[str, str] = {}
    total = sum(_value(one, source, saw) for source, one in given.items())
    mark = ctx.state.trace_log.write(ctx, saw)
    time.sleep(random.uniform(*_WORK_SECONDS))
    return {"value": total, "mark": mark}


def _value(data: Any, source: str, saw: dict[str, str]) -> int:
    """Return the number in what a parent made, and note whose result it is."""
    if isinstance(data, int):
        return data
    if isinstance(data, list):
        return sum(_value(one, f"{source}/{place}", saw) for place, one in enumerate(data, 1))
    if "mark" in data:
        saw[source] = data["mark"]
    return int(data.get("value", 0))


@registry.node("add")
def add(data: Any, ctx: NodeContext) -> dict[str, Any]:
    """Return the sum of what came in, and what is configured."""
    made = work(data, ctx)
    carry_out()
    return {**made, "value": made["value"] + ctx.config["add"]}


@registry.node("route")
def route(data: Any, ctx: NodeContext) -> NodeResult:
    """Go on to `even` or to `odd`."""
    made = work(data, ctx)
    return NodeResult(data=made, next_nodes=["odd" if made["value"] % 2 else "even"])


@registry.node("flaky")
def flaky(data: Any, ctx: NodeContext) -> dict[str, Any]:
    """Fail at the first attempt; later return the sum of what came in, and of the attempt's number."""
    made = work(data, ctx)
    if ctx.attempt == 1:
        raise ConnectionError("reset by peer")
    return {**made, "value": made["value"] + ctx.attempt}


@registry.node("spread")
def spread(data: Any, ctx: NodeContext) -> dict[str, Any]:
    """Return four numbers to be mapped over."""
    made = work(data, ctx)
    return {**made, "items": [made["value"] + place for place in range(4)]}


@registry.node("refuse")
def refuse(data: Any, ctx: NodeContext) -> None:
    """Fail for good."""
    work(data, ctx)
    raise PermanentError("refused, as always")


engine = WorkflowEngine(registry, store=os.environ.get("SPANLOOM_STORE_URL", "memory://"), lifespan=trace_log)
