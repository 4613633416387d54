"""Handlers that say something in every way a handler can, and wait for the test in between."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

import structlog

from spanloom.engine import NodeContext, NodeRegistry

_library = logging.getLogger("some.library")


def say(ctx: NodeContext, what: str) -> None:
    """Say it by ctx.log, by a library's logging inside a span, and by structlog."""
    ctx.log.info(f"{what}: log", said=what)
    with ctx.span("inner"):
        _library.warning("%s: %s", what, "library", extra={"said": what})
    structlog.get_logger("their.own").info(f"{what}: structlog")


def _wait(ctx: NodeContext, gate: str) -> None:
    ctx.state.redis.rpush(f"waits:{gate}", ctx.execution_id)
    ctx.state.redis.blpop([f"gate:{gate}"], timeout=60)


def _gates(ctx: NodeContext) -> list[str]:
    return [f"{gate}-{ctx.item}" if ctx.item else gate for gate in ctx.config["gates"]]


def _end(ctx: NodeContext) -> str:
    say(ctx, "last")
    if ctx.attempt < ctx.config.get("succeeds_at", 1):
        raise ConnectionError(f"attempt {ctx.attempt}")
    return ctx.node_id


def says(ctx: NodeContext) -> str:
    """Say something before each gate and at the end."""
    for gate in _gates(ctx):
        say(ctx, gate)
        _wait(ctx, gate)
    return _end(ctx)


async def asays(ctx: NodeContext) -> str:
    """Like says, on the event loop."""
    for gate in _gates(ctx):
        say(ctx, gate)
        await asyncio.to_thread(_wait, ctx, gate)
    return _end(ctx)


def prints(ctx: NodeContext) -> None:
    """Print to both streams, in pieces too, and log in between."""
    print("one", "line")
    print("two\nlines", end="")
    sys.stdout.write(" in pieces\n")
    _library.warning("logged")
    print("to stderr", file=sys.stderr)
    print("no end", end="")


async def aprints(ctx: NodeContext) -> None:
    """Print while others do."""
    for number in range(20):
        print(ctx.node_id, end=" ")
        await asyncio.sleep(0)
        print(number)


def add_to(registry: NodeRegistry) -> None:
    """Register them under their names."""
    handlers: list[Callable[..., object]] = [says, asays, prints, aprints]
    for handler in handlers:
        registry.node(handler.__name__)(handler)
