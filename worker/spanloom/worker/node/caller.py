"""The call of one node's handler: the definition it needs, the context it gets, and the result."""

from __future__ import annotations

import contextvars
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from opentelemetry import context as otel_context

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import NodeTimeout, PermanentError, StoreUnavailable, WorkerLost
from spanloom.engine.events.wait_guard import WAIT_GUARD
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.handlers.handler import Handler
from spanloom.engine.payload import encode
from spanloom.engine.store.requests import LEFT_OUT, Claim
from spanloom.engine.workflow.compiled import CompiledWorkflow
from spanloom.engine.workflow.definitions import Node
from spanloom.worker.isolated.pool import HandlerProcesses
from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.node.builtin import BUILT_IN, evaluated, scope_of
from spanloom.worker.node.claim_monitor import ClaimMonitor
from spanloom.worker.node.event_loop import Awaited, Steps
from spanloom.worker.node.handler_waits import HandlerWaits
from spanloom.worker.node.mapped import run_mapped
from spanloom.worker.node.outcomes import AttemptResult, of_load_error, of_result
from spanloom.worker.node.timeouts import TimeLimit
from spanloom.worker.options import WorkerOptions
from spanloom.worker.telemetry.log_buffer import CURRENT

__all__ = ["Caller", "Loaded"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The definition and the handler of a claimed node."""

    plan: CompiledWorkflow
    node: Node
    handler: Handler


class Caller:
    """The loader and caller of nodes, shared by all slots of a worker."""

    def __init__(
        self,
        engine: WorkflowEngine,
        time_limit: TimeLimit,
        claims: ClaimMonitor,
        state: Any,
        options: WorkerOptions,
        waits: HandlerWaits,
        processes: HandlerProcesses,
    ) -> None:
        """Take `state` as the `ctx.state` of all handlers."""
        self._waits = waits
        self._processes = processes
        self._engine = engine
        self._time_limit = time_limit
        self._claims = claims
        self._state = state
        self._max_losses = options.max_recovery_attempts
        self._recursion_limit = sys.getrecursionlimit()

    def load(self, claim: Claim) -> Loaded:
        """Return the claimed node's definition and handler. Raises if this worker can't run it, with the reason."""
        plan = self._engine.definitions.get(claim.header.workflow_id, claim.header.version)
        node = plan.nodes[claim.node.node_id]
        return Loaded(plan, node, self._engine.registry.handler(node.type))

    def runs_on_loop(self, claims: Sequence[Claim]) -> bool:
        """Return whether these nodes have async handlers, and nothing else about them takes time."""
        return all(self._is_awaited(claim) for claim in claims)

    def _is_awaited(self, claim: Claim) -> bool:
        loaded = self.load(claim)
        return (
            loaded.handler.is_async
            and loaded.node.map is None
            and not self._processes.takes(loaded.handler)
            and LEFT_OUT not in claim.node.results.values()
        )

    def call(self, loaded: Loaded, claim: Claim, attempt: RunningAttempt, worker_id: str) -> Steps[AttemptResult]:
        """Run a claimed node and classify its result. Raises the exceptions of its handler."""
        self._claims.begin(attempt, worker_id, loaded.plan, loaded.node)
        try:
            return (yield from self._run(loaded, claim, attempt))
        finally:
            self._claims.end(attempt)

    def _run(self, loaded: Loaded, claim: Claim, attempt: RunningAttempt) -> Steps[AttemptResult]:
        node = loaded.node
        if claim.node.recovery_attempts >= self._max_losses:
            raise WorkerLost(node.id, claim.node.recovery_attempts)
        try:
            results = self._inputs(claim)
        except StoreUnavailable as error:
            return of_load_error(error)
        context = self._context(loaded, claim, attempt, results)
        if node.map is not None and claim.node.item == 0:
            return run_mapped(self._engine, loaded.plan, node, node.map, claim, context, attempt)
        if node.type in BUILT_IN:
            return BUILT_IN[node.type](self._engine, node, claim, context, attempt)
        if self._processes.takes(loaded.handler):
            return self._processes.run(node, context, attempt)
        result = yield from self._call(loaded.handler, node, context, attempt)
        limit = self._engine.settings.payload_limit_bytes
        return of_result(result, node, claim.header.execution_id, limit, loaded.handler.encode_result)

    def _inputs(self, claim: Claim) -> Mapping[str, str]:
        """Return the data of the taken parents. Raises PermanentError if it takes more than the limit."""
        node, limit = claim.node, self._engine.settings.join_limit_bytes
        results = node.results
        texts, store = results.values(), self._engine.store
        execution_id, parents = claim.header.execution_id, tuple(results)
        left_out = LEFT_OUT in texts
        size = store.get_data_size(execution_id, parents) if left_out else sum(map(len, texts))
        if size > limit:
            raise PermanentError(
                f"the data that reaches node {node.node_id!r} takes {size:,} bytes, more than the limit of "
                f"{limit:,} (SPANLOOM_JOIN_LIMIT_BYTES); pass references instead"
            )
        return store.get_data(execution_id, parents) if left_out else results

    def _context(
        self, loaded: Loaded, claim: Claim, attempt: RunningAttempt, results: Mapping[str, str]
    ) -> NodeContext:
        header, node, settings = claim.header, loaded.node, self._engine.settings
        context = NodeContext(
            execution_id=header.execution_id,
            workflow_id=header.workflow_id,
            version=header.version,
            node_id=node.id,
            item=claim.node.item,
            attempt=claim.node.attempt,
            config=loaded.handler.config(node),
            input_json=header.input,
            results_json={parent: results[parent] for parent in node.parents if parent in results},
            data_json=claim.node.data,
            depth=header.depth,
            metadata=header.metadata,
            parent_execution_id=header.parent_execution_id,
            state=self._state,
            runtime=attempt,
        )
        if node.mapping is not None and node.map is None:
            value = evaluated(node, "its mapping", loaded.plan.mappings[node.id].evaluate, scope_of(context), attempt)
            context.data_json = encode(value, f"the mapped data of node {node.id!r}", settings.payload_limit_bytes)
        return context

    def _call(self, handler: Handler, node: Node, context: NodeContext, attempt: RunningAttempt) -> Steps[Any]:
        args, kwargs = handler.arguments(node, context)
        token, previous = otel_context.attach(attempt.own.begin()), CURRENT.set(attempt.log_buffer)
        WAIT_GUARD.set(self._waits)  # in the context of this node alone
        traced = sys.gettrace()
        began = time.monotonic()
        try:
            attempt.entered = not handler.is_async  # else once the event loop has begun it
            if handler.is_async or node.timeout is None:
                result = handler.function(*args, **kwargs)
            else:
                result = self._time_limit.call(partial(handler.function, *args, **kwargs), node.id, node.timeout)
            while hasattr(type(result), "__await__"):  # of an async function, or of a sync decorator over one
                result = yield from _await(result, node, attempt, began)
            return result
        finally:
            # What a handler leaves behind must not break what follows it, nor the nodes beside it.
            if sys.gettrace() is not traced:
                sys.settrace(traced)
            if sys.getrecursionlimit() < self._recursion_limit:
                sys.setrecursionlimit(self._recursion_limit)
            CURRENT.reset(previous)
            otel_context.detach(token)


def _await(awaitable: Awaitable[Any], node: Node, attempt: RunningAttempt, began: float) -> Steps[Any]:
    clock, context = time.monotonic(), contextvars.copy_context()
    left = None if node.timeout is None else max(0.0, node.timeout - (clock - began))
    awaited = Awaited(awaitable, context, left, attempt.on_revoke, attempt)
    try:
        return (yield awaited)
    except TimeoutError as error:
        if node.timeout is not None and left is not None and time.monotonic() - clock >= left:
            raise NodeTimeout(node.id, node.timeout) from error
        raise  # the handler's own
    finally:
        attempt.waited += time.monotonic() - clock - awaited.took
