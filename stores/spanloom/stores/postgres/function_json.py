"""The JSON documents of the Postgres functions' arguments and results, made from and into the port's dataclasses.

One JSON document per call measured faster than arrays, which psycopg encodes element by element in Python. Payloads
are strings in it, which Postgres never parses: they come back to the letter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

from spanloom.engine.errors import IdempotencyConflict, UnknownWorkflow
from spanloom.engine.store.requests import (
    END,
    Claim,
    ClaimAnswer,
    ExecutionHeader,
    LogLine,
    NodeClaim,
    NodeJob,
    NodeKey,
    Outcome,
    RecordRequest,
    RecordResult,
    Refusal,
    SpanLine,
    StartAnswer,
    StartRequest,
    StartResult,
    SweepResult,
)
from spanloom.engine.store.states import ExecutionStatus, WaitKind
from spanloom.engine.store.texts import storable
from spanloom.stores.schema import from_micros
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.transitions.rows import Graph

__all__ = [
    "claims",
    "in_key_order",
    "keys",
    "owed",
    "recorded",
    "records",
    "sequel",
    "started",
    "starts",
    "swept",
]

_STALE = RecordResult(recorded=False)
_compact = json.JSONEncoder(separators=(",", ":")).encode


def starts(requests: Sequence[StartRequest]) -> str:
    """Return the argument of start_v1."""
    return json.dumps([_start(position, request) for position, request in enumerate(requests, 1)])


def _start(position: int, request: StartRequest) -> dict[str, Any]:
    parent = request.parent
    return {
        "position": position,
        "id": request.execution_id,
        "workflow_id": request.workflow_id,
        "version": request.version,
        "input": request.input,
        "priority": request.priority,
        "delay_seconds": request.delay_seconds,
        "deadline_seconds": request.deadline_seconds,
        "key": request.idempotency_key,
        "input_hash": request.input_hash,
        "key_ttl_seconds": request.key_ttl_seconds,
        "metadata": json.dumps(dict(request.metadata)),
        "trace_parent": request.trace_parent,
        "trace_state": request.trace_state,
        "caller_span_id": request.caller_span_id,
        "parent_id": None if parent is None else parent.execution_id,
        "parent_node_id": None if parent is None else parent.node_id,
        "parent_item": None if parent is None else parent.item,
        "parent_fence": request.parent_fence,
        "depth": request.depth,
    }


def started(requests: Sequence[StartRequest], answer: str) -> list[StartAnswer]:
    """Read the result of start_v1."""
    document = json.loads(answer)
    at = from_micros(document["at"])
    return [_started(request, at, row) for request, row in zip(requests, document["answers"] or (), strict=True)]


def _started(request: StartRequest, at: datetime, row: list[Any]) -> StartAnswer:
    code, execution_id, version, pushes = row
    if code in ("unknown", "no version", "inactive"):
        return _refusal(request, code)
    if code == "conflict":
        return IdempotencyConflict(request.workflow_id, request.idempotency_key or "", execution_id)
    created = code == "created"
    return StartResult(execution_id, version, created, jobs(pushes, at), at if created else None)


def _refusal(request: StartRequest, code: str) -> UnknownWorkflow:
    """Return the error of a workflow that can't be started: it is unknown, inactive, or has no such version."""
    version = None if code == "unknown" else request.version
    return UnknownWorkflow(request.workflow_id, version, inactive=code == "inactive")


def keys(requested: Sequence[NodeKey]) -> str | None:
    """Return the argument of claim_v1, without keys that no execution can have. None if there are no others."""
    known = [
        {"position": position, "execution_id": key.execution_id, "node_id": key.node_id, "item": key.item}
        for position, key in enumerate(requested)
        if canonical_id(key.execution_id) is not None
    ]
    return json.dumps(known) if known else None


def claims(number: int, answer: str | None) -> list[ClaimAnswer]:
    """Read the result of claim_v1 for this number of keys. None: the worker's lease is not live."""
    if answer is None:
        return [Refusal.RETIRED] * number
    answers: list[ClaimAnswer] = [Refusal.GONE] * number
    document = json.loads(answer)
    for position, refusal in document["refused"] or ():
        answers[position] = Refusal(refusal)
    for position, header, node in document["claims"] or ():
        header[7] = json.loads(header[7])  # metadata
        header[11] = from_micros(header[11])  # created_at
        answers[position] = Claim(ExecutionHeader(*header), _node_claim(node))
    return answers


