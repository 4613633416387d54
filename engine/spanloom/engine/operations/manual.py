"""Manual results: the record that an operator makes in place of a worker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from spanloom.engine.errors import ConfigurationError, UserError
from spanloom.engine.limits import MAX_ERROR_CHARACTERS, shortened
from spanloom.engine.payload import decode, encode
from spanloom.engine.store.requests import NodeKey, Outcome, RecordRequest
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.wording import did_you_mean
from spanloom.engine.workflow.compiled import CompiledWorkflow
from spanloom.engine.workflow.routing import route_failure, route_success

__all__ = ["manual_result"]

_OUTCOMES = {
    NodeStatus.COMPLETED: Outcome.COMPLETED,
    NodeStatus.FAILED: Outcome.FAILED,
    NodeStatus.SKIPPED: Outcome.SKIPPED,
}


def manual_result(
    plan: CompiledWorkflow,
    key: NodeKey,
    status: NodeStatus | str,
    *,
    data: Any = None,
    error: str | None = None,
    next_nodes: Sequence[str] | None = None,
    limit: int,
) -> RecordRequest:
    """Make the record that ends a node run as completed with `data`, failed with `error`, or skipped.

    Its edges are routed as after a worker's record; `next_nodes` routes a completed node. `limit` bounds the data, in
    bytes. Raises UserError for an unknown node, RoutingFailed, PayloadRejected, and ConfigurationError for options that
    contradict each other.
    """
    workflow = plan.workflow
    if key.node_id not in plan.nodes:
        raise UserError(f"workflow {workflow.id!r} has no node {key.node_id!r}{did_you_mean(key.node_id, plan.nodes)}")
    outcome = _OUTCOMES.get(NodeStatus(status)) if status in list(NodeStatus) else None
    if outcome is None:
        raise ConfigurationError(f"a node is ended as completed, failed or skipped, not as {str(status)!r}")
    if (error is not None) != (outcome is Outcome.FAILED):
        raise ConfigurationError("error= says why a node failed: give it with status failed, and with no other")
    if next_nodes is not None and (outcome is not Outcome.COMPLETED or key.item):
        raise ConfigurationError("next_nodes= routes a completed node; an item of a mapped one leads nowhere")
    text = encode(data, f"the result of node {key.node_id!r}", limit)
    taken: tuple[str, ...] | None = None
    handled, failure = False, None
    if outcome is Outcome.FAILED:
        error = shortened(error or "", MAX_ERROR_CHARACTERS)
        failure = json.dumps({"type": "EndedByHand", "message": error, "permanent": True})
        payload = {"error": {"type": "EndedByHand", "message": error, "node_id": key.node_id}}
        departure = route_failure(plan, key.node_id, payload)
        taken, handled = (None, False) if key.item else departure
        text = json.dumps(payload) if handled else ""
    elif outcome is Outcome.COMPLETED and not key.item:
        taken = route_success(plan, key.node_id, decode(text), next_nodes).taken
    return RecordRequest(
        *key,
        fence=0,
        worker_id="",
        outcome=outcome,
        data=text or None,
        error=failure,
        taken=taken,
        handled=handled,
    )
