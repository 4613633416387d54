"""The asynchronous forms of blocking methods."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["awaitable"]

Owner = TypeVar("Owner")
P = ParamSpec("P")
R = TypeVar("R")


def awaitable(method: Callable[Concatenate[Owner, P], R]) -> Callable[Concatenate[Owner, P], Coroutine[Any, Any, R]]:
    """Return the asynchronous form of a method, which runs it in a thread and never blocks the event loop.

    It takes the method's arguments. Its name is the method's after an `a`. A subclass that overrides the method
    changes both forms.
    """

    async def run(owner: Owner, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(getattr(owner, method.__name__), *args, **kwargs)

    functools.update_wrapper(run, method)
    run.__name__ = f"a{method.__name__}"
    run.__qualname__ = f"{method.__qualname__.removesuffix(method.__name__)}{run.__name__}"
    run.__doc__ = f"Like {method.__name__}(), without blocking the event loop."
    return run
