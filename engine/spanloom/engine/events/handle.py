"""A handle on one started execution: its id, and ways to follow it to its end."""

from __future__ import annotations

from typing import Any, Protocol

from spanloom.engine.errors import ExecutionFailed, UnknownExecution
from spanloom.engine.events.stream import AsyncEventStream, EventStream
from spanloom.engine.store.models import Execution
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["ExecutionHandle", "output_of"]


class _Engine(Protocol):
    """What a handle needs of the engine that made it."""

    @property
    def store(self) -> ExecutionStore: ...
    def wait(self, execution_id: str, timeout: float | None = None) -> Execution: ...
    async def await_execution(self, execution_id: str, timeout: float | None = None) -> Execution: ...
    def events(self, execution_id: str, after: str | None = None, *, timeout: float | None = None) -> EventStream: ...
    def aevents(
        self, execution_id: str, after: str | None = None, *, timeout: float | None = None
    ) -> AsyncEventStream: ...
    def cancel_execution(self, execution_id: str) -> bool: ...
    def pause_execution(self, execution_id: str) -> bool: ...
    def resume_execution(self, execution_id: str) -> bool: ...
    def retry_execution(self, execution_id: str) -> bool: ...


class ExecutionHandle:
    """Follow one execution. Cheap to make and to keep; holds the id only."""

    __slots__ = ("_engine", "id")

    def __init__(self, engine: _Engine, execution_id: str) -> None:
        self._engine = engine
        self.id = execution_id

    @property
    def status(self) -> ExecutionStatus:
        """Its status now, read from the store. Raises UnknownExecution, StoreUnavailable."""
        execution = self._engine.store.get_execution(self.id)
        if execution is None:
            raise UnknownExecution(self.id)
        return execution.status

    def result(self, timeout: float | None = None) -> Any:
        """Wait up to `timeout` seconds (None: without limit) and return the output.

        Raises ExecutionFailed (also when cancelled), WaitTimeout, UnknownExecution, StoreUnavailable.
        """
        return output_of(self._engine.wait(self.id, timeout=timeout))

    async def aresult(self, timeout: float | None = None) -> Any:
        """Like result(), on the running event loop, which it never blocks."""
        return output_of(await self._engine.await_execution(self.id, timeout=timeout))

    def events(self, after: str | None = None, *, timeout: float | None = None) -> EventStream:
        """Iterate over its events, live. See WorkflowEngine.events."""
        return self._engine.events(self.id, after, timeout=timeout)

    def aevents(self, after: str | None = None, *, timeout: float | None = None) -> AsyncEventStream:
        """Like events(), for `async for`. See WorkflowEngine.aevents."""
        return self._engine.aevents(self.id, after, timeout=timeout)

    def cancel(self) -> bool:
        """Cancel the execution. See WorkflowEngine.cancel_execution."""
        return self._engine.cancel_execution(self.id)

    def pause(self) -> bool:
        """Pause the execution. See WorkflowEngine.pause_execution."""
        return self._engine.pause_execution(self.id)

    def resume(self) -> bool:
        """Resume the execution. See WorkflowEngine.resume_execution."""
        return self._engine.resume_execution(self.id)

    def retry(self) -> bool:
        """Retry the failed execution. See WorkflowEngine.retry_execution."""
        return self._engine.retry_execution(self.id)

    def __repr__(self) -> str:
        return f"ExecutionHandle({self.id!r})"


def output_of(execution: Execution) -> Any:
    """Return the output of an ended execution. Raises ExecutionFailed unless it completed."""
    if execution.status is not ExecutionStatus.COMPLETED:
        raise ExecutionFailed(execution)
    return execution.output
