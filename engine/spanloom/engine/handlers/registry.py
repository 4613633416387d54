"""The registry of handlers by node type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

from spanloom.engine.errors import ConfigurationError, UnknownNodeType
from spanloom.engine.handlers.builtin import BUILT_IN
from spanloom.engine.handlers.handler import Handler

__all__ = ["NodeRegistry"]

F = TypeVar("F", bound=Callable[..., Any])


class NodeRegistry:
    """Handlers by node type, always with the built-in ones.

    Fill it while modules load; afterwards any thread may read it.

    >>> registry = NodeRegistry()
    >>> @registry.node("double")
    ... def double(data):
    ...     return 2 * data
    >>> registry.types
    frozenset({'double'})
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def node(self, type: str, *, config: type[BaseModel] | None = None) -> Callable[[F], F]:
        """Register the decorated function under a node type and return it unchanged; see `register`."""

        def decorate(function: F) -> F:
            self.register(type, function, config)
            return function

        return decorate

    def register(self, type: str, function: Callable[..., Any], config: type[BaseModel] | None = None) -> None:
        """Register a function, sync or async, for a node type; `config` is the pydantic model of its nodes' config.

        Raises ConfigurationError if the type has another handler, or for a signature that a node can't have.
        """
        if not type:
            raise ConfigurationError("a node type needs a name")
        if type in BUILT_IN:
            raise ConfigurationError(f"node type {type!r} is built in; give yours another name")
        self._add(Handler(type, function, config))

    def handler(self, type: str) -> Handler:
        """Return the handler of a node type, also of a built-in one. Raises UnknownNodeType."""
        found = self._handlers.get(type) or BUILT_IN.get(type)
        if found is None:
            raise UnknownNodeType(type, sorted(self._handlers))
        return found

    @property
    def types(self) -> frozenset[str]:
        """The registered node types, without the built-in ones."""
        return frozenset(self._handlers)

    def __contains__(self, type: object) -> bool:
        return type in self._handlers or type in BUILT_IN

    def merge(self, other: NodeRegistry) -> None:
        """Add the handlers of another registry. Raises ConfigurationError, and adds none, if a type has two."""
        for handler in other._handlers.values():
            self._check(handler)
        self._handlers = {**other._handlers, **self._handlers}

    def _add(self, handler: Handler) -> None:
        self._check(handler)
        self._handlers.setdefault(handler.node_type, handler)

    def _check(self, handler: Handler) -> None:
        known = self._handlers.get(handler.node_type, handler)
        if known.function != handler.function or known.config_model is not handler.config_model:
            both = f"{_description(known)} and {_description(handler)}"
            raise ConfigurationError(f"node type {handler.node_type!r} has two handlers, {both}; rename one type")


def _description(handler: Handler) -> str:
    return (
        handler.name if handler.config_model is None else f"{handler.name} with config {handler.config_model.__name__}"
    )
