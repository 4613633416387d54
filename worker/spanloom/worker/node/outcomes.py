"""The classification of a handler's result or exception as an outcome, by its node's retry policy."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from spanloom.engine.errors import (
    HandlerDied,
    PayloadRejected,
    RoutingFailed,
    StoreUnavailable,
)
from spanloom.engine.handlers.builtin import LONGEST_SECONDS
from spanloom.engine.handlers.results import NodeResult
from spanloom.engine.limits import MAX_ERROR_CHARACTERS, MAX_NAME, MAX_TRACEBACK_CHARACTERS, shortened
from spanloom.engine.payload import decode, encode
from spanloom.engine.store.requests import Claim, FanOut, Outcome, RecordRequest, StartRequest
from spanloom.engine.store.states import WaitKind
from spanloom.engine.workflow.compiled import CompiledWorkflow
from spanloom.engine.workflow.definitions import Node
from spanloom.engine.workflow.routing import route_failure, route_success
from spanloom.worker.error_text import message_of, traceback_of, type_of
from spanloom.worker.node.retries import is_retried, retry_delay

__all__ = [
    "AttemptResult",
    "IsolatedFailure",
    "as_data",
    "is_own_failure",
    "left",
    "of_error",
    "of_load_error",
    "of_refusal",
    "of_result",
]

_LOAD_AGAIN_SECONDS = 5.0
_ERRNO: Any = vars(OSError)["errno"]
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})


class AttemptResult(NamedTuple):
    """The end of an attempt, in the words of the store port."""

    outcome: Outcome
    data: str | None = None
    error: str | None = None
    next_nodes: tuple[str, ...] | None = None  # as named by the handler
    taken: tuple[str, ...] | None = None
    handled: bool = False
    delay_seconds: float = 0.0
    spends_attempt: bool = True
    due_at: datetime | None = None
    wait_kind: WaitKind | None = None
    wait_key: str | None = None
    child: StartRequest | None = None
    fan_out: FanOut | None = None

    def request(self, claim: Claim, worker_id: str, **telemetry: Any) -> RecordRequest:
        """Return the request to record it; `telemetry` is its logs and spans, and the successors to claim."""
        return RecordRequest(
            execution_id=claim.header.execution_id,
            node_id=claim.node.node_id,
            item=claim.node.item,
            fence=claim.node.fence,
            worker_id=worker_id,
            outcome=self.outcome,
            data=self.data,
            error=self.error,
            taken=self.taken,
            handled=self.handled,
            delay_seconds=self.delay_seconds,
            spends_attempt=self.spends_attempt,
            due_at=self.due_at,
            wait_kind=self.wait_kind,
            wait_key=self.wait_key,
            child=self.child,
            fan_out=self.fan_out,
            **telemetry,
        )


def of_result(
    result: Any, node: Node, execution_id: str, limit: int, write: Callable[[Any, str, int], str] = encode
) -> AttemptResult:
    """Classify the result of a handler; `write` encodes its data. Data that JSON can't carry is a failure."""
    data = result.data if isinstance(result, NodeResult) else result
    try:
        text = write(data, f"the result of node {node.id!r} ({node.type}) of execution {execution_id}", limit)
    except PayloadRejected as error:
        return AttemptResult(Outcome.FAILED, error=_describe(error, permanent=True))
    if not isinstance(result, NodeResult):
        return AttemptResult(Outcome.COMPLETED, data=text)
    if result.outcome is Outcome.FAILED:
        failed = {
            "type": shortened(result.error_type or "", MAX_NAME),
            "message": shortened(result.error_message or "", MAX_ERROR_CHARACTERS),
        }
        failure = {**failed, "permanent": True}
        return AttemptResult(Outcome.FAILED, error=json.dumps(failure))
    if result.outcome is Outcome.RETRY:
        delay = min(result.delay_seconds, LONGEST_SECONDS)
        return AttemptResult(Outcome.RETRY, delay_seconds=delay, spends_attempt=False)
    if result.outcome is Outcome.SKIPPED:
        return AttemptResult(Outcome.SKIPPED, data=text)
    return AttemptResult(Outcome.COMPLETED, data=text, next_nodes=result.next_nodes)


