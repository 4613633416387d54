"""What operators do to an execution and its descendants, through the engine: cancel, pause, resume, retry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from spanloom.engine.epoch import Epoch
from spanloom.engine.records import Controlled, NodeJob
from spanloom.engine.store import ExecutionStore

__all__ = ["ExecutionControl"]


class ExecutionControl:
    """The control transitions of WorkflowEngine.

    Each reaches all descendants in one step, and raises UnknownExecution, InvalidTransition where the table of states
    forbids it, StaleVersion if `expected_revision` is given and not the execution's, and StoreUnavailable.
    """

    store: ExecutionStore
    epoch: Epoch

    @abstractmethod
    def open(self) -> None:
        """Connect, if that has not happened yet."""

    @abstractmethod
    def push(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = ()) -> None:
        """Put on Redis what the store decided."""

    def cancel_execution(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Cancel it: nothing of it starts any more, and what runs is not recorded as completed.

        True if this call did it, False if it was cancelled already.
        """
        self.open()
        controlled = self.store.cancel_execution(execution_id, expected_revision=expected_revision)
        self.push((), ended=controlled.executions)
        if controlled.done:
            self.push(self.store.wake_parents([execution_id], epoch=self.epoch.recent()))
        return controlled.done

    def pause_execution(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Pause it: what runs may end, nothing new starts until it is resumed. A deadline goes on counting.

        True if this call did it, False if it was paused already.
        """
        self.open()
        return self.store.pause_execution(execution_id, expected_revision=expected_revision).done

    def resume_execution(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Let a paused execution go on; a delay that is not over waits on.

        True if this call did it, False if it was running already.
        """
        self.open()
        return self._pushed(
            self.store.resume_execution(execution_id, expected_revision=expected_revision, epoch=self.epoch.recent())
        )

    def retry_execution(self, execution_id: str, *, expected_revision: int | None = None) -> bool:
        """Run a failed execution on from where it failed: failed nodes again, what completed before is kept.

        A child that failed is retried in the same way. What came after a failure that the workflow had handled is
        done anew.
        """
        self.open()
        return self._pushed(
            self.store.retry_execution(execution_id, expected_revision=expected_revision, epoch=self.epoch.recent())
        )

    def _pushed(self, controlled: Controlled) -> bool:
        self.push(controlled.jobs)
        return controlled.done
