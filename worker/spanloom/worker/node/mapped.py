"""Mapped nodes: making their items, and gathering the results when all items have ended."""

from __future__ import annotations

from typing import Any

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import ItemsFailed, PermanentError, StoreUnavailable
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.payload import encode
from spanloom.engine.store.models import NodeRun
from spanloom.engine.store.requests import Claim, FanOut, Outcome
from spanloom.engine.store.states import NodeStatus, WaitKind
from spanloom.engine.workflow.compiled import CompiledWorkflow
from spanloom.engine.workflow.definitions import MAX_ITEMS, MapOver, Node
from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.node.builtin import evaluated, scope_of
from spanloom.worker.node.outcomes import AttemptResult, as_data, of_load_error

__all__ = ["run_mapped"]


def run_mapped(
    engine: WorkflowEngine,
    plan: CompiledWorkflow,
    node: Node,
    over: MapOver,
    claim: Claim,
    ctx: NodeContext,
    attempt: RunningAttempt,
) -> AttemptResult:
    """Run a mapped node as a whole: make its items or, once they have ended, gather their results."""
    if claim.node.woken is WaitKind.ITEMS:
        return _gathered(engine, node, over, claim.header.execution_id, attempt)
    scope = scope_of(ctx)
    elements = evaluated(node, "its map", plan.maps[node.id].evaluate, scope, attempt)
    if not isinstance(elements, list):
        raise PermanentError(f"node {node.id!r}: its map gave {_kind(elements)}, not a list")
    if len(elements) > MAX_ITEMS:
        raise PermanentError(
            f"node {node.id!r}: its map gave {len(elements):,} elements, more than {MAX_ITEMS:,}; map over pages"
        )
    if not elements:
        return AttemptResult(Outcome.COMPLETED, data="[]")
    items = _items(engine, plan, node, elements, scope, attempt)
    return AttemptResult(
        Outcome.WAITING,
        wait_kind=WaitKind.ITEMS,
        fan_out=FanOut(items, min(over.max_concurrency, len(items)), over.tolerated_failures),
    )


def _items(
    engine: WorkflowEngine,
    plan: CompiledWorkflow,
    node: Node,
    elements: list[Any],
    scope: dict[str, Any],
    attempt: RunningAttempt,
) -> list[str]:
    """Return the data of each item as JSON. Its bound on their sum ends it at the first one beyond it."""
    mapping = plan.mappings.get(node.id)
    limit = engine.settings.payload_limit_bytes
    items: list[str] = []
    size = 0
    for index, element in enumerate(elements):
        value = element
        if mapping is not None:
            here = {**scope, "item": element, "index": index}
            value = evaluated(node, f"its mapping of element {index}", mapping.evaluate, here, attempt)
        items.append(encode(value, f"element {index} of node {node.id!r}", limit))
        size += len(items[-1])
        if size > engine.settings.join_limit_bytes:
            raise PermanentError(
                f"node {node.id!r}: the first {len(items):,} elements of its map take {size:,} bytes, more than the "
                f"limit of {engine.settings.join_limit_bytes:,} (SPANLOOM_JOIN_LIMIT_BYTES); pass references instead"
            )
    return items


def _gathered(
    engine: WorkflowEngine, node: Node, over: MapOver, execution_id: str, attempt: RunningAttempt
) -> AttemptResult:
    limit = engine.settings.join_limit_bytes
    try:
        size = engine.store.get_data_size(execution_id, [node.id], items=True)
        # Over the limit, the node fails below: by its failed items, or by the size.
        runs = engine.store.get_node_results(execution_id, [node.id], data_limit=0 if size > limit else None)
    except StoreUnavailable as error:
        return of_load_error(error)
    items = [run for run in runs if run.item > 0]
    attempt.own.link_items(run.span for run in items if run.span is not None)
    failed = [run for run in items if run.status is NodeStatus.FAILED]
    if len(failed) > over.tolerated_failures:
        first = failed[0].error or {}
        message = f"item {failed[0].item}: {first.get('type')}: {first.get('message')}"
        raise ItemsFailed(node.id, len(failed), len(items), over.tolerated_failures, message)
    if size > limit:
        raise PermanentError(
            f"the results of the {len(items):,} items of node {node.id!r} take {size:,} bytes, more than the limit of "
            f"{limit:,} (SPANLOOM_JOIN_LIMIT_BYTES); return references instead"
        )
    results = [_result(run) for run in items]
    data = encode(results, f"the results of node {node.id!r}", limit)
    return AttemptResult(Outcome.COMPLETED, data=data)


def _result(run: NodeRun) -> Any:
    return as_data(run.error or {}, run.node_id) if run.status is NodeStatus.FAILED else run.data


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
