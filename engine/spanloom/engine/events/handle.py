"""A handle on one started execution: its id, its control, and ways to follow it to its end."""

from __future__ import annotations

from typing import Any

from spanloom.engine.arguments import Timeout, checked_calls
from spanloom.engine.errors import ExecutionFailed, PayloadRejected
from spanloom.engine.events.stream import AsyncEventStream, EventStream, EventWatcher
from spanloom.engine.events.waiter import Waiter
from spanloom.engine.operations.control import EngineParts, ExecutionControl
from spanloom.engine.store.models import Execution
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["ExecutionHandle", "output_of"]


@checked_calls(but=("__init__",))
class ExecutionHandle(ExecutionControl):
    """A handle on one execution, which follows and controls it. Cheap to make and to keep."""

    __slots__ = ("_started", "_waiter", "_watcher")

    def __init__(
        self, execution_id: str, engine: EngineParts, waiter: Waiter, watcher: EventWatcher, *, started: bool = False
    ) -> None:
        super().__init__(execution_id, engine)
        self._started = started  # by the call that returns this handle
        self._waiter = waiter
        self._watcher = watcher

    @property
    def status(self) -> ExecutionStatus:
        """The current status, read from the store. Raises UnknownExecution, StoreUnavailable."""
        return self._get().status

    def result(self, timeout: Timeout = None) -> Any:
        """Wait up to `timeout` seconds (None: without limit) and return the output.

        Raises ExecutionFailed (also when cancelled), WaitTimeout, UnknownExecution, StoreUnavailable, and
        PayloadRejected for an output of more than the settings' `join_limit_bytes`.
        """
        return output_of(self._waiter.wait(self.id, timeout, started=self._started))

    async def aresult(self, timeout: Timeout = None) -> Any:
        """Like result(), on the running event loop, which it never blocks."""
        return output_of(await self._waiter.await_execution(self.id, timeout, started=self._started))

    def events(self, after: str | None = None, *, timeout: Timeout = None) -> EventStream:
        """Iterate over the execution's events, live. See WorkflowEngine.events."""
        return self._watcher.events(self.id, after, timeout)

    def aevents(self, after: str | None = None, *, timeout: Timeout = None) -> AsyncEventStream:
        """Like events(), for `async for`. See WorkflowEngine.aevents."""
        return self._watcher.aevents(self.id, after, timeout)

    def __repr__(self) -> str:
        return f"ExecutionHandle({self.id!r})"


def output_of(execution: Execution) -> Any:
    """Return the output of an ended execution. Raises ExecutionFailed unless it completed, or PayloadRejected."""
    if execution.status is not ExecutionStatus.COMPLETED:
        raise ExecutionFailed(execution)
    if execution.output_left_out:
        raise PayloadRejected(
            f"the output of execution {execution.id} takes {execution.output_size:,} bytes, more than the limit "
            "(SPANLOOM_JOIN_LIMIT_BYTES); read the data of its last nodes one by one, with store.get_node_results"
        )
    return execution.output
