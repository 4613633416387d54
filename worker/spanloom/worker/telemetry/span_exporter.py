"""The span exporter: spans of executions, and those that a worker recorded and died before it had exported."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import partial

import structlog
from opentelemetry import trace

from spanloom.engine.errors import StoreUnavailable
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.models import SpanRecord
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, PendingExports, RecordResult, StartRequest
from spanloom.engine.store.states import ExecutionStatus
from spanloom.engine.telemetry.spans import (
    EndedExecution,
    export_ended,
    export_execution,
    export_span,
    export_start,
    nanoseconds,
)
from spanloom.engine.telemetry.tracing import sdk
from spanloom.worker.telemetry.node_span import NodeSpan

__all__ = ["SpanExporter"]

_log = structlog.get_logger("spanloom.worker")
_FLUSH_SECONDS = 30.0
_JOIN_SECONDS = 0.5
_UNSENT = 500  # spans to hand to the SDK between two flushes: its queue drops those that it has no room for
_LAST_FLUSH_SECONDS = 1.0  # a collector that is away must not keep a worker that stops


class SpanExporter:
    """Keeps the store informed of how far the spans that this process recorded have been sent.

    Every few seconds the SDK is made to send all that it has, and that is confirmed in the store. The rest of workers
    that are gone is exported from the store. Nothing of it happens without an SDK.

    No clock of this process is used. A span is handed to the SDK before its record is sent. The spans of all records
    that are older than a time of the store are therefore sent by a flush that begins after that time was returned.
    """

    poll_seconds = 5.0

    def __init__(self, store: ExecutionStore, queue: NodeQueue, worker_id: Callable[[], str]) -> None:
        self._store = store
        self._queue = queue
        self._worker_id = worker_id
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="spanloom-exports", daemon=True)
        self._to_begin: set[str] = set()  # the ids under which spans are to be recorded for the first time
        self._exporting: set[str] = set()  # those under which they were
        self._latest: datetime | None = None  # the time that the store returned last
        self._recording: _Times = {}
        self._flush = _Flush()

    # ---- while nodes run ----

    def recording(self, spans: Iterable[NodeSpan], worker_id: str) -> AbstractContextManager[None]:
        """Return a block for the record of these spans and for the spans of its consequences."""
        if not any(span.exported for span in spans):
            return _NOT_EXPORTED
        if worker_id not in self._exporting:
            self._to_begin.add(worker_id)
        return _Recording(self._recording, self._latest)

    def begin(self) -> None:
        """Note in the store that this worker exports, before its first record of a span. Raises StoreUnavailable."""
        for worker_id in list(self._to_begin):
            if (at := self._store.ack_exports(worker_id)) is not None:
                self._exporting.add(worker_id)
                self._latest = self._latest or at
            self._to_begin.discard(worker_id)

    def execution_ended(self, claim: Claim, error: str | None, status: ExecutionStatus, ended_at: datetime) -> None:
        """Export the own span of an execution that a record has ended."""
        if sdk() is None:
            return
        header = claim.header
        failed = status is ExecutionStatus.FAILED
        export_execution(
            EndedExecution(
                id=header.execution_id,
                workflow_id=header.workflow_id,
                version=header.version,
                status=status,
                created_at=header.created_at,
                ended_at=ended_at,
                trace_parent=header.trace_parent,
                trace_state=header.trace_state,
                caller_span_id=header.caller_span_id,
                parent_execution_id=header.parent_execution_id,
                error_type=str(json.loads(error or "{}").get("type")) if failed else None,
            )
        )
        if failed:
            self.ended([header.execution_id], own=False)

    def child_started(self, child: StartRequest, answer: RecordResult) -> None:
        """Export that a node has started a child execution."""
        if sdk() is None or not answer.jobs:
            return
        lists = [self._queue.list_name(job.queue, job.priority) for job in answer.jobs]
        created_at = answer.jobs[0].pushed_at  # its entry nodes were queued as it was created
        export_start(child, created_at, lists=lists, end_ns=nanoseconds(created_at))

    def ended(self, execution_ids: Iterable[str], *, own: bool = True) -> None:
        """Export what is known of executions that ended without a record, or with nodes that still waited."""
        try:
            export_ended(self._store, execution_ids, own=own)
        except StoreUnavailable as error:
            _log.warning("spans_not_exported", error=str(error))

    # ---- beside them ----

    def start(self) -> None:
        """Begin to confirm and take over, again and again."""
        self._thread.start()

    def stop(self) -> None:
        """Send what is left, of a worker that has drained. What can't be sent in time is another worker's to export."""
        self._stopped.set()
        worker_ids, self._exporting = self._exporting, set()
        try:
            # A run that goes on after the grace may record still: then what it left is another worker's, too.
            if worker_ids and self._flush(_LAST_FLUSH_SECONDS) and not self._recording and not self._exporting:
                for worker_id in worker_ids:
                    self._store.release_exports(worker_id, worker_id)
        except StoreUnavailable as error:
            _log.warning("exports_not_confirmed", error=str(error))
        self._thread.join(_JOIN_SECONDS)  # it may wait for the collector

    def _watch(self) -> None:
        while not self._stopped.wait(self.poll_seconds):
            try:
                self.poll()
            except StoreUnavailable as error:
                _log.warning("exports_not_confirmed", error=str(error))
            except Exception:
                _log.exception("exports_not_confirmed")  # the next look must still come

    def poll(self) -> None:
        """Make one pass. Raises StoreUnavailable."""
        if sdk() is None:
            return
        self._confirm()
        while (left := self._store.claim_exports(self._worker_id())) is not None:
            if not self._export(left):
                return  # the next pass exports them again
            self._store.release_exports(self._worker_id(), left.worker_id, left.cursor)

    def _confirm(self) -> None:
        """Have all spans sent, and note in the store up to which time they are."""
        worker_ids = list(self._exporting)
        times = [self._latest, *list(self._recording.values())]
        if not worker_ids or not self._flush(_FLUSH_SECONDS) or None in times:
            return
        until = min(time for time in times if time is not None)
        for worker_id in worker_ids:
            at = self._store.ack_exports(worker_id, until)
            if at is None:
                self._exporting.discard(worker_id)  # of a lost lease, whose spans another worker has exported
            else:
                self._latest = at

    def _export(self, left: PendingExports) -> bool:
        """Export the spans that a worker has left in some executions, and return whether all were sent."""
        unsent = 0
        for execution_id in left.execution_ids:
            for export in self._exports(execution_id, left.worker_id):
                export()
                unsent += 1
                if unsent == _UNSENT:
                    unsent = 0
                    if not self._flush(_FLUSH_SECONDS):
                        return False
        return not unsent or self._flush(_FLUSH_SECONDS)

    def _exports(self, execution_id: str, worker_id: str) -> Iterator[Callable[[], None]]:
        """Yield the export of each span that a worker had recorded, and of the execution's own if that has ended."""
        execution = self._store.get_execution(execution_id, data_limit=0)
        if execution is None:
            return
        count = 0
        for span in _of_worker(self._store.iter_trace(execution_id), worker_id.rpartition(":")[0]):
            yield partial(export_span, span, execution)
            count += 1
        _log.info("spans_taken_over", execution_id=execution_id, worker_id=worker_id, spans=count)
        if (ended := EndedExecution.of(execution)) is not None:
            yield partial(export_execution, ended)


