"""The registry of handlers by node type."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

from spanloom.engine.arguments import Text, check_value, checked_calls
from spanloom.engine.errors import ConfigurationError, UnknownNodeType
from spanloom.engine.handlers.builtin import BUILT_IN
from spanloom.engine.handlers.handler import Executor, Handler
from spanloom.engine.handlers.redefinition import is_redefinition, is_typed_in
from spanloom.engine.logs import Logger

__all__ = ["NodeRegistry"]

_log = Logger("spanloom.engine")

F = TypeVar("F", bound=Callable[..., Any])


@checked_calls(but=("handler",))  # which checks after a miss: workers look up the handler of each node
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
        self._included_in: weakref.WeakSet[NodeRegistry] = weakref.WeakSet()

    def node(
        self, type: Text, *, config: type[BaseModel] | None = None, executor: Executor | None = None
    ) -> Callable[[F], F]:
        """Register the decorated function under a node type and return it unchanged; see `register`."""

        def decorate(function: F) -> F:
            self.register(type, function, config, executor)
            return function

        return decorate

    def register(
        self,
        type: Text,
        function: Callable[..., Any],
        config: type[BaseModel] | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Register a function, sync or async, for a node type; `config` is the pydantic model of its nodes' config.

        A function that is defined again at the same place, as by a notebook cell that runs again, replaces the older.

        Raises ConfigurationError if the type has another handler, or for a signature that a node can't have.
        """
        if not type:
            raise ConfigurationError("a node type needs a name")
        if type in BUILT_IN:
            raise ConfigurationError(f"node type {type!r} is built in; give yours another name")
        self._add(Handler(type, function, config, executor))

    def handler(self, type: str) -> Handler:
        """Return the handler of a node type, also of a built-in one. Raises UnknownNodeType."""
        try:
            found = self._handlers.get(type) or BUILT_IN.get(type)
        except TypeError:  # it has no hash
            found = None
        if found is None:
            check_value("type", type, str)
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
        added = {handler.node_type: handler for handler in other._handlers.values() if self._is_new(handler)}
        self._handlers = {**self._handlers, **added}

    def include(self, other: NodeRegistry) -> None:
        """Merge another registry, and take over each handler that is registered there later."""
        self.merge(other)
        other._included_in.add(self)

    def _add(self, handler: Handler) -> None:
        for registry in (self, *self._included_in):
            if registry._is_new(handler):
                registry._handlers[handler.node_type] = handler

    def _is_new(self, handler: Handler) -> bool:
        """Return whether a handler is to be added, or replaces an older one.

        Raises ConfigurationError if its type has another.
        """
        known = self._handlers.get(handler.node_type)
        if known is None:
            return True
        options = (known.config_model, known.executor), (handler.config_model, handler.executor)
        if known.function == handler.function and options[0] == options[1]:
            return False
        same_options = known.executor == handler.executor and is_redefinition(known.config_model, handler.config_model)
        if is_redefinition(known.function, handler.function) and (
            same_options or known.function is not handler.function or is_typed_in()
        ):
            if not is_typed_in():
                _log.warning("handler_replaced", node_type=handler.node_type, handler=handler.name)
            return True
        both = f"{_description(known)} and {_description(handler)}"
        raise ConfigurationError(f"node type {handler.node_type!r} has two handlers, {both}; rename one type")


def _description(handler: Handler) -> str:
    config = "" if handler.config_model is None else f" with config {handler.config_model.__name__}"
    executor = "" if handler.executor is None else f" with executor {handler.executor!r}"
    return f"{handler.name}{config}{executor}"
