"""The way of one node job inside a worker: claim → load → call → classify → record → continue."""

from __future__ import annotations

import concurrent.futures
import contextvars
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from opentelemetry import context as otel_context

from spanloom.engine.context import NodeContext
from spanloom.engine.definitions import Node
from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import NodeTimeout, PermanentError, QueueUnavailable, StoreUnavailable
from spanloom.engine.graph import Plan
from spanloom.engine.handlers import Handler
from spanloom.engine.queue import NodeMessage
from spanloom.engine.records import Claim, Outcome, Record, Recorded
from spanloom.worker.attempt import Attempt
from spanloom.worker.inbox import Inbox
from spanloom.worker.lane import Lane
from spanloom.worker.lease import Lease
from spanloom.worker.options import WorkerOptions
from spanloom.worker.outcomes import Ending, of_error, of_load_error, of_refusal, of_result
from spanloom.worker.recorder import Recorder
from spanloom.worker.watchdog import Watchdog

__all__ = ["NodeRunner"]

_log = structlog.get_logger("spanloom.worker")


@dataclass(frozen=True, slots=True)
class _Loaded:
    plan: Plan
    node: Node
    handler: Handler


class NodeRunner:
    """Run claims in slots. Everything that differs between nodes is in the claim; everything shared is here."""

    def __init__(
        self,
        engine: WorkflowEngine,
        *,
        name: str,
        options: WorkerOptions,
        inbox: Inbox,
        lease: Lease,
        recorder: Recorder,
        lane: Lane,
        watchdog: Watchdog,
        state: Any,
        draining: threading.Event,
        given_up: threading.Event,
        due_in: Callable[[float], None],
    ) -> None:
        self._engine = engine
        self._name = name
        self._options = options
        self._inbox = inbox
        self._lease = lease
        self._recorder = recorder
        self._lane = lane
        self._watchdog = watchdog
        self._state = state
        self._draining = draining
        self._given_up = given_up
        self._due_in = due_in
        self._limit = engine.settings.payload_limit_bytes

    def run(self, message: NodeMessage, claim: Claim, worker_id: str) -> None:
        """Run a claimed node, and then what follows from it as long as work first allows. Never raises."""
        nodes_left, until = self._options.slice_nodes, time.monotonic() + self._options.slice_seconds
        following: Claim | None = claim
        job: NodeMessage | None = message  # None: work first goes on without one
        try:
            while following is not None:
                nodes_left -= 1
                more = nodes_left > 0 and time.monotonic() < until
                following = self._run_one(job, following, worker_id, more)
                job = None
        except StoreUnavailable as error:  # given up at a stop: the lease lapses, and the sweep moves the run on
            _log.warning("node_not_recorded", execution_id=claim.header.execution_id, error=str(error))
        except Exception as error:
            _log.exception("node_not_recorded", execution_id=claim.header.execution_id, node_id=claim.node.node_id)
            if following is not None:
                self._fail(following, worker_id, error)
        try:
            self._inbox.flush_if_idle()
        except QueueUnavailable as error:
            _log.warning("queue_unavailable", error=str(error))

    def _run_one(self, job: NodeMessage | None, claim: Claim, worker_id: str, more: bool) -> Claim | None:
        attempt = Attempt(claim, self._name, partial(self._lease.is_lost, worker_id), self._given_up.is_set)
        error: BaseException | None = None
        loaded: _Loaded | None = None
        try:
            loaded = self._load(claim)
            result = self._call(loaded, claim, attempt)
            ending = of_result(result, loaded.node, loaded.plan, claim.header.execution_id, self._limit)
        except BaseException as raised:  # whatever a handler raises, SystemExit too, is its node's failure and no more
            error = raised
            if isinstance(raised, concurrent.futures.CancelledError) and self._given_up.is_set():
                ending = Ending(Outcome.RELEASED)  # the worker stops, and the handler's grace is over
            else:
                ending = of_error(raised, loaded.node, claim.node.attempt) if loaded else of_load_error(raised)
        failed = error or (
            PermanentError("the handler returned a failure") if ending.outcome is Outcome.FAILED else None
        )
        attempt.close(failed, final=ending.outcome is Outcome.FAILED)
        if failed is not None:
            node = claim.node
            _log.warning(
                "attempt_failed",
                execution_id=claim.header.execution_id,
                node_id=node.node_id,
                attempt=node.attempt,
                outcome=ending.outcome.value,
                error=type(failed).__name__,
            )
        try:
            successors = self._successors(loaded, claim, ending) if more else ()
            answer = self._record(claim, worker_id, attempt, ending, successors)
        except StoreUnavailable:
            raise
        except Exception as refused:
            _log.exception("result_not_recorded", execution_id=claim.header.execution_id, node_id=claim.node.node_id)
            attempt.logs, attempt.spans = [], []  # whatever the store can't keep, it can keep that this failed
            ending = of_refusal(refused)
            answer = self._record(claim, worker_id, attempt, ending, ())
        return self._continue(job, claim, ending, answer)

    def _fail(self, claim: Claim, worker_id: str, error: Exception) -> None:
        """End a claim that our own code could not: nothing may stay running that nobody runs."""
        try:
            ending = of_refusal(error)
            answer = self._recorder.record(
                Record(
                    execution_id=claim.header.execution_id,
                    node_id=claim.node.node_id,
                    item=claim.node.item,
                    fence=claim.node.fence,
                    worker_id=worker_id,
                    outcome=ending.outcome,
                    error=ending.error,
                )
            )
            self._engine.push(answer.jobs, ended=[claim.header.execution_id] if answer.ended else [])
        except Exception:
            _log.exception("claim_given_up", execution_id=claim.header.execution_id, node_id=claim.node.node_id)
            self._lease.replace(worker_id)  # with its lease go all claims of this worker: the sweep runs them elsewhere

    def _load(self, claim: Claim) -> _Loaded:
        plan = self._engine.definitions.get(claim.header.workflow_id, claim.header.version)
        node = plan.nodes[claim.node.node_id]
        return _Loaded(plan, node, self._engine.registry.handler(node.type))

    def _call(self, loaded: _Loaded, claim: Claim, attempt: Attempt) -> Any:
        header, node, handler = claim.header, loaded.node, loaded.handler
        if (size := sum(map(len, claim.node.results.values()))) > self._engine.settings.join_limit_bytes:
            raise PermanentError(
                f"the data that reaches node {node.id!r} takes {size:,} bytes, more than the limit of "
                f"{self._engine.settings.join_limit_bytes:,} (SPANLOOM_JOIN_LIMIT_BYTES); pass references instead"
            )
        context = NodeContext(
            execution_id=header.execution_id,
            workflow_id=header.workflow_id,
            version=header.version,
            node_id=node.id,
            item=claim.node.item,
            attempt=claim.node.attempt,
            config=handler.config(node),
            input_json=header.input,
            results_json={
                parent: claim.node.results[parent] for parent in node.parents if parent in claim.node.results
            },
            depth=header.depth,
            metadata=header.metadata,
            parent_execution_id=header.parent_execution_id,
            state=self._state,
            runtime=attempt,
        )
        args, kwargs = handler.arguments(node, context)
        token = otel_context.attach(attempt.context)
        try:
            if handler.is_async:
                return self._call_async(handler, args, kwargs, node)
            if node.timeout is None:
                return handler.function(*args, **kwargs)
            return self._watchdog.call(partial(handler.function, *args, **kwargs), node.id, node.timeout)
        finally:
            otel_context.detach(token)

    def _call_async(self, handler: Handler, args: tuple[Any, ...], kwargs: dict[str, Any], node: Node) -> Any:
        clock = time.monotonic()
        try:
            return self._lane.run(handler.function(*args, **kwargs), contextvars.copy_context(), node.timeout)
        except TimeoutError as error:
            if node.timeout is not None and time.monotonic() - clock >= node.timeout:
                raise NodeTimeout(node.id, node.timeout) from error
            raise  # the handler's own

    def _successors(self, loaded: _Loaded | None, claim: Claim, ending: Ending) -> tuple[str, ...]:
        """Work first: name what this worker may run next, if nothing more urgent waits and it is not told to stop."""
        if loaded is None or ending.outcome is not Outcome.COMPLETED or self._draining.is_set():
            return ()
        registry, nodes, queue = self._engine.registry, loaded.plan.nodes, loaded.node.queue
        found = tuple(
            successor
            for successor in loaded.plan.successors[loaded.node.id]
            if nodes[successor].queue == queue and nodes[successor].type in registry
        )
        if not found:
            return ()
        try:
            return () if self._inbox.urgent_waits(queue, claim.header.priority) else found
        except QueueUnavailable:
            return found  # nothing can be handed over through Redis: the more reason to go on here

    def _record(
        self, claim: Claim, worker_id: str, attempt: Attempt, ending: Ending, successors: tuple[str, ...]
    ) -> Recorded:
        return self._recorder.record(
            Record(
                execution_id=claim.header.execution_id,
                node_id=claim.node.node_id,
                item=claim.node.item,
                fence=claim.node.fence,
                worker_id=worker_id,
                outcome=ending.outcome,
                data=ending.data,
                error=ending.error,
                taken=ending.taken,
                delay_seconds=ending.delay_seconds,
                spends_attempt=ending.spends_attempt,
                logs=attempt.logs,
                spans=attempt.spans,
                successors=successors,
            )
        )

    def _continue(self, job: NodeMessage | None, claim: Claim, ending: Ending, answer: Recorded) -> Claim | None:
        if not answer.recorded:
            _log.warning("claim_lost", execution_id=claim.header.execution_id, node_id=claim.node.node_id)
        if ending.outcome is Outcome.FAILED and answer.recorded:
            self._inbox.failed(job or _inline(claim, self._engine), ending.error or "")
        else:
            self._inbox.done(job)
        if answer.ended is not None:
            self._inbox.announce(claim.header.execution_id)
        if ending.outcome is Outcome.RETRY:
            self._due_in(ending.delay_seconds)
        if answer.jobs:
            self._engine.push(answer.jobs)
        return Claim(claim.header, answer.next) if answer.next is not None else None


def _inline(claim: Claim, engine: WorkflowEngine) -> NodeMessage:
    """Name a failed run that work first went on with: it is shown among RQ's failed jobs, though none stood for it."""
    node = claim.node
    return NodeMessage(
        job_id=f"{claim.header.execution_id}-{node.node_id}-{node.item}-0",
        execution_id=claim.header.execution_id,
        node_id=node.node_id,
        item=node.item,
        node_type=node.node_type,
        push=0,
        pushed_at=time.time(),
        list_name=engine.queue.list_name(node.queue, claim.header.priority),
    )
