"""Starts: executions are created in the store, and the jobs of their entry nodes are pushed to Redis."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from spanloom.engine.errors import SpanloomError, StoreUnavailable
from spanloom.engine.handlers.builder import WorkflowBuilder
from spanloom.engine.ids import uuid7
from spanloom.engine.limits import MAX_BATCH_BYTES
from spanloom.engine.logs import Logger
from spanloom.engine.operations.control import Push
from spanloom.engine.operations.start_options import start_fields
from spanloom.engine.payload import encode
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_epoch import Epoch
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import StartAnswer, StartRequest, StartResult
from spanloom.engine.telemetry.instruments import count_started
from spanloom.engine.telemetry.spans import export_start
from spanloom.engine.telemetry.tracing import sdk, start_trace

__all__ = ["ExecutionStarter"]

_log = Logger("spanloom.engine")
_BATCH = 500
_RESEND_SECONDS = (0.05, 0.25)  #: pauses before a start without a response is sent again: a broken connection


class ExecutionStarter:
    """The starter of an engine's executions."""

    def __init__(
        self,
        opened: Callable[[], None],
        store: ExecutionStore,
        queue: NodeQueue,
        epoch: Epoch,
        push: Push,
        builders: Mapping[str, WorkflowBuilder[Any]],
        payload_limit_bytes: int,
    ) -> None:
        """Take `opened`, which connects if the engine is not connected yet, and `push`, which pushes jobs to Redis."""
        self._opened = opened
        self._store = store
        self._queue = queue
        self._epoch = epoch
        self._push = push
        self._builders = builders
        self._payload_limit_bytes = payload_limit_bytes

    def encode_input(self, workflow_id: str, data: Any) -> str:
        """Return initial data as JSON text, validated if a builder of the engine has an input type."""
        if builder := self._builders.get(workflow_id):
            return builder.encode_input(data, self._payload_limit_bytes)
        return encode(data, f"the input of workflow {workflow_id!r}", self._payload_limit_bytes)

    def request(self, workflow_id: str, data: Any, options: Mapping[str, Any]) -> StartRequest:
        """Return the request of one start; `options` are the result of start_fields()."""
        text = self.encode_input(workflow_id, data)
        trace = start_trace(workflow_id)
        return StartRequest(
            execution_id=uuid7(),
            workflow_id=workflow_id,
            input=text,
            input_hash=hashlib.sha256(text.encode()).hexdigest() if options["idempotency_key"] else "",
            trace_parent=trace.trace_parent,
            trace_state=trace.trace_state,
            caller_span_id=trace.caller_span_id,
            **options,
        )

    def start(self, requests: Sequence[StartRequest], connection: Any = None) -> list[str]:
        """Create executions in one round trip, and return their ids. Raises the first error among their results."""
        self._opened()
        answers = self._create(requests, connection)
        started = [answer for answer in answers if isinstance(answer, StartResult)]
        if sdk() is not None:
            self._export(requests, answers)
        if jobs := [job for answer in started for job in answer.jobs]:
            self._push(jobs)
        count_started(requests, answers)
        for answer in answers:
            if isinstance(answer, SpanloomError):
                raise answer
        return [answer.execution_id for answer in started]

    def start_each(self, workflow_id: str, items: Iterable[Any], options: Mapping[str, Any]) -> list[str]:
        """Start one execution for each item, in batches of one round trip, and return their ids in order."""
        checked = start_fields(**options)
        requests = [self.request(workflow_id, item, checked) for item in items]
        ids: list[str] = []
        for batch in _batches(requests):
            try:
                ids += self.start(batch)
            except SpanloomError as error:
                if ids:
                    error.add_note(f"{len(ids)} of {len(requests)} had been started before: {', '.join(ids)}")
                raise
        return ids

    def _export(self, requests: Sequence[StartRequest], answers: Sequence[StartAnswer]) -> None:
        now_ns = time.time_ns()
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, StartResult):
                lists = [self._queue.list_name(job.queue, job.priority) for job in answer.jobs]
                export_start(request, answer.created_at, lists=lists, end_ns=now_ns)

    def _create(self, requests: Sequence[StartRequest], connection: Any) -> list[StartAnswer]:
        """Create executions; a request without a response is sent again, with the same ids."""
        for pause in _RESEND_SECONDS if connection is None else ():
            try:
                return self._store.create_executions(requests, epoch=self._epoch.recent())
            except StoreUnavailable as error:
                _log.warning("start_sent_again", executions=len(requests), error=str(error))
                time.sleep(pause)
        return self._store.create_executions(requests, epoch=self._epoch.recent(), connection=connection)


def _batches(requests: Sequence[StartRequest]) -> Iterator[Sequence[StartRequest]]:
    """Yield the requests in batches of bounded number and size."""
    batch: list[StartRequest] = []
    size = 0
    for request in requests:
        size += len(request.input)
        if batch and (len(batch) == _BATCH or size > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], len(request.input)
        batch.append(request)
    if batch:
        yield batch