def _node_claim(row: list[Any]) -> NodeClaim:
    """Read a claim. Values that are missing at its end are null."""
    node_id, item, node_type, queue, fence, attempt, recovery_attempts, inputs, data, woken, wait_key, *span = row
    inputs = inputs or {}
    return NodeClaim(
        *(node_id, item, node_type, queue, fence, attempt, recovery_attempts),
        results={parent: text for parent, (text, _) in inputs.items()},
        data=data,
        woken=None if woken is None else WaitKind(woken),
        wait_key=wait_key,
        span=span[0] if span else None,
        parent_spans={parent: span for parent, (_, span) in inputs.items() if span is not None},
    )


def in_key_order(requests: Sequence[RecordRequest]) -> list[int]:
    """Return the positions of the records by key, without those of ids that no execution can have."""
    known = [position for position, record in enumerate(requests) if canonical_id(record.execution_id) is not None]
    if len(known) > 1:
        known.sort(key=lambda position: requests[position].key)
    return known


def records(requests: Sequence[RecordRequest], order: Sequence[int], graphs: Mapping[str, Graph]) -> str:
    """Return the argument of record_v1. `graphs` has those of the executions in which a node ends."""
    documents = []
    exclusive = set()
    for number, position in enumerate(order, 1):
        request = requests[position]
        document = _record(number, request)
        if (graph := graphs.get(request.execution_id)) is not None and (following := sequel(graph, request)):
            document |= following
            if "exclusive" in following:
                exclusive.add(request.execution_id)
        documents.append(document)
    for document in documents:
        if document["execution_id"] in exclusive:
            document["exclusive"] = True
    return json.dumps(documents)


def sequel(graph: Graph, record: RecordRequest) -> dict[str, Any]:
    """Return the consequences of a node's end, by the edges of its workflow, which never change: not to be changed."""
    if record.item:
        return {}
    if record.taken is None and not record.handled:
        return _usual_sequel(graph, record.node_id, record.outcome)
    return _sequel_of(graph, record.node_id, record.outcome, record.taken, handled=record.handled)


def _sequel_of(
    graph: Graph, node_id: str, outcome: Outcome, taken: tuple[str, ...] | None, *, handled: bool = False
) -> dict[str, Any]:
    arrivals = []
    sequel: dict[str, Any] = {}
    exclusive = outcome is not Outcome.COMPLETED
    for edge in graph.following(node_id):
        if edge.target == END:
            sequel["sinks"] = 1
            exclusive = True
            continue
        took = edge.is_taken(outcome, taken)
        handled, exclusive = handled or took, exclusive or not took
        arrivals.append((edge, took))
    if len(arrivals) == 1:
        (edge, took), *_ = arrivals
        sequel |= {
            "target": edge.target, "target_type": edge.target_type, "target_queue": edge.target_queue,
            "target_inputs": edge.target_inputs, "took": took,
        }  # fmt: skip
    elif arrivals:
        sequel["arrivals"] = [
            {"target": edge.target, "node_type": edge.target_type, "queue": edge.target_queue,
             "inputs": edge.target_inputs, "took": took}
            for edge, took in arrivals
        ]  # fmt: skip
        if not exclusive and all(edge.target_inputs == 1 for edge, _ in arrivals):
            sequel["fan"] = True
    if handled:
        sequel["handled"] = True
    if exclusive:
        sequel["exclusive"] = True
    return sequel


_usual_sequel = lru_cache(maxsize=4096)(partial(_sequel_of, taken=None))


def _record(number: int, record: RecordRequest) -> dict[str, Any]:
    document: dict[str, Any] = {
        "number": number,
        "execution_id": record.execution_id,
        "node_id": record.node_id,
        "item": record.item,
        "fence": record.fence,
        "worker_id": record.worker_id,
        "outcome": record.outcome,
        "successors": record.successors,
        "most_following": record.most_following,
    }
    if record.data is not None:
        document["data"] = record.data
    if record.error is not None:
        document["error"] = record.error
        document["brief"] = _brief(record.error)
    if record.taken is not None:
        document["taken"] = record.taken
    if record.span is not None:
        document["span"] = record.span
    if record.own_span is not None:
        document |= record.own_span._asdict()
    if record.outcome is Outcome.RETRY:
        document["delay_seconds"] = record.delay_seconds
        document["wait_kind"] = WaitKind.RETRY
        document["spends_attempt"] = record.spends_attempt
    elif record.outcome is Outcome.WAITING:
        document |= _wait(record)
    if record.logs:
        document["logs"] = [_log(line) for line in record.logs]
    if record.spans:
        # Of two lines with one span id the later counts: a statement can't write a row twice.
        document["spans"] = [_span(span) for span in {span.span_id: span for span in record.spans}.values()]
    return document


