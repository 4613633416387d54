"""The JSON that the Postgres functions take and answer, made from and into the port's records.

One JSON document a call measured faster than arrays, which psycopg encodes element by element in Python. Payloads
travel as strings in it, so Postgres never parses them: they come back to the letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from spanloom.engine.errors import IdempotencyConflict, UnknownWorkflow
from spanloom.engine.store.requests import (
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
from spanloom.stores.schema import from_micros
from spanloom.stores.sql.base import canonical_id

__all__ = [
    "claims",
    "in_key_order",
    "keys",
    "owed",
    "recorded",
    "records",
    "scrubbed",
    "started",
    "starts",
    "swept",
]

_STALE = RecordResult(recorded=False)
_NOBODY = "00000000-0000-0000-0000-000000000000"  # no execution's id: what asks for one finds nothing
_compact = json.JSONEncoder(separators=(",", ":")).encode


def starts(requests: Sequence[StartRequest]) -> str:
    """Write what start_v1 takes."""
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
    """Read what start_v1 answers."""
    said = json.loads(answer)
    at = from_micros(said["at"])
    return [_started(request, at, one) for request, one in zip(requests, said["answers"] or (), strict=True)]


def _started(request: StartRequest, at: datetime, said: list[Any]) -> StartAnswer:
    code, execution_id, version, pushes = said
    if code in ("unknown", "no version", "inactive"):
        return _refusal(request, code)
    if code == "conflict":
        return IdempotencyConflict(request.workflow_id, request.idempotency_key or "", execution_id)
    created = code == "created"
    return StartResult(execution_id, version, created, jobs(pushes, at), at if created else None)


def _refusal(request: StartRequest, why: str) -> UnknownWorkflow:
    """Say why a workflow can't be started: it is unknown, inactive, or has no such version."""
    version = None if why == "unknown" else request.version
    return UnknownWorkflow(request.workflow_id, version, inactive=why == "inactive")


def keys(asked: Sequence[NodeKey]) -> str | None:
    """Write what claim_v1 takes, without keys that no execution can have; None if there are no others."""
    known = [
        {"position": position, "execution_id": key.execution_id, "node_id": key.node_id, "item": key.item}
        for position, key in enumerate(asked)
        if canonical_id(key.execution_id) is not None
    ]
    return json.dumps(known) if known else None


def claims(number: int, answer: str | None) -> list[ClaimAnswer]:
    """Read what claim_v1 answers about so many keys; None: the worker's lease is not live."""
    if answer is None:
        return [Refusal.RETIRED] * number
    answers: list[ClaimAnswer] = [Refusal.GONE] * number
    said = json.loads(answer)
    for position, why in said["refused"] or ():
        answers[position] = Refusal(why)
    for position, header, node in said["claims"] or ():
        header[7] = json.loads(header[7])  # metadata
        header[11] = from_micros(header[11])  # created_at
        answers[position] = Claim(ExecutionHeader(*header), _node_claim(node))
    return answers


def _node_claim(said: list[Any]) -> NodeClaim:
    """Read a claim; what it leaves out at the end is null."""
    node_id, item, node_type, queue, fence, attempt, recovery_attempts, inputs, data, woken, wait_key, *span = said
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


def in_key_order(asked: Sequence[RecordRequest]) -> list[int]:
    """Return the positions of these records by key, without those of ids that no execution can have."""
    known = [position for position, record in enumerate(asked) if canonical_id(record.execution_id) is not None]
    if len(known) > 1:
        known.sort(key=lambda position: asked[position].key)
    return known


def records(asked: Sequence[RecordRequest], order: Sequence[int]) -> str:
    """Write what record_v1 takes."""
    return json.dumps([_record(number, asked[position]) for number, position in enumerate(order, 1)])


def _record(number: int, record: RecordRequest) -> dict[str, Any]:
    said: dict[str, Any] = {
        "number": number,
        "execution_id": record.execution_id,
        "node_id": record.node_id,
        "item": record.item,
        "fence": record.fence,
        "worker_id": record.worker_id,
        "outcome": record.outcome,
        "successors": record.successors,
    }
    if record.data is not None:
        said["data"] = record.data
    if record.error is not None:
        said["error"] = record.error
        said["brief"] = _brief(record.error)
    if record.taken is not None:
        said["taken"] = record.taken
    if record.span is not None:
        said["span"] = record.span
    if record.exported_ns is not None:
        said["exported_ns"] = record.exported_ns
    if record.handled:
        said["handled"] = True
    if record.outcome is Outcome.RETRY:
        said["delay_seconds"] = record.delay_seconds
        said["wait_kind"] = WaitKind.RETRY
        said["spends_attempt"] = record.spends_attempt
    elif record.outcome is Outcome.WAITING:
        said |= _wait(record)
    if record.logs:
        said["logs"] = [_log(line) for line in record.logs]
    if record.spans:
        # Of one span said twice the later stands: a row can't be written twice by one statement.
        said["spans"] = [_span(span) for span in {span.span_id: span for span in record.spans}.values()]
    return said


