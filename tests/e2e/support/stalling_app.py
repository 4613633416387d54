"""Handlers that stand still, or that leave their process in pieces, each in a way of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date
from typing import Any

from spanloom.engine import NodeContext, NodeRegistry, WorkflowEngine

registry = NodeRegistry()
_kept: list[Any] = []


@registry.node("echo")
def echo(data: Any) -> Any:
    """Return the data that came in."""
    return data


@registry.node("pause")
def pause(ctx: NodeContext) -> int:
    """Return this process' id, after a while."""
    time.sleep(ctx.config.get("seconds", 0.0))
    return os.getpid()


registry.register("ipause", pause, executor="process")


@registry.node("holds")
def holds(ctx: NodeContext) -> None:
    """Hold the interpreter in one call of C, for ever."""
    re.match(r"(a+)+$", "a" * 64 + "b")


@registry.node("deadlocks")
def deadlocks(ctx: NodeContext) -> str:
    """Wait for a lock that nobody opens; not if it runs alone at a second attempt."""
    if ctx.attempt > ctx.config.get("times", 99):
        return "done"
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
    return "never"


@registry.node("swallows")
async def swallows() -> None:
    """Go on, whatever cancels it."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


@registry.node("blocks")
async def blocks(ctx: NodeContext) -> str:
    """Block the event loop."""
    time.sleep(ctx.config["seconds"])  # noqa: ASYNC251  as users write it
    return "late"


@registry.node("spins")
async def spins() -> None:
    """Block the event loop for ever."""
    while True:
        pass


@registry.node("naps")
async def naps(ctx: NodeContext) -> int:
    """Wait for a moment, without blocking anything."""
    await asyncio.sleep(ctx.config.get("seconds", 0.01))
    return os.getpid()


def _once(change: Callable[[], object]) -> Callable[[NodeContext], int]:
    """Make a handler that changes its process, but not if it was lost with one."""

    def handler(ctx: NodeContext) -> int:
        mark = f"{os.environ['STALLING_FOLDER']}/{ctx.execution_id}"
        if not os.path.exists(mark):
            with open(mark, "w"):
                pass
            change()
        return os.getpid()

    return handler


def _leak() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 128), hard))
    try:
        while True:
            _kept.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass


def _freeze() -> None:
    time.monotonic = lambda: 0.0  # type: ignore[assignment]


def _break_clock() -> None:
    time.time = time.monotonic = None  # type: ignore[assignment]


def _trace_badly() -> None:
    sys.settrace(lambda *_: time.sleep(3600))


registry.register("shuts", _once(lambda: os.closerange(3, 256)))
registry.register("leaks", _once(_leak))
registry.register("shallow", _once(lambda: sys.setrecursionlimit(60)))
registry.register("freezes", _once(_freeze))
registry.register("breaks_clock", _once(_break_clock))
registry.register("traces", _once(_trace_badly))
registry.register("stops", _once(lambda: os.kill(os.getpid(), signal.SIGSTOP)))


@registry.node("keeps_a_pool")
def keeps_a_pool(ctx: NodeContext) -> int:
    """Leave a thread pool behind that is busy for an hour."""
    pool = ThreadPoolExecutor(1)
    pool.submit(time.sleep, 3600)
    _kept.append(pool)
    return os.getpid()


@registry.node("flaky")
def flaky(ctx: NodeContext) -> None:
    """Fail at the first attempt."""
    if ctx.attempt == 1:
        raise ConnectionError("reset by peer")


@registry.node("optimized")
def optimized() -> list[Any]:
    """Return two of the options that the interpreter was started with."""
    return [sys.flags.optimize, sys._xoptions.get("shop")]


class Refused(ValueError):
    """An error that can't be pickled: it is made of other arguments than it keeps."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@registry.node("isolated", executor="process")
def isolated(data: Any, ctx: NodeContext) -> int | date:
    """Return this process' id, and leave a line and a span; or a day; or fail, die or hold the interpreter."""
    ctx.log.info("by ctx.log", number=1)
    logging.getLogger("library").warning("by logging")
    with ctx.span("inside"), ctx.span("long " * 1000):
        pass
    if data == "fails":
        raise Refused(ctx.attempt, 2)
    if data == "dies":
        os._exit(3)
    if data == "holds":
        re.match(r"(a+)+$", "a" * 64 + "b")
    return os.getpid() if data != "day" else date(2026, 1, 2)


@registry.node("aisolated", executor="process")
async def aisolated() -> None:
    """Wait in a process of its own, for an hour."""
    await asyncio.sleep(3600)


@registry.node("waits")
def waits(ctx: NodeContext) -> Any:
    """Wait for another execution."""
    return engine.run(ctx.config["workflow"], 1)


engine = WorkflowEngine(registry, os.environ.get("SPANLOOM_STORE_URL", "memory://"))


@contextmanager
def _loop_with_signal_handlers() -> Iterator[None]:
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    yield


loops_first = WorkflowEngine(
    registry, os.environ.get("SPANLOOM_STORE_URL", "memory://"), lifespan=_loop_with_signal_handlers
)
