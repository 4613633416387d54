"""The span exporter: spans of executions, and those that a worker recorded and died before it had exported."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime

import structlog
from opentelemetry import trace

from spanloom.engine.errors import StoreUnavailable
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.models import SpanRecord
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, RecordResult, SpanExport, StartRequest
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
_SLACK_NS = 5_000_000_000  # a span that ended longer ago has reached the SDK, with what its record ended
_FLUSH_SECONDS = 30.0
_JOIN_SECONDS = 0.5
_LAST_FLUSH_SECONDS = 1.0  # a collector that is away must not keep a worker that stops


class SpanExporter:
    """Keeps note in the store of the spans in this process's memory, until the SDK has sent them.

    Every few seconds the SDK is made to send what it has, that is confirmed in the store, and what workers left there
    that are gone is exported from the store. Nothing of it happens without an SDK.
    """

    poll_seconds = 5.0

    def __init__(self, store: ExecutionStore, queue: NodeQueue, worker_id: Callable[[], str]) -> None:
        self._store = store
        self._queue = queue
        self._worker_id = worker_id
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="spanloom-exports", daemon=True)
        self._holding: set[str] = set()  # the ids under which spans were recorded and not confirmed
        self._lock = threading.Lock()
        self._flush = _Flush()

    # ---- while nodes run ----

    def held(self, span: NodeSpan, worker_id: str) -> int | None:
        """Return the time by now, which is recorded with a span that the SDK will export; None if it will not."""
        if not span.exported:
            return None
        if worker_id not in self._holding:
            with self._lock:
                self._holding.add(worker_id)
        return time.time_ns()

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
        try:
            self._confirm(time.time_ns(), _LAST_FLUSH_SECONDS)
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
        self._confirm(time.time_ns() - _SLACK_NS, _FLUSH_SECONDS)
        while taken := self._store.claim_exports(self._worker_id()):
            for export in taken:
                self._export(export)
            if not self._flush(_FLUSH_SECONDS):
                return  # they stay this worker's, and are confirmed or taken over with it
            self._store.release_exports(self._worker_id(), taken)

    def _confirm(self, until_ns: int, seconds: float) -> None:
        with self._lock:
            holding = list(self._holding)
        if holding and self._flush(seconds):
            for worker_id in holding:
                self._store.ack_exports(worker_id, until_ns)

    def _export(self, left: SpanExport) -> None:
        """Export what a worker had recorded of an execution, and the execution's own span if that has ended."""
        execution = self._store.get_execution(left.execution_id)
        if execution is None:
            return
        spans = _of_worker(self._store.get_trace(left.execution_id), left.worker_id.rpartition(":")[0])
        for span in spans:
            export_span(span, execution)
        if (ended := EndedExecution.of(execution)) is not None:
            export_execution(ended)
        _log.info("spans_taken_over", execution_id=left.execution_id, worker_id=left.worker_id, spans=len(spans))


def _of_worker(spans: Iterable[SpanRecord], name: str) -> list[SpanRecord]:
    """Return those that a worker has ended, with all that its handlers opened below them, parents first."""
    found: dict[str, SpanRecord] = {}
    for span in spans:  # by their beginning: a parent comes before its children
        if span.end_ns is None:
            continue
        own = span.kind == "consumer" and span.attributes.get("spanloom.worker") == name
        if own or (span.kind != "consumer" and span.parent_span_id in found):
            found[span.span_id] = span
    return list(found.values())


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
