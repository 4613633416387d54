"""The store that tests of the commands read and change, and the terminal that they are run in."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from spanloom.cli.exit_codes import DONE
from spanloom.engine import ExecutionStore
from spanloom.engine.store.requests import Claim, LogLine, NodeKey, Outcome, RecordRequest, SpanLine, StartRequest
from spanloom.testing.workflows import chain, single
from support.fork_server import run_in_terminal

OLDER = "019cb2f4-1111-7abc-8def-0123456789ab"
NEWER = "019cb2f4-2222-7abc-8def-ba9876543210"
TRACE_ID, ROOT_SPAN = "a" * 32, "b" * 16
NINE = datetime(2026, 3, 1, 9, tzinfo=UTC)
NINE_NS = int(NINE.timestamp()) * 1_000_000_000

Invoke = Callable[..., str]
Control = Callable[..., tuple[int, list[list[str]], str]]


def at(seconds: float) -> datetime:
    return NINE + timedelta(seconds=seconds)


def fill(store: ExecutionStore) -> None:
    """Put in a chain of two that failed at its second node, and a newer execution of another workflow that waits."""
    store.save_workflow(chain(2, "orders"), change_notes="first", created_by="ada")
    store.save_workflow(chain(3, "orders"), now=at(1))
    store.save_workflow(single("mail"))
    store.register_worker("w1", name="w1", host="here", pid=1, queues=["default"], lease_seconds=1e9, now=NINE)
    older = StartRequest(
        OLDER, "orders", '{"id": 7}', version=1, metadata={"customer": "17"},
        trace_parent=f"00-{TRACE_ID}-{ROOT_SPAN}-01",
    )  # fmt: skip
    store.create_executions([older], now=NINE)
    finish(store, "n1", at(1), Outcome.COMPLETED, data='"priced"')
    finish(store, "n2", at(2), Outcome.FAILED, error='{"type": "ValueError", "message": "no stock"}')
    store.create_executions([StartRequest(NEWER, "mail", "null")], now=at(3))


def finish(store: ExecutionStore, node_id: str, when: datetime, outcome: Outcome, **result: Any) -> None:
    (claim,) = store.claim([NodeKey(OLDER, node_id)], worker_id="w1", now=when)
    assert isinstance(claim, Claim)
    start_ns = NINE_NS + int((when - NINE).total_seconds()) * 1_000_000_000
    span = SpanLine(
        TRACE_ID, f"{len(node_id)}{node_id[1:]:0>15}", ROOT_SPAN, node_id, "consumer",
        "error" if outcome is Outcome.FAILED else "ok", start_ns, start_ns + 250_000_000, node_id,
    )  # fmt: skip
    lines = [LogLine("info", f"{node_id} begins", when, '{"cents": 990}'), LogLine("warning", f"{node_id} ends", when)]
    record = RecordRequest(OLDER, node_id, 0, claim.node.fence, "w1", outcome, logs=lines, spans=[span], **result)
    (answer,) = store.record([record], now=when + timedelta(seconds=0.25))
    assert answer.recorded


def in_terminal(arguments: list[str], *, answer: str | None = None, code: int = DONE) -> str:
    """Run the command in a terminal and return what that was sent; `answer` is typed when a question was asked.

    Without an answer nobody sits there: its input is empty.
    """
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "PYTHONUTF8": "1"}
    environment.pop("NO_COLOR", None)
    done = run_in_terminal(arguments, Path.cwd(), environment, question="[y/N] ", answer=answer)
    assert done.returncode == code, done.stdout
    return done.stdout


APP = """
from pydantic import BaseModel

from spanloom.engine import NodeContext, PermanentError, WorkflowBuilder, WorkflowEngine


class Order(BaseModel):
    id: int


orders = WorkflowBuilder("orders", input=Order)


@orders.node
def charge(order: Order, ctx: NodeContext) -> str:
    ctx.log.info("charging", order=order.id)
    if order.id < 0:
        raise PermanentError("no such order")
    return f"order {order.id}"


engine = WorkflowEngine([orders])
"""
