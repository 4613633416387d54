"""The handlers of the end-to-end tests, as a worker process imports them.

Handlers leave traces in Redis (`ran:{execution}`), so that tests count real effects, and wait there (`gate:…`), so that
tests decide when they go on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis

from e2e.support import log_handlers
from spanloom.engine import LeaseLost, NodeContext, NodeRegistry, NodeResult, PermanentError, WorkflowEngine
from spanloom.worker import sweeper

TICK_SECONDS = 0.02
RENEWAL = "BEHAVIOUR_RENEWAL_SECONDS"  #: the variable that says how long a sweep lets others renew after an outage

_leaked: list[bytes] = []
registry = NodeRegistry()
log_handlers.add_to(registry)


@contextmanager
def clients(engine: WorkflowEngine) -> Iterator[dict[str, Redis]]:
    """A Redis client of the handlers' own, made once per worker."""
    with Redis.from_url(os.environ["BEHAVIOUR_REDIS_URL"], socket_timeout=90) as redis:
        yield {"redis": redis}


def ran(ctx: NodeContext) -> None:
    ctx.state.redis.rpush(f"ran:{ctx.execution_id}", f"{ctx.node_id}:{ctx.attempt}:{os.getpid()}")


@registry.node("echo")
def echo(data: Any, ctx: NodeContext) -> Any:
    """Return the data that came in."""
    ran(ctx)
    return data


@registry.node("plain")
def plain(data: Any) -> Any:
    """Return the data that came in, and leave no trace."""
    return data


@registry.node("leaks")
def leaks(ctx: NodeContext) -> int:
    """Keep 16 MB for ever; the data is this process' id."""
    ran(ctx)
    _leaked.append(b"x" * 16_000_000)
    time.sleep(0.05)
    return os.getpid()


@registry.node("unhurried")
def unhurried(data: Any, ctx: NodeContext) -> Any:
    """Return the data that came in, after a moment."""
    ran(ctx)
    time.sleep(0.05)
    return data


@registry.node("length")
def length(data: list[Any]) -> list[Any]:
    """Return how long a list is, and its first and last element."""
    return [len(data), data[0], data[-1]]


@registry.node("aecho")
async def aecho(data: Any, ctx: NodeContext) -> Any:
    """Return the data that came in, from the event loop."""
    ran(ctx)
    await asyncio.sleep(0)
    return data


@registry.node("value")
def value(ctx: NodeContext) -> Any:
    """Return the configured value."""
    ran(ctx)
    return ctx.config["value"]


@registry.node("name")
def name(ctx: NodeContext) -> str:
    """Return the node's own id."""
    ran(ctx)
    return ctx.node_id


@registry.node("collect")
def collect(ctx: NodeContext) -> dict[str, Any]:
    """Return the data of all parents."""
    ran(ctx)
    return ctx.results


@registry.node("count")
def count(ctx: NodeContext) -> int:
    """Return how many parents gave data."""
    ran(ctx)
    return len(ctx.results)


@registry.node("flaky")
def flaky(ctx: NodeContext) -> int:
    """Fail until the configured attempt."""
    ran(ctx)
    if ctx.attempt < ctx.config["succeeds_at"]:
        raise ConnectionError(f"attempt {ctx.attempt}")
    return ctx.attempt


@registry.node("unserialisable")
def unserialisable(ctx: NodeContext) -> Any:
    """Return what JSON can't carry, after a gate if it has one."""
    ran(ctx)
    if "gate" in ctx.config:
        _pass_gate(ctx)
    return {"seen": [1, {2, 3}]}


@registry.node("gate")
def gate(ctx: NodeContext) -> str:
    """Wait until the test opens the gate of this node (or of the execution's metadata)."""
    ran(ctx)
    _pass_gate(ctx)
    return ctx.node_id


def _pass_gate(ctx: NodeContext) -> None:
    ctx.state.redis.rpush(f"waits:{ctx.config['gate']}", ctx.execution_id)
    ctx.state.redis.blpop([f"gate:{ctx.config['gate']}"], timeout=60)


@registry.node("agate")
async def agate(ctx: NodeContext) -> str:
    """Like gate, without a thread that blocks."""
    return await asyncio.to_thread(gate, ctx)


@registry.node("aligned")
async def aligned(ctx: NodeContext) -> None:
    """End with the next fiftieth of a second, as all others do that run now, in whatever process."""
    await asyncio.sleep(TICK_SECONDS - time.time() % TICK_SECONDS)


