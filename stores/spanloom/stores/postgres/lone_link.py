"""The record of a lone link of a chain, the usual one on an idle system: a call of its own, with typed arguments."""

from __future__ import annotations

from typing import Any

from spanloom.engine.store.requests import NodeClaim, Outcome, RecordRequest, RecordResult
from spanloom.stores.postgres.function_json import sequel
from spanloom.stores.transitions.rows import Graph

__all__ = ["link_arguments", "link_result", "link_statement"]

_TYPES = (
    "uuid", "text", "bigint", "text", "text", "text[]", "text", "bigint", "bigint", "text", "text",
    "text", "text", "text", "bigint", "timestamptz",
)  # fmt: skip


def link_statement(schema: str) -> str:
    """Return the statement, with the parameters of `link_arguments`, the epoch and the time."""
    return f"select {schema}.link_v1({', '.join(f'%s::{one}' for one in _TYPES)})"


def link_arguments(record: RecordRequest, graph: Graph) -> list[Any] | None:
    """Return the arguments for a record, or None if it is no link.

    A link is a node that completed without lines, whose one edge is taken, to a node without other parents, with which
    its worker goes on.
    """
    if (
        record.outcome is not Outcome.COMPLETED
        or record.item
        or record.logs
        or record.spans
        or not (record.successors and record.worker_id)
    ):
        return None
    found = sequel(graph, record)
    if found.get("target_inputs") != 1 or "exclusive" in found or found["target"] not in record.successors:
        return None
    return [
        record.execution_id, record.node_id, record.fence, record.worker_id, record.data,
        None if record.taken is None else list(record.taken), record.span, *(record.own_span or (None,) * 4),
        found["target"], found["target_type"], found["target_queue"],
    ]  # fmt: skip


def link_result(record: RecordRequest, arguments: list[Any], fence: int) -> RecordResult:
    """Return the result of a link that was recorded: the claim of its successor, under this fence."""
    target, node_type, queue = arguments[-3:]
    claim = NodeClaim(
        target, 0, node_type, queue, fence, 1, 0,
        results={record.node_id: "null" if record.data is None else record.data},
        parent_spans={} if record.span is None else {record.node_id: record.span},
    )  # fmt: skip
    return RecordResult(True, (), (claim,))
