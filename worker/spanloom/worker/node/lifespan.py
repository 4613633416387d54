"""The lifespan: builds `ctx.state` when a worker starts, and takes it down at the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import SimpleNamespace
from typing import Any

from spanloom.engine.errors import ConfigurationError
from spanloom.worker.node.event_loop import Awaited, EventLoopThread

__all__ = ["Lifespan"]

_LEAVE_SECONDS = 10.0


class Lifespan:
    """A context manager around the engine's `lifespan`; an async one is entered and left on the event loop's thread."""

    def __init__(self, factory: Any, engine: Any, event_loop: EventLoopThread) -> None:
        self._factory = factory
        self._engine = engine
        self._event_loop = event_loop
        self._entered: Any = None

    def __enter__(self) -> Any:
        """Return `ctx.state`: the value that the context manager yields, a mapping as attributes.

        The state is empty without a lifespan. Raises ConfigurationError if `lifespan` makes no context manager, and the
        exceptions of the context manager itself.
        """
        if self._factory is None:
            return SimpleNamespace()
        manager = self._factory
        if callable(manager):
            manager = manager(self._engine) if _takes_engine(manager) else manager()
        if isinstance(manager, AbstractAsyncContextManager):
            state = self._event_loop.run(Awaited(_await(manager.__aenter__())))
        elif isinstance(manager, AbstractContextManager):
            state = manager.__enter__()
        else:
            raise ConfigurationError(
                "lifespan= takes a function that returns a context manager; decorate it with @contextmanager or "
                "@asynccontextmanager"
            )
        self._entered = manager
        return SimpleNamespace(**state) if isinstance(state, Mapping) else state

    def __exit__(self, *exc_info: object) -> None:
        """Leave the context manager. Raises TimeoutError if a handler blocks the event loop."""
        manager, self._entered = self._entered, None
        if isinstance(manager, AbstractAsyncContextManager):
            self._event_loop.run(Awaited(_await(manager.__aexit__(None, None, None))), patience=_LEAVE_SECONDS)
        elif manager is not None:
            manager.__exit__(None, None, None)


def _takes_engine(factory: Callable[..., Any]) -> bool:
    """Return whether a function has a place for the engine: one that must be filled, or that has its name."""
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return parameter.default is parameter.empty or parameter.name == "engine"
        return parameter.kind is parameter.VAR_POSITIONAL
    return False


async def _await(awaitable: Any) -> Any:
    return await awaitable