@registry.node("order")
def order(data: Any, ctx: NodeContext) -> Any:
    """Write down who came when."""
    ctx.state.redis.rpush(f"order:{ctx.config['list']}", data)
    return data


@registry.node("endless")
def endless(ctx: NodeContext) -> None:
    """Run until it is told to stop."""
    ran(ctx)
    while True:
        ctx.state.redis.blpop(["gate:never"], timeout=0.05)


@registry.node("aendless")
async def aendless(ctx: NodeContext) -> None:
    """Run until it is cancelled."""
    ran(ctx)
    await asyncio.Event().wait()


@registry.node("obedient")
def obedient(ctx: NodeContext) -> str:
    """Run until it is told to stop, and say how it was told."""
    ran(ctx)
    while not ctx.cancelled:
        ctx.state.redis.blpop(["gate:never"], timeout=0.05)
    try:
        ctx.heartbeat()
    except LeaseLost:
        ctx.state.redis.rpush(f"stopped:{ctx.execution_id}", ctx.node_id)
    return "nobody reads this"


@registry.node("aobedient")
async def aobedient(ctx: NodeContext) -> str:
    """Run until it is cancelled, and say so."""
    ran(ctx)
    try:
        await asyncio.Event().wait()
    finally:
        ctx.state.redis.rpush(f"stopped:{ctx.execution_id}", ctx.node_id)
    return "nobody reads this"


