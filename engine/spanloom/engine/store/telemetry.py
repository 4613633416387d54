"""The part of the store port for logs and spans, and for spans that may be lost before they are exported.

As in the whole port (port.py), each method is one transition and one transaction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from datetime import datetime

from spanloom.engine.arguments import Count, Limit
from spanloom.engine.store.models import LogRecord, SpanRecord
from spanloom.engine.store.requests import LogLine, NodeLines, PendingExports, SpanLine

__all__ = ["SpanExports", "Telemetry"]


class Telemetry(ABC):
    """Logs and spans of an execution, but for those that a record brings with a node run's outcome."""

    @abstractmethod
    def add_log(self, execution_id: str, line: LogLine, *, node_id: str | None = None, item: Count = 0) -> int:
        """Append one line and return its id. Raises UnknownExecution."""

    @abstractmethod
    def add_logs(self, requests: Sequence[NodeLines]) -> list[int | None]:
        """Append lines of running node runs, each in their order, and return the id of the last line of each request.

        None: the fence is stale, and no line of that request is stored. Lines that are sent `again`, because the
        answer was lost, are stored once and get the same answer, even if the fence is stale by then.
        """

    @abstractmethod
    def get_logs(
        self, execution_id: str, *, node_id: str | None = None, after: int = 0, limit: Limit = 1000
    ) -> list[LogRecord]:
        """Return lines with id > `after`, ascending by id."""

    @abstractmethod
    def add_span(self, execution_id: str, span: SpanLine) -> None:
        """Store one span, in place of an earlier one with the same span_id. Raises UnknownExecution."""

    @abstractmethod
    def update_span(self, execution_id: str, span_id: str, *, end_ns: int, status: str) -> bool:
        """End a stored span; False if it is not there."""

    @abstractmethod
    def get_trace(
        self, execution_id: str, *, after: SpanRecord | None = None, limit: int | None = None
    ) -> list[SpanRecord]:
        """Return its spans by (start_ns, span_id): all, or up to `limit` of those that come after one of them."""

    def iter_trace(self, execution_id: str, *, page: int = 1000) -> Iterator[SpanRecord]:
        """Yield its spans by (start_ns, span_id), of which one page is in memory."""
        after: SpanRecord | None = None
        while found := self.get_trace(execution_id, after=after, limit=page):
            yield from found
            after = found[-1]
            if len(found) < page:
                return


class SpanExports(ABC):
    """Spans that were recorded and are still in the memory of the worker that is to export them to a tracing backend.

    - A record writes nothing for it. Each worker that exports has one time in the store: it has exported all that it
      recorded before.
    - The rest of a worker that is gone is derived: the executions in which an outcome of one of its claims was recorded
      since that time.
    - A worker is gone once its lease was released and all its claims were moved: no record of it can follow.
    - Times are the store's: a worker passes back those that were returned to it.
    """

    @abstractmethod
    def ack_exports(
        self, worker_id: str, until: datetime | None = None, *, now: datetime | None = None
    ) -> datetime | None:
        """Note that a worker has exported all that it recorded before `until`, and return the time by now.

        - `until` is a time that an earlier call returned, before that export began.
        - Without it the worker begins to export, with the records from now on. If it has begun, nothing changes.
        - The answer is None if the worker is unknown, or with `until` if it has not begun.
        """

    @abstractmethod
    def claim_exports(self, worker_id: str, *, limit: int = 1000, now: datetime | None = None) -> PendingExports | None:
        """Make a worker the exporter of the rest of a worker that is gone, and return a part of it.

        - None: no worker is gone that has begun to export, or other live workers are the exporters of all of them.
        - The part follows those that were released. It is returned again until it is released.
        - `limit` bounds the executions that are looked at, of which few or none may be in the answer.
        - If the exporter is gone as well, or its lease has lapsed, the next one goes on from there.
        """

    @abstractmethod
    def release_exports(self, worker_id: str, left_by: str, cursor: str | None = None) -> None:
        """Note that a worker has exported the spans of `left_by` up to the cursor of its PendingExports.

        - Without a cursor nothing is left: `left_by` is as one that has not begun to export.
        - `left_by` is the worker itself, which stops, or a worker whose exporter it is. Others are left unchanged.
        """
