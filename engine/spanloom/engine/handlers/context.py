"""The context of a handler: the data and the functions that it may use while its node runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from spanloom.engine.payload import decode

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

__all__ = ["NodeContext", "NodeRuntime"]


class NodeRuntime(Protocol):
    """The services that a worker (or a test) supplies to a running node."""

    @property
    def log(self) -> FilteringBoundLogger:
        """A structlog logger; its lines are stored with the node."""
        ...

    def span(self, name: str, attributes: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Open a span below the node's own."""
        ...

    def heartbeat(self) -> None:
        """Raise LeaseLost if the attempt should end; see `cancelled`."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether this attempt should end: its claim was lost, or its worker stops and the grace is over."""
        ...


class NodeContext:
    """One attempt at one node of one execution. Data is decoded at its first use, for this attempt alone."""

    __slots__ = (
        "_input",
        "_results",
        "_runtime",
        "attempt",
        "config",
        "data_json",
        "depth",
        "execution_id",
        "idempotency_key",
        "input_json",
        "item",
        "metadata",
        "node_id",
        "parent_execution_id",
        "results_json",
        "state",
        "version",
        "workflow_id",
    )

    def __init__(
        self,
        *,
        execution_id: str,
        workflow_id: str,
        version: int,
        node_id: str,
        runtime: NodeRuntime,
        item: int = 0,
        attempt: int = 1,
        config: Any = None,
        input_json: str = "null",
        results_json: Mapping[str, str] | None = None,
        data_json: str | None = None,
        depth: int = 0,
        metadata: Mapping[str, str] | None = None,
        parent_execution_id: str | None = None,
        state: Any = None,
    ) -> None:
        """Take payloads as JSON text: the execution's initial data, the data of each taken parent, and the node's own.

        `data_json` is the result of a mapping, or the element of a mapped node's item; None: the inputs make the data.
        """
        self.execution_id = execution_id
        self.workflow_id = workflow_id
        self.version = version
        self.node_id = node_id
        self.item = item
        self.attempt = attempt
        #: The node's config: an instance of the type's config model, else a dict of this attempt's own.
        self.config: Any = {} if config is None else config
        self.input_json = input_json
        self.results_json: Mapping[str, str] = results_json or {}
        self.data_json = data_json
        self.depth = depth
        self.metadata: Mapping[str, str] = metadata or {}
        self.parent_execution_id = parent_execution_id
        #: The state that the engine's `lifespan` made for this worker.
        self.state: Any = state
        #: The same for every attempt: pass it to services that support idempotent requests.
        self.idempotency_key = f"{execution_id}:{node_id}:{item}"
        self._runtime = runtime

    @property
    def input(self) -> Any:
        """The execution's initial data."""
        try:
            return self._input
        except AttributeError:
            self._input: Any = decode(self.input_json)
            return self._input

    @property
    def results(self) -> dict[str, Any]:
        """The data of each parent with a taken edge, by node id; empty for an item of a mapped node."""
        try:
            return self._results
        except AttributeError:
            self._results: dict[str, Any] = {parent: decode(text) for parent, text in self.results_json.items()}
            return self._results

    @property
    def log(self) -> FilteringBoundLogger:
        """A structlog logger; its lines are stored and carry the execution, node and attempt."""
        return self._runtime.log

    def span(self, name: str, /, **attributes: Any) -> AbstractContextManager[Any]:
        """Open a span below the node's own, for a `with` block; it is exported and stored."""
        return self._runtime.span(name, attributes)

    def heartbeat(self) -> None:
        """Raise LeaseLost if a long handler should end: its claim is lost, or its worker stops; see `cancelled`."""
        self._runtime.heartbeat()

    @property
    def cancelled(self) -> bool:
        """Whether to stop: the execution was cancelled or the claim lost, or the worker stops and its grace is over.

        Becomes True about a second after the fact. An async handler need not poll it: it gets a CancelledError then.
        """
        return self._runtime.cancelled

    def __repr__(self) -> str:
        return f"<NodeContext of node {self.node_id!r} of execution {self.execution_id}, attempt {self.attempt}>"