def left(
    ending: AttemptResult, plan: CompiledWorkflow, node: Node, item: int, check: Callable[[], object] | None = None
) -> AttemptResult:
    """Add the edges that are taken after an ended run. A routing error fails it for good; an item takes no edge.

    `check` is called while the conditions of edges are evaluated; it raises to end that.
    """
    if item:
        if ending.next_nodes is None:
            return ending
        wrong = RoutingFailed(
            f"an item of node {node.id!r} named next_nodes; the node goes on when all items have ended"
        )
        return AttemptResult(Outcome.FAILED, error=_describe(wrong, permanent=True))
    if ending.outcome is Outcome.COMPLETED:
        if ending.next_nodes is None and node.id not in plan.conditional:
            return ending  # the store routes by each edge's `on`
        try:
            departure = route_success(plan, node.id, decode(ending.data or "null"), ending.next_nodes, check)
            return ending._replace(taken=departure.taken)
        except RoutingFailed as error:
            ending = AttemptResult(Outcome.FAILED, error=_describe(error, permanent=True))
    if ending.outcome is not Outcome.FAILED:
        return ending
    failure = as_data(json.loads(ending.error or "{}"), node.id)
    departure = route_failure(plan, node.id, failure, check)
    data = json.dumps(failure) if departure.handled else None
    return ending._replace(data=data, taken=departure.taken, handled=departure.handled)


class IsolatedFailure(Exception):
    """Raised when a handler in a process of its own has raised: its exception, classified there."""

    def __init__(self, ending: AttemptResult, error: BaseException) -> None:
        self.ending = ending
        self.error = error
        super().__init__(message_of(error))


def as_data(error: Mapping[str, Any], node_id: str) -> dict[str, Any]:
    """Return the data of a node that failed."""
    return {"error": {"type": error.get("type"), "message": error.get("message"), "node_id": node_id}}


def of_error(error: BaseException, node: Node, attempt: int) -> AttemptResult:
    """Classify the exception of a handler: retry if the policy allows it and attempts are left, else failed."""
    permanent = not is_retried(node.retry, error)
    described = _describe(error, permanent=permanent)
    if permanent or attempt >= node.retry.max_attempts:
        return AttemptResult(Outcome.FAILED, error=described)
    return AttemptResult(Outcome.RETRY, error=described, delay_seconds=retry_delay(node.retry, attempt))


def of_load_error(error: BaseException) -> AttemptResult:
    """Give the run back for some seconds: a worker of a newer version may load its definition. Costs no attempt.

    If only the store did not answer, the run is given back unchanged: a run that was woken by its child or its items
    must not start them again, as it would after a retry.
    """
    if isinstance(error, StoreUnavailable):
        return AttemptResult(Outcome.RELEASED)
    described = _describe(error, permanent=False)
    return AttemptResult(Outcome.RETRY, error=described, delay_seconds=_LOAD_AGAIN_SECONDS, spends_attempt=False)


def is_own_failure(error: BaseException) -> bool:
    """Return whether an error means that this process lacks descriptors, memory, threads, modules or processes."""
    # By type(), and by the interpreter's own descriptor: a handler's exception may have made its attributes its own.
    kind = type(error)
    if issubclass(kind, OSError):
        return _ERRNO.__get__(error) in _SCARCE
    threads = issubclass(kind, RuntimeError) and "start new thread" in message_of(error)
    return threads or issubclass(kind, MemoryError | ImportError | HandlerDied)


def of_refusal(error: BaseException) -> AttemptResult:
    """Fail a node after the store refused its outcome: the store would refuse it again."""
    return AttemptResult(Outcome.FAILED, error=_describe(error, permanent=True))


def _describe(error: BaseException, *, permanent: bool) -> str:
    return json.dumps(
        {
            "type": type_of(error),
            "message": message_of(error),
            "traceback": traceback_of(error, size=MAX_TRACEBACK_CHARACTERS),
            "permanent": permanent,
        }
    )