@registry.node("kills")
def kills(ctx: NodeContext) -> str:
    """Kill the worker that runs it, as often as configured, once all of its neighbours run."""
    ran(ctx)
    redis = ctx.state.redis
    if redis.incr(f"kills:{ctx.execution_id}") <= ctx.config["times"]:
        for _ in range(ctx.config.get("beside", 0)):
            redis.blpop([f"beside:{ctx.execution_id}"], timeout=0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return ctx.node_id


@registry.node("beside")
def beside(ctx: NodeContext) -> str:
    """Run beside what kills the worker, and for a moment if that does not."""
    ran(ctx)
    ctx.state.redis.rpush(f"beside:{ctx.execution_id}", ctx.node_id)
    ctx.state.redis.blpop(["gate:never"], timeout=3)
    return ctx.node_id


@registry.node("timed")
def timed(ctx: NodeContext) -> None:
    """Run for longer than any timeout, in Python; touches nothing that could be interrupted half way."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pass


@registry.node("atimed")
async def atimed(ctx: NodeContext) -> None:
    """Wait for longer than any timeout, on the event loop."""
    await asyncio.sleep(60)


@registry.node("telling")
def telling(ctx: NodeContext) -> str:
    """Log, open spans, and fail once."""
    ctx.log.info("began", attempt_seen=ctx.attempt)
    with ctx.span("outer", step=1), ctx.span("inner"):
        ctx.log.warning("inside")
    if ctx.attempt == 1:
        with ctx.span("breaks"):
            raise ConnectionError("once")
    return ctx.idempotency_key


@registry.node("context")
def context(data: Any, ctx: NodeContext) -> dict[str, Any]:
    """Return what a handler may know."""
    return {
        "execution_id": ctx.execution_id,
        "workflow_id": ctx.workflow_id,
        "version": ctx.version,
        "node_id": ctx.node_id,
        "item": ctx.item,
        "attempt": ctx.attempt,
        "config": ctx.config,
        "results": ctx.results,
        "input": ctx.input,
        "metadata": dict(ctx.metadata),
        "depth": ctx.depth,
        "parent_execution_id": ctx.parent_execution_id,
        "cancelled": ctx.cancelled,
        "data": data,
        "entered": ctx.state.redis.get("unset") is None,
    }


def mended(ctx: NodeContext) -> bool:
    """Whether the test has mended what fails; children inherit the metadata that names the test."""
    return bool(ctx.state.redis.exists(f"mended:{ctx.metadata.get('test', '')}"))


@registry.node("boom")
def boom(data: Any, ctx: NodeContext) -> Any:
    """Fail as it is told, until the test has mended it."""
    ran(ctx)
    if mended(ctx):
        return data
    how = ctx.config.get("how", "raised")
    if how == "returned":
        return NodeResult.failed("no stock", type="OutOfStock")
    raise {"raised": ConnectionError, "permanent": PermanentError}[how]("told to")


@registry.node("route")
def route(data: Any, ctx: NodeContext) -> NodeResult:
    """Go on where it is told: by its config, or by its data."""
    ran(ctx)
    return NodeResult(data=data, next_nodes=ctx.config.get("to", data))


@registry.node("later")
def later(ctx: NodeContext) -> Any:
    """Ask to be called later, as often as configured."""
    ran(ctx)
    if ctx.state.redis.incr(f"later:{ctx.execution_id}:{ctx.node_id}") <= ctx.config["times"]:
        return NodeResult.retry_after(0.01)
    return ctx.attempt


@registry.node("tenfold")
def tenfold(data: int, ctx: NodeContext) -> int:
    """Return ten times the item; fail for the items that are named; note how many run at once."""
    ran(ctx)
    redis, key = ctx.state.redis, f"at-once:{ctx.execution_id}"
    redis.rpush(f"{key}:seen", redis.incr(key))
    try:
        if data in ctx.config.get("fails", ()) and not mended(ctx):
            raise PermanentError(f"item of {data}")
        if data in ctx.config.get("flaky", ()) and ctx.attempt == 1:
            raise ConnectionError(f"first attempt at {data}")
        return data * 10
    finally:
        redis.decr(key)


class Unspeakable(Exception):
    """An exception that can't say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Mute(Exception):
    """An exception that ends whoever asks what it is."""

    def __str__(self) -> str:
        raise SystemExit(3)


@registry.node("mute")
def mute(ctx: NodeContext) -> None:
    """Raise what ends the thread that reads it."""
    ran(ctx)
    raise Mute


@registry.node("wrongly_lost")
def wrongly_lost(ctx: NodeContext) -> None:
    """Say that the claim is gone, which it is not."""
    ran(ctx)
    raise LeaseLost(ctx.execution_id, ctx.node_id, 1)


@registry.node("odd_teller")
def odd_teller(ctx: NodeContext) -> str:
    """Log and trace what no file format carries."""
    ran(ctx)
    circle: dict[Any, Any] = {(1, 2): float("nan"), "odd": Unspeakable()}
    circle["again"] = circle
    ctx.log.info("\ud800\0", circle=circle, odd=Unspeakable())
    ctx.log.warning(Unspeakable(), odd="\ud800\0")
    with ctx.span("\ud800\0", circle=circle, odd=Unspeakable()):
        return "told"


@registry.node("odd_words")
def odd_words(ctx: NodeContext) -> str:
    """Fail once with a message that UTF-8 can't hold, as one that names a file may be."""
    ran(ctx)
    if ctx.attempt == 1:
        raise OSError("no file \udcff\0")
    return "found"


@registry.node("exits")
def exits(ctx: NodeContext) -> None:
    """Do what no handler should."""
    ran(ctx)
    raise SystemExit(3)


@registry.node("aexits")
async def aexits(ctx: NodeContext) -> None:
    """Do what no handler should, on the loop that all share."""
    ran(ctx)
    raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[ctx.config["how"]]


@registry.node("atask")
async def atask(ctx: NodeContext) -> str:
    """End, in a task or a callback of its own, the loop that all share."""
    ran(ctx)
    loop = asyncio.get_running_loop()

    async def leave() -> None:
        raise SystemExit(3)

    if ctx.config["how"] == "task":
        await asyncio.gather(leave(), asyncio.sleep(10))
    elif ctx.config["how"] == "callback":
        loop.call_soon(sys.exit)
    else:
        loop.stop()
    await asyncio.sleep(0.1)
    raise PermanentError("and goes on")


@registry.node("forks")
def forks(ctx: NodeContext) -> int:
    """Fork, and let the child end as it is told; returns its exit code."""
    ran(ctx)
    child = os.fork()
    if child == 0:
        if ctx.config["how"] == "exit":
            raise SystemExit(3)
        while ctx.config["how"] == "terminated":
            signal.pause()
        if ctx.config["how"] == "raise":
            raise ValueError("in the child")
        return 0
    if ctx.config["how"] == "terminated":
        os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@registry.node("unspeakable")
def unspeakable(ctx: NodeContext) -> None:
    """Raise what can't be printed."""
    ran(ctx)
    raise Unspeakable


@registry.node("acancelled")
async def acancelled(ctx: NodeContext) -> None:
    """Wait for something that was cancelled."""
    ran(ctx)
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


def make_engine(store: Any = None, redis: Any = None) -> WorkflowEngine:
    """The engine that tests and workers share."""
    return WorkflowEngine(registry, store, redis, lifespan=clients)


if "SPANLOOM_STORE_URL" in os.environ and "BEHAVIOUR_REDIS_URL" in os.environ:
    engine = make_engine()

if RENEWAL in os.environ:
    sweeper._RENEWAL_SECONDS = float(os.environ[RENEWAL])