def _of_worker(spans: Iterable[SpanRecord], name: str) -> Iterator[SpanRecord]:
    """Yield those that a worker has ended, with all that its handlers opened below them, parents first."""
    found: set[str] = set()
    for span in spans:  # by their beginning: a parent comes before its children
        if span.end_ns is None:
            continue
        own = span.kind == "consumer" and span.attributes.get("spanloom.worker") == name
        if own or (span.kind != "consumer" and span.parent_span_id in found):
            found.add(span.span_id)
            yield span


#: By thread: the latest time of the store before its record was sent. None: the store had not returned any.
_Times = dict[int, datetime | None]
_NOT_EXPORTED = nullcontext()


class _Recording:
    """A record that is on its way, and the end or the start of an execution that may follow from it."""

    __slots__ = ("_since", "_times")

    def __init__(self, times: _Times, since: datetime | None) -> None:
        self._times = times
        self._since = since

    def __enter__(self) -> None:
        self._times[threading.get_ident()] = self._since

    def __exit__(self, *_: object) -> None:
        del self._times[threading.get_ident()]


class _Flush:
    """Has the SDK send what it holds. It may take its time, whatever it is told, while a collector does not answer."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._sent = False

    def __call__(self, seconds: float) -> bool:
        """Wait so long at most, and tell whether all was sent."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._sent = False
        self._thread = threading.Thread(target=self._run, name="spanloom-flush", daemon=True)
        self._thread.start()
        self._thread.join(seconds)
        return self._sent

    def _run(self) -> None:
        flush = getattr(trace.get_tracer_provider(), "force_flush", None)
        self._sent = flush is not None and bool(flush())
