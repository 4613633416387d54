"""The built-in node types, which workers run without a handler: a delay, and a child execution.

Such a node runs twice: the first run starts the wait, the second one, in any worker, continues after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import (
    ChildFailed,
    DepthExceeded,
    ExpressionFailed,
    PayloadRejected,
    PermanentError,
    StoreUnavailable,
)
from spanloom.engine.handlers.builtin import DELAY, WORKFLOW, DelayConfig, WorkflowConfig, moment
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.handlers.handler import data_text
from spanloom.engine.ids import uuid7
from spanloom.engine.payload import decode, encode
from spanloom.engine.store.requests import Claim, NodeKey, Outcome, Priority, StartRequest
from spanloom.engine.store.states import ExecutionStatus, WaitKind
from spanloom.engine.telemetry.tracing import nest_trace
from spanloom.engine.workflow.definitions import Node
from spanloom.engine.workflow.evaluation import EvaluationBudget
from spanloom.engine.workflow.expressions import Expression
from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.node.outcomes import AttemptResult, of_load_error, of_refusal

__all__ = ["BUILT_IN", "evaluated", "scope_of"]

_LOOK_SECONDS = 1.0


def scope_of(ctx: NodeContext) -> dict[str, Any]:
    """Return the names that a node's expressions may use."""
    return {"input": ctx.input, "nodes": ctx.results}


def evaluated(
    node: Node, what: str, evaluate: Callable[[Any, EvaluationBudget], Any], data: Any, attempt: RunningAttempt
) -> Any:
    """Evaluate one of a node's expressions. Raises PermanentError if it fails, and NodeTimeout or LeaseLost."""
    try:
        return evaluate(data, attempt.budget(node))
    except ExpressionFailed as error:
        raise PermanentError(f"node {node.id!r}: {what}: {error}") from None


def _delay(
    engine: WorkflowEngine, node: Node, claim: Claim, ctx: NodeContext, attempt: RunningAttempt
) -> AttemptResult:
    """Wait for a duration or until a time; then pass the data on."""
    if claim.node.woken is WaitKind.TIMER:
        return AttemptResult(Outcome.COMPLETED, data=data_text(node, ctx))
    config: DelayConfig = ctx.config
    until = config.until if config.seconds is None else timedelta(seconds=config.seconds)
    if config.expression is not None:
        value = evaluated(node, "its expression", Expression(config.expression).evaluate, scope_of(ctx), attempt)
        try:
            until = moment(value)
        except ValueError as error:
            raise PermanentError(f"node {node.id!r}: {error}") from None
    if isinstance(until, timedelta):
        return AttemptResult(Outcome.WAITING, wait_kind=WaitKind.TIMER, delay_seconds=until.total_seconds())
    return AttemptResult(Outcome.WAITING, wait_kind=WaitKind.TIMER, due_at=until)


def _workflow(
    engine: WorkflowEngine, node: Node, claim: Claim, ctx: NodeContext, attempt: RunningAttempt
) -> AttemptResult:
    """Start a child execution and wait for its end; then return its output, or raise ChildFailed."""
    config: WorkflowConfig = ctx.config
    if claim.node.woken is not None and claim.node.wait_key is not None:
        return _ended_child(engine, node, config, claim.node.wait_key, attempt)
    header = claim.header
    limit = engine.settings.max_depth
    if header.depth + 1 >= limit:
        raise DepthExceeded(config.workflow, limit)
    text = data_text(node, ctx)
    if config.workflow in engine.builders:
        try:
            text = engine.encode_input(config.workflow, decode(text))
        except PayloadRejected as error:  # the same data would be refused again
            return of_refusal(error)
    trace = nest_trace(attempt.own.trace_id, attempt.own.span_id, header.trace_parent, header.trace_state)
    child = StartRequest(
        execution_id=uuid7(),
        workflow_id=config.workflow,
        input=text,
        version=config.version,
        priority=Priority(header.priority),
        metadata=header.metadata,
        trace_parent=trace.trace_parent,
        trace_state=trace.trace_state,
        caller_span_id=trace.caller_span_id,
        parent=NodeKey(header.execution_id, node.id, claim.node.item),
        parent_fence=claim.node.fence,
        depth=header.depth + 1,
    )
    return AttemptResult(Outcome.WAITING, wait_kind=WaitKind.CHILD, wait_key=child.execution_id, child=child)


def _ended_child(
    engine: WorkflowEngine, node: Node, config: WorkflowConfig, child_id: str, attempt: RunningAttempt
) -> AttemptResult:
    try:
        child = engine.store.get_execution(child_id, data_limit=engine.settings.join_limit_bytes)
    except StoreUnavailable as error:
        return of_load_error(error)
    if child is None:
        raise ChildFailed(child_id, config.workflow, "failed", ": it was purged before its parent went on")
    if not child.status.ended:  # it was retried on its own, just after it had failed: check again later
        return AttemptResult(Outcome.WAITING, wait_kind=WaitKind.TIMER, wait_key=child_id, delay_seconds=_LOOK_SECONDS)
    if child.status is not ExecutionStatus.COMPLETED:
        raise ChildFailed(child_id, child.workflow_id, child.status, _because(child.error))
    if child.output_left_out:
        raise PermanentError(
            f"node {node.id!r}: the output of its child {child_id} takes {child.output_size:,} bytes, more than the "
            f"limit of {engine.settings.join_limit_bytes:,} (SPANLOOM_JOIN_LIMIT_BYTES); pass references instead"
        )
    output = child.output
    if config.output is not None:
        output = evaluated(node, "its output", Expression(config.output).evaluate, output, attempt)
    what = f"the result of node {node.id!r} (the output of its child {child_id})"
    return AttemptResult(Outcome.COMPLETED, data=encode(output, what, engine.settings.payload_limit_bytes))


def _because(error: Mapping[str, Any] | None) -> str:
    if error is None:
        return ""
    at = f" at node {error['node_id']!r}" if error.get("node_id") else ""
    return f"{at}: {error.get('type')}: {error.get('message')}"


#: By built-in type, the function that runs its nodes in place of a handler.
BUILT_IN: dict[str, Callable[[WorkflowEngine, Node, Claim, NodeContext, RunningAttempt], AttemptResult]] = {
    DELAY: _delay,
    WORKFLOW: _workflow,
}
