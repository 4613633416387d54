"""The control of all executions that match a filter, which is a part of the engine."""

from __future__ import annotations

from collections.abc import Iterable

from spanloom.engine.arguments import Bound, Duration, checked_calls
from spanloom.engine.operations.bulk import BulkResult
from spanloom.engine.operations.control import PURGED, Operations, Status
from spanloom.engine.operations.replay import FromNode, Replays, ReplayVersion
from spanloom.engine.store.models import ExecutionFilter

__all__ = ["BulkControl"]


@checked_calls()
class BulkControl:
    """The methods of WorkflowEngine for many executions: the oldest `limit` that the filter finds, parents first."""

    operations: Operations
    _replays: Replays

    def cancel_executions(self, wanted: ExecutionFilter, *, limit: Bound | None = None) -> BulkResult:
        """Cancel each that is pending, running or paused."""
        return self.operations.cancel_each(wanted, limit=limit)

    def pause_executions(self, wanted: ExecutionFilter, *, limit: Bound | None = None) -> BulkResult:
        """Pause each that is running."""
        return self.operations.pause_each(wanted, limit=limit)

    def resume_executions(self, wanted: ExecutionFilter, *, limit: Bound | None = None) -> BulkResult:
        """Resume each that is paused."""
        return self.operations.resume_each(wanted, limit=limit)

    def retry_executions(self, wanted: ExecutionFilter, *, limit: Bound | None = None) -> BulkResult:
        """Retry each that has failed; acknowledged ones only if the filter selects them."""
        return self.operations.retry_each(wanted, limit=limit)

    def acknowledge_executions(self, wanted: ExecutionFilter, *, limit: Bound | None = None) -> BulkResult:
        """Acknowledge each that has failed."""
        return self.operations.acknowledge_each(wanted, limit=limit)

    def replay_executions(
        self,
        wanted: ExecutionFilter,
        *,
        version: ReplayVersion = "same",
        from_node: FromNode = None,
        limit: Bound | None = None,
    ) -> BulkResult:
        """Replay each that ended and has no parent."""
        return self._replays.replay_each(wanted, version=version, from_node=from_node, limit=limit)

    def purge_executions(
        self, older_than: Duration, *, statuses: Iterable[Status] = PURGED, limit: Bound | None = None
    ) -> int:
        """Delete executions that ended longer ago than `older_than` (seconds or a timedelta); return their number.

        Whole families are deleted, by the status of their root. A family that is still open, or that ended later,
        stays. The deletion runs in batches, and stops after about `limit` executions. Idempotency keys are deleted
        with their executions, and expired keys as well.
        """
        return self.operations.purge(older_than, statuses=statuses, limit=limit)