def _brief(error: str) -> str:
    """Return what an event tells of an error: all but its traceback."""
    told = json.loads(error)
    return _compact({name: told[name] for name in ("node_id", "type", "message") if name in told})


def _wait(record: RecordRequest) -> dict[str, Any]:
    said: dict[str, Any] = {
        "wait_kind": record.wait_kind or WaitKind.TIMER,
        "wait_key": record.wait_key,
        "delay_seconds": record.delay_seconds,
    }
    if record.due_at is not None:
        said["due_at"] = record.due_at.isoformat()
    if record.child is not None:
        said["child"] = _start(1, record.child)
    if record.fan_out is not None:
        asked = record.fan_out
        said["fan_out"] = {
            "items": list(asked.items),
            "max_concurrency": asked.max_concurrency,
            "tolerated_failures": asked.tolerated_failures,
        }
    return said


def _log(line: LogLine) -> dict[str, Any]:
    return {
        "attempt": line.attempt,
        "level": line.level,
        "message": line.message,
        "fields": line.fields,
        "at": line.at.isoformat(),
        "trace_id": line.trace_id,
        "span_id": line.span_id,
    }


def _span(span: SpanLine) -> dict[str, Any]:
    return {name: getattr(span, name) for name in SpanLine.__slots__}


def recorded(asked: Sequence[RecordRequest], order: Sequence[int], answer: str) -> list[RecordResult]:
    """Read what record_v1 answers."""
    answers = [_STALE] * len(asked)
    said = json.loads(answer)
    at = from_micros(said["at"])
    for position, one in zip(order, said["answers"], strict=True):
        if one[0]:
            answers[position] = _recorded(asked[position], at, *one[1:])
    return answers


def _recorded(
    record: RecordRequest,
    at: datetime,
    ended: tuple[str, int] | None,
    following: list[Any] | None,
    pushes: list[list[Any]] | None,
    why: str | None = None,
) -> RecordResult:
    if why is not None:
        assert record.child is not None
        return RecordResult(True, refused=_refusal(record.child, why))
    claim = None
    if following is not None:
        if following[7] is None:
            # A single parent's data need not travel back: it is what was just recorded.
            following[7] = {record.node_id: ("null" if record.data is None else record.data, record.span)}
        claim = _node_claim(following)
    if ended is None:
        return RecordResult(True, jobs(pushes, at), claim)
    status, ended_at = ended
    return RecordResult(True, jobs(pushes, at), claim, ExecutionStatus(status), from_micros(ended_at))


def jobs(said: Iterable[Sequence[Any]] | None, at: datetime) -> tuple[NodeJob, ...]:
    """Read pushes that were decided at one time, but for those that name their own, which were decided before."""
    rows: list[list[Any]] = []
    for one in said or ():  # with losses, where there may be some
        pushed_at = at if len(one) < 9 else from_micros(one[8])
        rows.append([*one[:7], pushed_at, *one[7:8]])
    return tuple(NodeJob(*row) for row in rows)


def owed(answer: str) -> list[NodeJob]:
    """Read what wake_v1 answers."""
    said = json.loads(answer)
    return list(jobs(said["jobs"], from_micros(said["at"])))


def swept(answer: str) -> SweepResult:
    """Read what sweep_v1 answers."""
    said = json.loads(answer)
    pushes = jobs(said["jobs"], from_micros(said["at"]))
    return SweepResult(pushes, said["moved"] or {}, said["more"], tuple(said["ended"] or ()))


_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u....|.)")
_UNSTORABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F]..)")


def scrubbed(document: str) -> str:
    """Replace the characters of a JSON document that Postgres' text can't hold: NUL, and halves of a surrogate pair."""
    return _ESCAPE.sub(lambda escape: "\\ufffd" if _UNSTORABLE.fullmatch(escape[0]) else escape[0], document)