def _brief(error: str) -> str:
    """Return the part of an error that an event contains: all but its traceback."""
    fields = json.loads(error)
    return _compact({name: fields[name] for name in ("node_id", "type", "message") if name in fields})


def _wait(record: RecordRequest) -> dict[str, Any]:
    document: dict[str, Any] = {
        "wait_kind": record.wait_kind or WaitKind.TIMER,
        "wait_key": record.wait_key,
        "delay_seconds": record.delay_seconds,
    }
    if record.due_at is not None:
        document["due_at"] = record.due_at.isoformat()
    if record.child is not None:
        document["child"] = _start(1, record.child)
    if record.fan_out is not None:
        fan_out = record.fan_out
        document["fan_out"] = {
            "items": list(fan_out.items),
            "max_concurrency": fan_out.max_concurrency,
            "tolerated_failures": fan_out.tolerated_failures,
        }
    return document


def _log(line: LogLine) -> dict[str, Any]:
    return {
        "attempt": line.attempt,
        "level": storable(line.level),
        "message": storable(line.message),
        "fields": line.fields,
        "at": line.at.isoformat(),
        "trace_id": line.trace_id,
        "span_id": line.span_id,
    }


def _span(span: SpanLine) -> dict[str, Any]:
    document = span._asdict()
    document["name"] = storable(span.name)
    return document


def recorded(requests: Sequence[RecordRequest], order: Sequence[int], answer: str) -> list[RecordResult]:
    """Read the result of record_v1."""
    answers = [_STALE] * len(requests)
    document = json.loads(answer)
    at = from_micros(document["at"])
    for position, row in zip(order, document["answers"], strict=True):
        if row[0]:
            answers[position] = _recorded(requests[position], at, *row[1:])
    return answers


def _recorded(
    record: RecordRequest,
    at: datetime,
    ended: tuple[str, int] | None,
    following: list[list[Any]] | None,
    pushes: list[list[Any]] | None,
    refusal: str | None = None,
) -> RecordResult:
    if refusal is not None:
        assert record.child is not None
        return RecordResult(True, refused=_refusal(record.child, refusal))
    claims: list[NodeClaim] = []
    for row in following or ():
        if row[7] is None:
            # The data of a single parent is not sent back: it is the data of this record.
            row[7] = {record.node_id: ("null" if record.data is None else record.data, record.span)}
        claims.append(_node_claim(row))
    if ended is None:
        return RecordResult(True, jobs(pushes, at), tuple(claims))
    status, ended_at = ended
    return RecordResult(True, jobs(pushes, at), tuple(claims), ExecutionStatus(status), from_micros(ended_at))


def jobs(pushes: Iterable[Sequence[Any]] | None, at: datetime) -> tuple[NodeJob, ...]:
    """Read pushes with one time, but for those with a time of their own, which were decided before."""
    rows: list[list[Any]] = []
    for push in pushes or ():  # with recovery attempts, where there may be some
        pushed_at = at if len(push) < 9 else from_micros(push[8])
        rows.append([*push[:7], pushed_at, *push[7:8]])
    return tuple(NodeJob(*row) for row in rows)


def owed(answer: str) -> list[NodeJob]:
    """Read the result of wake_parents_v1."""
    document = json.loads(answer)
    return list(jobs(document["jobs"], from_micros(document["at"])))


def swept(answer: str) -> SweepResult:
    """Read the result of sweep_v1."""
    document = json.loads(answer)
    pushes = jobs(document["jobs"], from_micros(document["at"]))
    due_in = math.inf if document["due_in"] is None else float(document["due_in"])
    return SweepResult(
        pushes, document["moved"] or {}, document["more"], tuple(document["ended"] or ()), due_in_seconds=due_in
    )
